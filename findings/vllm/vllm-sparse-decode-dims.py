"""rocm_sparse_attn_decode_bf16: no kernel for rows of 576 dims, as DeepSeek's have; the prefill takes them.

One query with 16 heads and one key, in one part and in two. Every output is the key's value, 1; one that is missing is 0.
"""

import torch
from kernels import DEVICE, compare, ints, load

LATENT, ROTATED, HEADS = 512, 64, 16
WIDTH = LATENT + ROTATED
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
kv = torch.ones(1, 1, WIDTH, dtype=q.dtype, device=DEVICE)
out = torch.zeros(2, 1, HEADS, LATENT, dtype=q.dtype, device=DEVICE)
kernels = load("vllm.v1.attention.ops.rocm_aiter_mla_sparse")
torch.Tensor.is_cpu = False  # which it asks for
call = {"scale": 1.0, "head_dim": WIDTH, "nope_head_dim": LATENT, "rope_head_dim": ROTATED, "attn_sink": None}
slots = {"ragged_indices": ints(0), "ragged_indptr": ints(0, 1)}
kernels.rocm_sparse_attn_prefill(q, kv, None, None, **call, output=out[0], **slots)
try:
    kernels.rocm_sparse_attn_decode_bf16(q, kv, **call, output=out[1], **slots, num_splits=2)
except Exception as error:
    print(str(error).splitlines()[-1])
compare([1.0, 1.0], out[:, 0, 0, 0])
