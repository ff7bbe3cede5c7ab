"""The addresses of an index cache's numbers, which kernels that write index keys share with kernels that read them.

LAYOUT is "plain" (each key is a row of dims, KIND.cache_unit * stride_slot elements apart), "flat" or "tiled". In the latter
two a page is dense: its keys, and after them a float32 scale of each. Keys are rows of dims in "flat"; in "tiled", tiles of 16
keys follow each other, and in a tile 16 dims of each key.
"""

import triton
import triton.language as tl

_TILE = tl.constexpr(16)


@triton.jit
def index_key_offset(page, slot, dim, stride_slot, KIND: tl.constexpr):
    """The element of the cache that holds a dim of the key in a slot of a page.

    Args:
        page: int64, elements before each page. `page`, `slot` and `dim` broadcast.
        slot: int64.
    """
    LAYOUT: tl.constexpr = KIND.layout
    if LAYOUT == "plain":
        offset = page + slot * stride_slot * KIND.cache_unit + dim
    elif LAYOUT == "flat":
        offset = page + slot * KIND.head_size + dim
    else:
        tile = page + slot // _TILE * (_TILE * KIND.head_size)
        in_tile = slot % _TILE * _TILE + dim % _TILE
        offset = tile + dim // _TILE * (_TILE * _TILE) + in_tile  # int32: dims of one key
    return offset


@triton.jit
def index_scale_ptr(index_cache_ptr, page, slot, block_size, HEAD_SIZE: tl.constexpr):
    """Pointers to the scales of keys, after the keys of their pages. Elements are bytes."""
    behind = page + block_size.to(tl.int64) * HEAD_SIZE + slot * 4
    return (index_cache_ptr + behind).to(tl.pointer_type(tl.float32), bitcast=True)
