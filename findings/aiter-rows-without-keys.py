"""unified_attention: a row that sees no key is NaN where another row of its tile sees one. It should be 0.

Two queries and one key, aligned at the end, as causal attention has them: the first query sees nothing. The value is 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

QUERIES, KEYS, HEAD_SIZE = 2, 1, 32
q = torch.ones(QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, -1.0)
load("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention").unified_attention(
    q=q,
    k=cache,
    v=cache,
    out=out,
    cu_seqlens_q=ints(0, QUERIES),
    max_seqlen_q=QUERIES,
    seqused_k=ints(KEYS),
    max_seqlen_k=KEYS,
    softmax_scale=1.0,
    causal=True,
    window_size=(-1, -1),
    block_table=ints([0, 0, 0, 0]),
    softcap=0.0,
    q_descale=None,
    k_descale=None,
    v_descale=None,
)
position = torch.arange(QUERIES, device=DEVICE) + KEYS - QUERIES
visible = torch.arange(KEYS, device=DEVICE) <= position[:, None]
weights = torch.exp((q[:, 0] @ cache[0, :KEYS, 0].T).float()) * visible
weights /= weights.sum(dim=1, keepdim=True).clamp(min=1e-30)  # nothing has no sum
compare(weights @ cache[0, :KEYS, 0, :1].float(), out[:, 0, :1])
