"""FLEX_ATTENTION: the blocks that a query visits lack those of its bidirectional range ahead of it.

An image of 48 tokens that see each other both ways, in 3 blocks of 16 slots, and a window of as many. FlexAttentionMetadata
makes the block mask and its mask_mod. The numbers are those of keys that queries 0, 16 and 32 see: mask_mod shows them, and the
block mask lists their blocks. A compiled flex_attention visits no other block.
"""

import torch
from calls import image_metadata, keys_seen
from kernels import DEVICE, compare, load

BLOCKS = 3
queries = torch.arange(0, 16 * BLOCKS, 16, device=DEVICE)
metadata = image_metadata(load("vllm.v1.attention.backends.flex_attention"), queries, blocks=BLOCKS, window=16 * BLOCKS)
compare([48.0, 48.0, 48.0], keys_seen(metadata._build_block_mask_direct(), queries, BLOCKS))
