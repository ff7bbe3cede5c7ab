"""flash_attn_with_kvcache: of a decode with two query tokens for each request, a quantized cache serves one.

Two requests with one key each, in a float8 cache with scales of 1. The values are 1 and 2. A softmax over one key weighs it
with 1, so both rows of a request are its value. The memory of new tensors holds NaN.
"""

import torch
from kernels import DEVICE, compare, ints, load

REQUESTS, QUERIES, BLOCK_SIZE, HEAD_SIZE = 2, 2, 16, 32
FP8 = 16  # QuantPolicy.FP8

q = torch.zeros(REQUESTS * QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(REQUESTS, BLOCK_SIZE, 1, HEAD_SIZE, dtype=torch.float32, device=DEVICE)
v = k + torch.tensor([1.0, 2.0], device=DEVICE)[:, None, None, None]
one = torch.ones((), device=DEVICE)
torch.use_deterministic_algorithms(True)  # new memory is NaN
attend = load("lmdeploy.pytorch.kernels.cuda.pagedattention").flash_attn_with_kvcache
out = attend(
    q,
    k.to(torch.float8_e4m3fn),
    v.to(torch.float8_e4m3fn),
    cache_seqlens=ints(1, 1),
    page_table=ints(0, 1)[:, None],
    max_seqlen_q=QUERIES,
    softmax_scale=1.0,
    quant_policy=FP8,
    k_scales_zeros=one,
    v_scales_zeros=one,
)
compare([1.0, 1.0, 2.0, 2.0], out[:, 0, 0])
