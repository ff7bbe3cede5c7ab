"""pa_prefill: NaN in a slot before the window makes the output NaN.

One query after one key, and a window of 1 token. The slot before the window holds NaN in V. The query's own value is 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

WINDOW, HEAD_SIZE, X = 1, 32, 8
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k, v = torch.ones_like(q), torch.ones_like(q)
out = torch.full_like(q, -1.0)
one = torch.ones((), device=DEVICE)
load("aiter.ops.triton.attention.pa_prefill").context_attention_fwd(
    q=q,
    k=k,
    v=v,
    o=out,
    kv_cache_dtype="auto",
    k_cache=torch.ones(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE),
    v_cache=torch.full((1, 1, HEAD_SIZE, 16), torch.nan, dtype=q.dtype, device=DEVICE),
    b_loc=ints([0]),
    b_start_loc=ints(0, 1),
    b_seq_len=ints(2),
    max_input_len=1,
    k_scale=one,
    v_scale=one,
    sliding_window=WINDOW,
    sm_scale=1.0,
)
compare(1.0, out[0, 0, 0])
