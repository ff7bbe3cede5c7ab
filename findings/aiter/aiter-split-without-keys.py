"""unified_attention, keys split over programs: the row of a request without keys is NaN. It should be 0, as without a split.

One request with a query and no keys. Keys are split where the bound of their number, max_seqlen_k, is more than 512.
Interpreted, a division of integers by 0 gives 0; on a GPU it is undefined.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE = 32
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.unified_attention")
compare(0.0, unified_attention(module, q, cache, cache, keys=0, max_seqlen_k=1024)[0, 0, 0])  # a sum of nothing
