"""unified_attention: a logit of more than about 88 times the soft cap makes the output NaN.

One query, one key, a logit of 100 and a soft cap of 1. The value is 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, LOGIT, CAP = 32, 100.0, 1.0
q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = LOGIT
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, -1.0)
load("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention").unified_attention(
    q=q,
    k=cache,
    v=cache,
    out=out,
    cu_seqlens_q=ints(0, 1),
    max_seqlen_q=1,
    seqused_k=ints(1),
    max_seqlen_k=1,
    softmax_scale=1.0,
    causal=True,
    window_size=(-1, -1),
    block_table=ints([0, 0, 0, 0]),
    softcap=CAP,
    q_descale=None,
    k_descale=None,
    v_descale=None,
)
logits = (q[0] @ cache[0, :1, 0].T).float()
weights = (CAP * torch.tanh(logits / CAP)).softmax(dim=1)
compare((weights @ cache[0, :1, 0].float())[0, 0], out[0, 0, 0])
