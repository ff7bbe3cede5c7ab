"""unified_attention: NaN in a slot past the end of a sequence makes the output NaN.

A decode of a request with one key, in a block of 16 slots. The other slots hold NaN in V. The visible value is 1.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE = 32
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = torch.full_like(k, torch.nan)
v[0, 0] = 1.0
module = load("aiter.ops.triton.attention.unified_attention")
compare(1.0, unified_attention(module, q, k, v, keys=1)[0, 0, 0])
