"""unified_attention_sparse_mla: where the first tile of indices is all -1, a row loses its weights if its logits are negative.

One query with 16 heads. Of 17 indices the first 16, a tile, are -1; the last names the only key, whose logit is -200.
Every output is the key's value, 1.
"""

import torch
from calls import unified_attention_sparse_mla
from kernels import DEVICE, compare, ints, load

LATENT, WIDTH, HEADS, LOGIT = 256, 288, 16, -200.0
q = torch.zeros(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
q[..., 0] = LOGIT
kv = torch.ones(1, 16, 1, WIDTH, dtype=q.dtype, device=DEVICE)
kernels = load("aiter.ops.triton.attention.unified_attention_sparse_mla")
out = unified_attention_sparse_mla(kernels, q, kv, latent_size=LATENT, topk_indices=ints([-1] * 16 + [0]))
compare([1.0, 1.0], out[0, [0, 15], 0])
