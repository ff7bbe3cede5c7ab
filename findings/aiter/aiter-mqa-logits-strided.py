"""fp8_mqa_logits on gfx942: float8_e4m3fn index keys that are a part of longer rows are read at wrong places.

One query with 16 heads of 32 dims, all 1, as the weights and scales are. The numbers of key i are i + 1, and 0 stands after
each key for as many columns. The logit of key i is 512 (i + 1). The query sees the first two of four keys: so all reads are
inside of the memory. Of queries that are a part of longer rows, the last one is read past it.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, SIZE, KEYS = 16, 32, 4
wide = torch.zeros(KEYS, 2 * SIZE, device=DEVICE)
wide[:, :SIZE] = torch.arange(1.0, KEYS + 1, device=DEVICE)[:, None]
keys = wide.to(torch.float8_e4m3fn)[:, :SIZE]
q = torch.ones(1, HEADS, SIZE, device=DEVICE).to(keys.dtype)
scales, weights = torch.ones(KEYS, device=DEVICE), torch.ones(1, HEADS, device=DEVICE)
module = load("aiter.ops.triton.attention.fp8_mqa_logits")
logits = module.fp8_mqa_logits(q, keys, scales, weights, ints(0), ints(2))
compare([512.0, 1024.0], logits[0, :2])
