"""Where the elements of a KV cache lie, as the kernels take it."""

from typing import NamedTuple

import torch
from attn_contract import Layout


class KVCacheStrides(NamedTuple):
    """Elements from one K or V, block, slot and KV head to the next (from one dim to the next it is 1), and a block's slots."""

    kv: int
    block: int
    slot: int
    head: int
    block_size: int


def kv_cache_strides(kv_cache: torch.Tensor, layout: Layout) -> KVCacheStrides:
    """Read the strides off a cache whose dimensions stand in the layout's order."""
    match layout:
        case Layout.BLOCKS_FIRST_NHD:
            block, kv, slot, head = 0, 1, 2, 3
        case Layout.BLOCKS_FIRST_HND:
            block, kv, head, slot = 0, 1, 2, 3
        case Layout.KV_FIRST_NHD:
            kv, block, slot, head = 0, 1, 2, 3
        case Layout.KV_FIRST_HND:
            kv, block, head, slot = 0, 1, 2, 3
    stride = kv_cache.stride()
    return KVCacheStrides(
        kv=stride[kv], block=stride[block], slot=stride[slot], head=stride[head], block_size=kv_cache.shape[slot]
    )
