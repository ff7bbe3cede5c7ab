"""TritonAttentionImpl: a layer with a window of 2 tokens sees 3 keys, one with a window of 1 token 2.

Windows of 1 and 2 tokens, and none (None, -1). Each goes through the backend's own function to the kernel of decodes. Four
keys, whose values are 0, 1, 2 and 4. All logits are 0, so the output is the mean of the last values.
"""

import torch
from kernels import DEVICE, compare, ints, load

KEYS, WINDOWS, BLOCK_SIZE, HEAD_SIZE = 4, (1, 2, None, -1), 16, 32
sent = load("lmdeploy.pytorch.backends.cuda.attention")._normalize_sliding_window

q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(1, BLOCK_SIZE, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = torch.zeros_like(k)
v[0, :KEYS, 0] = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=q.dtype, device=DEVICE)[:, None]
attend = load("lmdeploy.pytorch.kernels.cuda.pagedattention").flash_attn_with_kvcache
call = {"cache_seqlens": ints(KEYS), "page_table": ints(0)[None], "softmax_scale": 1.0}
got = [attend(q, k, v, window_size=sent(window), **call)[0, 0, 0] for window in WINDOWS]
compare([4.0, 3.0, 1.75, 1.75], torch.stack(got))
