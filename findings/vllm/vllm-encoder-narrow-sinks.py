"""TRITON_ATTN and ROCM_ATTN, encoders: a sink of 16 bits is multiplied by log2(e) in 16 bits.

One query, one key, a logit of 20 and a sink of 20: each has half of the weight. The value is 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, LOGIT = 32, 20.0
q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = LOGIT
k, v = torch.ones_like(q), torch.ones_like(q)
sinks = torch.full((1,), LOGIT, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, torch.nan)
load("vllm.v1.attention.ops.triton_prefill_attention").context_attention_fwd(
    q=q,
    k=k,
    v=v,
    o=out,
    b_start_loc=ints(0, 1),
    b_seq_len=ints(1),
    max_input_len=1,
    is_causal=False,
    softmax_scale=1.0,
    sliding_window_q=-1,
    sliding_window_k=-1,
    sinks=sinks,
)
compare(0.5, out[0, 0, 0])
