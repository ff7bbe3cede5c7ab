"""flash_attn_varlen_func: with ALiBi and float16, a row is 0 where the key of the largest logit is far away.

One query token after 64 keys, with a slope of 1/2. The first key's logit is 32, which its distance of 64 takes away. The last
key's logit is 0 at a distance of 0. The logits of all others are far below. So the output is the mean of the first and the last
value.
"""

import torch
from kernels import DEVICE, compare, ints, load

KEYS, HEAD_SIZE = 65, 32

q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(1, KEYS + 64, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = torch.zeros_like(k)
q[..., 0] = 1
k[0, :KEYS, 0] = torch.tensor([32.0, *[-1000.0] * (KEYS - 2), 0.0], dtype=q.dtype, device=DEVICE)
v[0, 0], v[0, KEYS - 1] = 1, 3
slopes = torch.tensor([0.5], device=DEVICE)
out = load("lmdeploy.pytorch.kernels.cuda.flashattention").flash_attn_varlen_func(
    q, k, v, ints(0, 1), ints(0, KEYS), max_seqlen_q=1, softmax_scale=1.0, causal=True, alibi_slopes=slopes
)
compare(2.0, out[0, 0, 0])
