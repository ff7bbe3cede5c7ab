"""mla_decode_rope: of the last key, dims past its row are read, and a NaN in the next row makes the output NaN.

One query, one key of 96 latent and 48 rotated dims, turned by 0 degrees. The next row of the buffer, which no index
names, is NaN. The output is the key's value, 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

LATENT, ROTATED, HEADS, SPLITS = 96, 48, 16, 1
q = torch.ones(1, HEADS, LATENT + ROTATED, dtype=torch.float16, device=DEVICE)
buffer = torch.ones(2, 1, LATENT + ROTATED, dtype=q.dtype, device=DEVICE)
buffer[1] = torch.nan
out = torch.zeros(1, HEADS, LATENT, dtype=q.dtype, device=DEVICE)
angles = torch.cat([torch.ones(1, ROTATED // 2), torch.zeros(1, ROTATED // 2)], dim=1).to(q)
load("aiter.ops.triton.attention.mla_decode_rope").decode_attention_fwd_grouped_rope(
    q=q,
    k_buffer=buffer,
    v_buffer=buffer[..., :LATENT],
    o=out,
    kv_indptr=ints(0, 1),
    kv_indices=ints(0),
    k_pe_tokens=torch.zeros(1, ROTATED, dtype=q.dtype, device=DEVICE),
    kv_lora_rank=LATENT,
    rotary_dim=ROTATED,
    cos_sin_cache=angles,
    positions=torch.zeros(1, dtype=torch.int64, device=DEVICE),
    attn_logits=torch.zeros(1, HEADS, SPLITS, LATENT + 1, device=DEVICE),
    num_kv_splits=SPLITS,
    sm_scale=0.125,
    use_rope=True,
    config={"fwd_grouped_kernel_stage1_rope": {"BLOCK_N": 32, "BLOCK_H": 16}, "fwd_kernel_stage2": {}},
)
compare([1.0, 1.0], out[0, [0, 15], 0])
