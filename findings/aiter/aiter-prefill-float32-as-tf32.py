"""Triton prefill_attention: attention in float32 multiplies in TF32 on NVIDIA GPUs.

A query of 64 times 16 has two keys: one of 1 + 3 / 8192, and one of 1. The scale is 1 / 8, and the logits are 128.046875 and
128: exact in float32. The values are 1 and 0, so the output is the weight of the first key. TF32 takes its elements for 1.
"""

import tf32  # noqa: F401
import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 64
q = torch.full((2, 1, HEAD_SIZE), 16.0, device=DEVICE)
k, v = torch.ones_like(q), torch.zeros_like(q)
k[0] += 3 / 8192
v[0] = 1
out = torch.full_like(q, torch.nan)
load("aiter.ops.triton.attention.prefill_attention").context_attention_fwd(
    q, k, v, out, b_start_loc=ints(0, 2), b_seq_len=ints(2), max_input_len=2, is_causal=False
)
logits = (q[0].double() * k[:, 0]).sum(dim=1) / HEAD_SIZE**0.5
compare(logits.softmax(dim=0)[:1].float(), out[0, 0, :1])
