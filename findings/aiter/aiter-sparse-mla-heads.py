"""unified_attention_sparse_mla: query heads after the last multiple of 16 are never computed.

One query with 24 heads and one key. Every output is the key's value, 1.
"""

import torch
from calls import unified_attention_sparse_mla
from kernels import DEVICE, compare, ints, load

LATENT, WIDTH, HEADS = 256, 288, 24
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
kv = torch.ones(1, 16, 1, WIDTH, dtype=q.dtype, device=DEVICE)
kernels = load("aiter.ops.triton.attention.unified_attention_sparse_mla")
out = unified_attention_sparse_mla(kernels, q, kv, latent_size=LATENT, topk_indices=ints([0]))
compare(torch.ones(HEADS), out[0, :, 0])
