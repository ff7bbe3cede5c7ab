"""chunked_prefill_paged_decode: NaN in a slot before the window makes the output of a decode NaN.

A decode of a request with 16 keys, which fill their block, and a window of 1 token. The slots before the window hold NaN in V.
The query's own value is 1.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, load

WINDOW, HEAD_SIZE, X = 1, 32, 8
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache = torch.ones(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE)
v_cache = torch.full((1, 1, HEAD_SIZE, 16), torch.nan, dtype=q.dtype, device=DEVICE)
v_cache[..., 15] = 1.0
module = load("aiter.ops.triton.attention.chunked_pa_prefill")
compare(1.0, chunked_prefill_paged_decode(module, q, q, q, k_cache, v_cache, keys=16, sliding_window=WINDOW)[0, 0, 0])
