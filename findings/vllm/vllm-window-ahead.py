"""TRITON_ATTN, not causal: values of keys at the far end of a window count as 0, though their weights count.

Three queries and keys, and a window of 2 tokens. All logits are 0 and all values are 1, so each output is a mean of ones.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

TOKENS, WINDOW, HEAD_SIZE = 3, 2, 32
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("vllm.v1.attention.ops.triton_unified_attention")
one = torch.ones(1, 1, device=DEVICE)
call = {"causal": False, "window_size": (WINDOW - 1, 0), "k_descale": one, "v_descale": one}
compare([1.0, 1.0, 1.0], unified_attention(module, q, cache, cache, keys=TOKENS, queries=TOKENS, **call)[:, 0, 0])
