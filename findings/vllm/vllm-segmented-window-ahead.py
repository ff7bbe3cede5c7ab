"""ROCM_SEGMENTED_ATTN, not causal: a window has no right edge, and a query sees all keys ahead.

Three queries and keys, and a window of 2 tokens, which TRITON_ATTN takes to both sides. All logits are 0. The last value is 6,
the others are 0: the outputs are means of two, three and two values.
"""

import torch
from calls import run_segmented_attention
from kernels import DEVICE, compare, load

TOKENS, WINDOW, HEAD_SIZE = 3, 2, 64
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache, v_cache = torch.zeros(2, 1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v_cache[0, TOKENS - 1] = 6.0
module = load("vllm.v1.attention.ops.segmented_attention")
call = {"keys": TOKENS, "sliding_window": WINDOW - 1, "causal": False}
compare([0.0, 2.0, 3.0], run_segmented_attention(module, q, k_cache, v_cache, **call)[:, 0, 0])
