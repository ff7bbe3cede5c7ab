"""TRITON_ATTN: attention in float32 multiplies in TF32 on NVIDIA GPUs.

A query of ones has two keys of 128 dims: one of 1 + 3 / 8192, and one of 1. The logits are 128.046875 and 128, both exact in
float32, and the values are 1 and 0. So the output is the weight of the first key, whose elements TF32 takes for 1. The first
number is of unified_attention, the second of triton_prefill_attention.
"""

import tf32  # noqa: F401
import torch
from calls import unified_attention
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 128
q = torch.ones(2, 1, HEAD_SIZE, device=DEVICE)
k, v = torch.ones_like(q), torch.zeros_like(q)
k[0] += 3 / 8192
v[0] = 1
of_encoder = torch.full_like(q, torch.nan)
one = torch.ones(1, 1, device=DEVICE)
module = load("vllm.v1.attention.ops.triton_unified_attention")
blocks = [torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, 14))[None] for rows in (k, v)]
of_decoder = unified_attention(module, q[:1], *blocks, keys=2, block_table=ints([0]), k_descale=one, v_descale=one)
load("vllm.v1.attention.ops.triton_prefill_attention").context_attention_fwd(
    q=q,
    k=k,
    v=v,
    o=of_encoder,
    b_start_loc=ints(0, 2),
    b_seq_len=ints(2),
    max_input_len=2,
    is_causal=False,
    softmax_scale=1.0,
    sliding_window_q=-1,
    sliding_window_k=-1,
)
logits = (q[0].double() * k[:, 0]).sum(dim=1)
weight = logits.softmax(dim=0)[0].float()
compare(torch.stack([weight, weight]), torch.stack([of_decoder[0, 0, 0], of_encoder[0, 0, 0]]))
