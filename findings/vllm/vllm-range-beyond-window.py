"""TRITON_ATTN: in a bidirectional range that is longer than the window, values before the window count as 0.

An image of 17 tokens that see each other both ways, and a window of 2 tokens. All logits are 0 and all values are 1, so each
output is a mean of ones. The last query is the first of its tile.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, ints, load

TOKENS, WINDOW, HEAD_SIZE = 17, 2, 32
q = torch.zeros(TOKENS, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(2, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("vllm.v1.attention.ops.triton_unified_attention")
one = torch.ones(1, 1, device=DEVICE)
out = unified_attention(
    module,
    *(q, cache, cache),
    keys=TOKENS,
    queries=TOKENS,
    window_size=(WINDOW - 1, 0),
    block_table=ints([0, 1, 0, 0]),
    k_descale=one,
    v_descale=one,
    mm_prefix_range=ints([[0, TOKENS - 1]]),
)
compare([1.0, 1.0], out[-2:, 0, 0])
