"""ROCM_ATTN, not causal: a window has no right edge, and a query sees all keys ahead.

Three queries and keys, and a window of 2 tokens, which TRITON_ATTN takes to both sides. All logits are 0. The last value is 6,
the others are 0: the outputs are means of two, three and two values.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, load

TOKENS, WINDOW, HEAD_SIZE, X = 3, 2, 32, 8
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k, v = torch.ones_like(q), torch.zeros_like(q)
v[-1] = 6.0
module = load("vllm.v1.attention.ops.chunked_prefill_paged_decode")
out = chunked_prefill_paged_decode(
    module,
    *(q, k, v),
    torch.zeros(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE),
    torch.zeros(1, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE),
    keys=TOKENS,
    queries=TOKENS,
    max_seq_len=TOKENS,
    sliding_window=WINDOW,
    causal=False,
)
compare([0.0, 2.0, 3.0], out[:, 0, 0])
