"""unified_attention, keys split over programs: the row of a request without keys is NaN. It should be 0, as without a split.

One request with a query and no keys. Keys are split where the bound of their number, max_seqlen_k, is more than 512.
Interpreted, a division of integers by 0 gives 0; on a GPU it is undefined.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 32
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, -1.0)
load("aiter.ops.triton.attention.unified_attention", "aiter.ops.triton.unified_attention").unified_attention(
    q=q,
    k=cache,
    v=cache,
    out=out,
    cu_seqlens_q=ints(0, 1),
    max_seqlen_q=1,
    seqused_k=ints(0),
    max_seqlen_k=1024,
    softmax_scale=1.0,
    causal=True,
    window_size=(-1, -1),
    block_table=ints([0, 0, 0, 0]),
    softcap=0.0,
    q_descale=None,
    k_descale=None,
    v_descale=None,
)
weights = torch.exp((q[0] @ cache[0, :0, 0].T).float())
compare((weights @ cache[0, :0, 0].float())[0, 0], out[0, 0, 0])  # a sum of nothing is 0
