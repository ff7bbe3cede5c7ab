"""TritonAttentionImpl: a layer with a window of 2 tokens sees 3 keys.

The model's window goes through the backend's own function to the kernel of decodes. Four keys, whose values are 0, 1, 2 and 4.
All logits are 0, so the output is the mean of the last two values.
"""

import torch
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, BLOCK_SIZE, HEAD_SIZE = 4, 2, 16, 32
sent = load("lmdeploy.pytorch.backends.cuda.attention")._normalize_sliding_window(WINDOW)

q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(1, BLOCK_SIZE, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = torch.zeros_like(k)
v[0, :KEYS, 0] = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=q.dtype, device=DEVICE)[:, None]
attend = load("lmdeploy.pytorch.kernels.cuda.pagedattention").flash_attn_with_kvcache
out = attend(q, k, v, cache_seqlens=ints(KEYS), page_table=ints(0)[None], softmax_scale=1.0, window_size=sent)
compare(3.0, out[0, 0, 0])
