"""chunked_prefill_paged_decode: NaN in a slot before the window makes the output of a decode NaN.

A decode of a request with 16 keys, which fill their block, and a window of 1 token. The slots before the window hold NaN in V.
The query's own value is 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

WINDOW, HEAD_SIZE, X = 1, 32, 8
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
v_cache = torch.full((1, 1, HEAD_SIZE, 16), torch.nan, dtype=q.dtype, device=DEVICE)
v_cache[..., 15] = 1.0
out = torch.full_like(q, -1.0)
one = torch.ones((), device=DEVICE)
load("aiter.ops.triton.attention.chunked_pa_prefill", "aiter.ops.triton.chunked_pa_prefill").chunked_prefill_paged_decode(
    query=q,
    key=q,
    value=q,
    output=out,
    kv_cache_dtype="auto",
    key_cache=torch.ones(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE),
    value_cache=v_cache,
    block_table=ints([0]),
    query_start_loc=ints(0, 1),
    seq_lens=ints(16),
    max_query_len=1,
    k_scale=one,
    v_scale=one,
    sliding_window=WINDOW,
    sm_scale=1.0,
)
weights = torch.ones(1, device=DEVICE)  # of the query's own key alone
compare(weights @ v_cache[0, 0, 0, 15:].float(), out[0, 0, 0])
