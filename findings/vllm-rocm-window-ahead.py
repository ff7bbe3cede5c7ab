"""ROCM_ATTN, not causal: a window has no right edge, and a query sees all keys ahead.

Three queries and keys, and a window of 2 tokens, which TRITON_ATTN takes to both sides. All logits are 0. The last value is 6,
the others are 0.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, load

TOKENS, WINDOW, HEAD_SIZE, X = 3, 2, 32, 8
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k, v = torch.ones_like(q), torch.zeros_like(q)
v[-1] = 6.0
out = torch.full_like(q, torch.nan)
module = load("vllm.v1.attention.ops.chunked_prefill_paged_decode")
chunked_prefill_paged_decode(
    module,
    q,
    k,
    v,
    out,
    torch.zeros(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE),
    torch.zeros(1, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE),
    keys=TOKENS,
    queries=TOKENS,
    max_seq_len=TOKENS,
    sliding_window=WINDOW,
    causal=False,
)
position = torch.arange(TOKENS, device=DEVICE)
hidden = (position[:, None] - position).abs() >= WINDOW
weights = (q[:, 0].float() @ k[:, 0].float().T).masked_fill(hidden, -torch.inf).softmax(dim=1)
compare(weights @ v[:, 0, :1].float(), out[:, 0, :1])
