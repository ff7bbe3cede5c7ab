"""unified_attention: a row whose first tile is hidden from it loses its weights where its logits are negative.

Two queries after 63 keys, and a window of 1 token: each query sees only itself, so its output is its own value, 1. The second
query sees nothing of the first tile of 64 keys. All logits are -200.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, ints, load

QUERIES, KEYS, WINDOW, HEAD_SIZE, LOGIT = 2, 65, 1, 32, -200.0
q = torch.zeros(QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = LOGIT
cache = torch.ones(5, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.unified_attention")
table = ints([0, 1, 2, 3, 4, 0, 0, 0])
out = unified_attention(module, q, cache, cache, keys=KEYS, queries=QUERIES, window_size=(WINDOW - 1, 0), block_table=table)
compare([1.0, 1.0], out[:, 0, 0])
