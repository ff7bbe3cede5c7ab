"""unified_attention: a row that sees no key is NaN where another row of its tile sees one. It should be 0.

Two queries and one key, aligned at the end, as causal attention has them: the first query sees nothing. The value is 1.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

QUERIES, KEYS, HEAD_SIZE = 2, 1, 32
q = torch.ones(QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.unified_attention")
compare([0.0, 1.0], unified_attention(module, q, cache, cache, keys=KEYS, queries=QUERIES)[:, 0, 0])
