"""unified_attention: a logit of more than about 88 times the soft cap makes the output NaN.

One query, one key, a logit of 100 and a soft cap of 1. The value is 1.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE, LOGIT, CAP = 32, 100.0, 1.0
q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = LOGIT
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.unified_attention")
compare(1.0, unified_attention(module, q, cache, cache, keys=1, softcap=CAP)[0, 0, 0])
