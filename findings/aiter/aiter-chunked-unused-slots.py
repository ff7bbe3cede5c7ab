"""chunked_prefill_paged_decode: NaN in a slot past the end of a sequence makes the output of a decode NaN.

A decode of a request with one key, in a block of 16 slots. The other slots hold NaN in V. The visible value is 1.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, load

HEAD_SIZE, X = 32, 8
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache = torch.ones(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE)
v_cache = torch.full((1, 1, HEAD_SIZE, 16), torch.nan, dtype=q.dtype, device=DEVICE)
v_cache[..., 0] = 1.0
module = load("aiter.ops.triton.attention.chunked_pa_prefill")
compare(1.0, chunked_prefill_paged_decode(module, q, q, q, k_cache, v_cache, keys=1)[0, 0, 0])
