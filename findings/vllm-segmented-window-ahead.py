"""ROCM_SEGMENTED_ATTN, not causal: a window has no right edge, and a query sees all keys ahead.

Three queries and keys, and a window of 2 tokens, which TRITON_ATTN takes to both sides. All logits are 0. The last value is 6,
the others are 0.
"""

import torch
from calls import run_segmented_attention
from kernels import DEVICE, compare, load

TOKENS, WINDOW, HEAD_SIZE = 3, 2, 64
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache, v_cache = torch.zeros(2, 1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v_cache[0, TOKENS - 1] = 6.0
out = torch.full_like(q, torch.nan)
module = load("vllm.v1.attention.ops.segmented_attention")
run_segmented_attention(module, q, out, k_cache, v_cache, keys=TOKENS, sliding_window=WINDOW - 1, causal=False)
position = torch.arange(TOKENS, device=DEVICE)
hidden = (position[:, None] - position).abs() >= WINDOW
keys, values = k_cache[0, :TOKENS, 0].float(), v_cache[0, :TOKENS, 0].float()
weights = (q[:, 0].float() @ keys.T).masked_fill(hidden, -torch.inf).softmax(dim=1)
compare((weights @ values)[:, 0], out[:, 0, 0])
