"""unified_attention_sparse_mla: query heads behind the last multiple of 16 are never computed.

One query with 24 heads and one key. Every output is the key's value, 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

LATENT, WIDTH, HEADS = 256, 288, 24
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
kv = torch.ones(1, 16, 1, WIDTH, dtype=q.dtype, device=DEVICE)
out = torch.full((1, HEADS, LATENT), torch.nan, dtype=q.dtype, device=DEVICE)
kernels = load("aiter.ops.triton.attention.unified_attention_sparse_mla", "aiter.ops.triton.unified_attention_sparse_mla")
kernels.unified_attention_sparse_mla(
    q=q,
    kv=kv,
    out=out,
    cu_seqlens_q=ints(0, 1),
    max_seqlen_q=1,
    seqused_k=ints(1),
    max_seqlen_k=1,
    softmax_scale=1.0,
    topk_indices=ints([0]),
    block_table=ints([0]),
    kv_lora_rank=LATENT,
)
compare(torch.ones(HEADS), out[0, :, 0].cpu())
