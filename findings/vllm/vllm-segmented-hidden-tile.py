"""ROCM_SEGMENTED_ATTN: a query whose first tile of keys is hidden by the window takes 0 for the largest of its logits.

Three queries, 66 keys, and a window of 2 tokens: the last query sees keys 64 and 65. The first query of its tile sees key 62,
so the last one begins with the keys 0 to 63, too. All logits are -24, so a weight relative to a largest logit of 0 is exp(-24),
which is 0 in float16. All values are 1.
"""

import torch
from calls import run_segmented_attention
from kernels import DEVICE, compare, load

QUERIES, KEYS, WINDOW, HEAD_SIZE = 3, 66, 2, 64
q = torch.ones(QUERIES, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache = torch.full((5, 16, 1, HEAD_SIZE), -3.0, dtype=q.dtype, device=DEVICE)
v_cache = torch.ones_like(k_cache)
module = load("vllm.v1.attention.ops.segmented_attention")
call = {"keys": KEYS, "scale": HEAD_SIZE ** (-0.5), "sliding_window": WINDOW - 1}
compare([1.0, 1.0, 1.0], run_segmented_attention(module, q, k_cache, v_cache, **call)[:, 0, 0])
