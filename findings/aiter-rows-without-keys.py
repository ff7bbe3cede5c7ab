"""unified_attention: a row that sees no key is NaN where another row of its tile sees one. It should be 0.

Two queries and one key, aligned at the end, as causal attention has them: the first query sees nothing. The value is 1.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

QUERIES, KEYS, HEAD_SIZE = 2, 1, 32
q = torch.ones(QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, -1.0)
module = load("aiter.ops.triton.attention.unified_attention")
unified_attention(module, q, cache, cache, out, keys=KEYS, queries=QUERIES)
position = torch.arange(QUERIES, device=DEVICE) + KEYS - QUERIES
visible = torch.arange(KEYS, device=DEVICE) <= position[:, None]
weights = torch.exp((q[:, 0] @ cache[0, :KEYS, 0].T).float()) * visible
weights /= weights.sum(dim=1, keepdim=True).clamp(min=1e-30)  # nothing has no sum
compare(weights @ cache[0, :KEYS, 0, :1].float(), out[:, 0, :1])
