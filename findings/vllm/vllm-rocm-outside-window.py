"""ROCM_ATTN: NaN in a block before the window makes the output NaN.

One query, a window of 1 token, 17 keys. The block before the window belongs to another request by now, whose V is NaN.
All visible values are 1.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, HEAD_SIZE, X = 17, 1, 32, 8
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache = torch.ones(2, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE)
v_cache = torch.ones(2, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE)
v_cache[0] = torch.nan
module = load("vllm.v1.attention.ops.chunked_prefill_paged_decode")
call = {"keys": KEYS, "block_table": ints([0, 1]), "max_seq_len": KEYS, "sliding_window": WINDOW}
compare(1.0, chunked_prefill_paged_decode(module, q, q, q, k_cache, v_cache, **call)[0, 0, 0])
