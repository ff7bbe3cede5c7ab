"""FLEX_ATTENTION: a layer whose ranges end at the window (Gemma 4) sees the tokens of an image before its window, too.

An image of 16 tokens that see each other both ways, and a window of 4 tokens, which the layer says is to hold inside of the
image. So each query sees the image ahead of it, itself, and 3 tokens before. The numbers are those of keys that queries 0, 8
and 15 see in the block mask of FlexAttentionImpl.forward.
"""

from types import SimpleNamespace

import torch
from calls import image_metadata, keys_seen
from kernels import DEVICE, compare, load

WINDOW, HEAD_SIZE = 4, 32
flex = load("vllm.v1.attention.backends.flex_attention")
vars(flex).update(flex_attention_compiled=lambda query, *rest, **named: query)  # its mask is asked, and not its output
queries = torch.tensor([0, 8, 15], device=DEVICE)
metadata = image_metadata(flex, queries, blocks=1, window=None)
backend = flex.FlexAttentionImpl(1, HEAD_SIZE, 1.0, 1, None, WINDOW, "auto")
q = torch.zeros(16, 1, HEAD_SIZE, device=DEVICE)
layer = SimpleNamespace(mm_prefix_clamp_sliding_window=True)
backend.forward(layer, q, q, q, torch.zeros(2, 1, 16, 2 * HEAD_SIZE, device=DEVICE), metadata, torch.empty_like(q))
compare([16.0, 11.0, 4.0], keys_seen(metadata.block_mask, queries, 1))
