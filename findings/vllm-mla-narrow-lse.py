"""TRITON_MLA: the LSE has the dtype of q, and decode context parallelism weights ranks by it.

One query with 16 heads and two equal keys, whose logits are 34: the LSE is 34 + log(2). The tensors are those that
vllm/v1/attention/backends/mla/triton_mla.py:262-265 makes. What is compared is exp(LSE - 34), the weight of the two keys.
"""

import torch
from kernels import DEVICE, compare, ints, load

LATENT, WIDTH, HEADS = 256, 288, 16
q = torch.ones(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, WIDTH, dtype=q.dtype, device=DEVICE)
out = torch.zeros(1, HEADS, LATENT, dtype=q.dtype, device=DEVICE)
lse = torch.zeros(1, HEADS, dtype=q.dtype, device=DEVICE)
load("vllm.v1.attention.ops.triton_decode_attention").decode_attention_fwd(
    q,
    cache,
    cache[..., :LATENT],
    out,
    lse,
    ints([0]),
    ints(2),
    torch.empty(1, HEADS, 1, LATENT + 1, device=DEVICE),
    1,
    34 / WIDTH,
    16,
    is_mla=True,
)
compare(torch.tensor([2.0]), torch.exp(lse[0, :1].float().cpu() - 34))
