"""unified_attention, keys split over programs: a row that no request owns is written.

A decode of one token in a batch that is padded to two rows, as a graph has it. The second row holds -1 before the call. Keys
are split where the bound of their number, max_seqlen_k, is more than 512.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE = 32
torch.use_deterministic_algorithms(True, warn_only=True)  # memory that is allocated starts as NaN
q = torch.ones(2, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.unified_attention")
compare([1.0, -1.0], unified_attention(module, q, cache, cache, keys=1, max_seqlen_k=1024)[:, 0, 0])
