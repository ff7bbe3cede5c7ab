"""Addresses in a KV cache, against literal tables: NB = 5 blocks, BS = 3 slots, HK = 2 heads, D = 4."""

import pytest
import torch
from attn_contract import Layout
from attn_optimized.strides import KVCacheStrides, kv_cache_strides

# layout: shape, strides, and the elements of (kv, block, slot, head) = (1, 0, 0, 0), (0, 4, 0, 0), (1, 3, 2, 1)
TABLE = {
    Layout.BLOCKS_FIRST_NHD: ((5, 2, 3, 2, 4), KVCacheStrides(24, 48, 8, 4, 3), (24, 192, 188)),
    Layout.BLOCKS_FIRST_HND: ((5, 2, 2, 3, 4), KVCacheStrides(24, 48, 4, 12, 3), (24, 192, 188)),
    Layout.KV_FIRST_NHD: ((2, 5, 3, 2, 4), KVCacheStrides(120, 24, 8, 4, 3), (120, 96, 212)),
    Layout.KV_FIRST_HND: ((2, 5, 2, 3, 4), KVCacheStrides(120, 24, 4, 12, 3), (120, 96, 212)),
}


@pytest.mark.parametrize("layout", Layout)
def test_dense(layout):
    shape, expected, elements = TABLE[layout]
    strides = kv_cache_strides(torch.empty(shape), layout)
    assert strides == expected
    places = ((1, 0, 0, 0), (0, 4, 0, 0), (1, 3, 2, 1))
    assert tuple(sum(i * step for i, step in zip(place, strides[:4], strict=True)) for place in places) == elements


def test_padded_blocks_of_an_interleaved_allocation():
    kv_cache = torch.empty(5 * 1000).as_strided((5, 2, 3, 2, 4), (1000, 24, 8, 4, 1))
    assert kv_cache_strides(kv_cache, Layout.BLOCKS_FIRST_NHD) == KVCacheStrides(24, 1000, 8, 4, 3)


def test_equal_shapes_differ_by_layout():
    """With two blocks and two heads, as many slots as heads, the four layouts have one shape."""
    kv_cache = torch.empty(2, 2, 2, 2, 4)
    assert len({kv_cache_strides(kv_cache, layout) for layout in Layout}) == 4
