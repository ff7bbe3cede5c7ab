"""ROCM_SEGMENTED_ATTN: NaN in a block before the window makes the output NaN.

One query, a window of 1 token, 17 keys. The block before the window belongs to another request by now, whose V is NaN.
All visible values are 1.
"""

import torch
from calls import run_segmented_attention
from kernels import DEVICE, compare, load

KEYS, WINDOW, HEAD_SIZE = 17, 1, 64
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache, v_cache = torch.ones(2, 2, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v_cache[0] = torch.nan
module = load("vllm.v1.attention.ops.segmented_attention")
compare(1.0, run_segmented_attention(module, q, k_cache, v_cache, keys=KEYS, sliding_window=WINDOW - 1)[0, 0, 0])
