"""Strides of KV caches and their scales, against literal tables: NB = 5 blocks, BS = 8 slots, HK = 2 heads, D = 4."""

from dataclasses import replace

import pytest
import torch
from attn_contract import Layer, Layout
from attn_optimized.strides import KVCacheStrides, LatentRow, kv_cache_strides, token_scales

# layout: shape, and the strides of a dense cache; x is 4 in float32
TABLE = {
    Layout.BLOCKS_FIRST_NHD: ((5, 2, 8, 2, 4), KVCacheStrides(64, 128, 8, 4, 5, 8, "rows")),
    Layout.BLOCKS_FIRST_HND: ((5, 2, 2, 8, 4), KVCacheStrides(64, 128, 4, 32, 5, 8, "rows")),
    Layout.KV_FIRST_NHD: ((2, 5, 8, 2, 4), KVCacheStrides(320, 64, 8, 4, 5, 8, "rows")),
    Layout.KV_FIRST_HND: ((2, 5, 2, 8, 4), KVCacheStrides(320, 64, 4, 32, 5, 8, "rows")),
    Layout.X_PACKED: ((2, 5, 64), KVCacheStrides(320, 64, 0, 32, 5, 8, "x_packed")),
    Layout.SHUFFLED: ((2, 5, 64), KVCacheStrides(320, 64, 0, 32, 5, 8, "shuffled")),
    Layout.CONTENT_PACKED: ((5, 2, 8, 8), KVCacheStrides(4, 128, 8, 64, 5, 8, "rows")),
    Layout.CONTENT_PACKED_SCALED: ((5, 2, 8, 16), KVCacheStrides(8, 256, 16, 128, 5, 8, "rows")),
}


def layer_of(layout: Layout, **fields) -> Layer:
    dtype = torch.int8 if layout.has_inline_scales or "k_scale_cache" in fields else None
    return Layer(num_heads=2, num_kv_heads=2, head_size=4, scale=1.0, layout=layout, kv_cache_dtype=dtype, **fields)


@pytest.mark.parametrize("layout", TABLE)
def test_dense(layout):
    shape, expected = TABLE[layout]
    assert kv_cache_strides(torch.empty(shape), layer_of(layout)) == expected


def test_padded_blocks_of_an_interleaved_allocation():
    kv_cache = torch.empty(5 * 1000).as_strided((5, 2, 8, 2, 4), (1000, 64, 8, 4, 1))
    expected = KVCacheStrides(64, 1000, 8, 4, 5, 8, "rows")
    assert kv_cache_strides(kv_cache, layer_of(Layout.BLOCKS_FIRST_NHD)) == expected
    kv_cache = torch.empty(2 * 2000).as_strided((2, 5, 64), (2000, 192, 1))
    expected = KVCacheStrides(2000, 192, 0, 32, 5, 8, "shuffled")
    assert kv_cache_strides(kv_cache, layer_of(Layout.SHUFFLED)) == expected


def test_content_packed_in_another_physical_order():
    """Layer 1 of two in order BLNHC: a block holds both layers, each of them slots before heads."""
    kv_cache = torch.empty(5, 2, 8, 2, 8)[:, 1].transpose(1, 2)
    assert kv_cache_strides(kv_cache, layer_of(Layout.CONTENT_PACKED)) == KVCacheStrides(4, 256, 16, 8, 5, 8, "rows")


@pytest.mark.parametrize("value_size", [2, 4, 7])
def test_v_begins_behind_k_however_wide_it_is(value_size):
    layer = replace(layer_of(Layout.CONTENT_PACKED), head_size_v=value_size)
    row = 4 + value_size
    expected = KVCacheStrides(4, 16 * row, row, 8 * row, 5, 8, "rows")
    assert kv_cache_strides(torch.empty(5, 2, 8, row), layer) == expected


def test_equal_shapes_differ_by_layout():
    """With two blocks and two heads, as many slots as heads, these four layouts have one shape."""
    kv_cache = torch.empty(2, 2, 2, 2, 4)
    layouts = ("BLOCKS_FIRST_NHD", "BLOCKS_FIRST_HND", "KV_FIRST_NHD", "KV_FIRST_HND")
    assert len({kv_cache_strides(kv_cache, layer_of(Layout(layout))) for layout in layouts}) == 4


def test_inline_scales_lie_behind_their_rows():
    """[K | k_scale | V | v_scale] of 4 + 4 + 4 + 4 bytes: the scales are float32 numbers 1 and 3 of the row's four."""
    raw = torch.arange(5 * 2 * 8 * 4).float()
    kv_cache = raw.view(torch.int8).view(5, 2, 8, 16)
    scales = token_scales(kv_cache, layer_of(Layout.CONTENT_PACKED_SCALED))
    assert scales is not None
    # block 3, slot 6, head 1
    assert [float(scale[3, 6, 1]) for scale in scales] == [((3 * 2 + 1) * 8 + 6) * 4 + 1, ((3 * 2 + 1) * 8 + 6) * 4 + 3]
    assert [tuple(scale.shape) for scale in scales] == [(5, 8, 2)] * 2
    scales[1][3, 6, 1] = -1.0
    assert raw[((3 * 2 + 1) * 8 + 6) * 4 + 3] == -1


def test_separate_scales_are_the_layers():
    k_scale_cache, v_scale_cache = torch.ones(2, 5, 8, 2)
    layer = layer_of(Layout.KV_FIRST_NHD, k_scale_cache=k_scale_cache, v_scale_cache=v_scale_cache)
    scales = token_scales(torch.empty(2, 5, 8, 2, 4, dtype=torch.int8), layer)
    assert scales is not None
    assert scales[0] is k_scale_cache
    assert scales[1] is v_scale_cache


def test_no_scales_per_token():
    assert token_scales(torch.empty(2, 5, 8, 2, 4), layer_of(Layout.KV_FIRST_NHD)) is None


# layout: head_size, head_size_v, block_size and the stride of blocks; from one slot to the next; and of the scales and of the
# kept dims, each in its own elements, the strides, the shape of a block and the first element
PARTS = {
    # 4 slots of 128 float8, a float32 and 2 bfloat16
    Layout.LATENT_SCALED: [
        ((130, 128, 4, 544), 136, ((136, 34, 1), (4, 1), 32), ((272, 68, 1), (4, 2), 66)),
    ],
    # 4 slots of 64 float8 and 2 bytes
    Layout.LATENT_E8M0: [((64, 64, 4, 264), 66, ((264, 66, 1), (4, 2), 64), None)],
    Layout.LATENT_E8M0_PLANES: [
        # pages of 4 slots of 192 bytes and of 2 scales; the bfloat16 of slot 0 are bytes 64 to 191
        ((128, 128, 4, 960), 192, ((960, 2, 1), (4, 2), 768), ((480, 96, 1), (4, 64), 32)),
        # DeepSeek-V4: 64 slots of 576 bytes and of 8 scales, 37376 bytes rounded up to 65 * 576
        ((512, 512, 64, 37440), 576, ((37440, 8, 1), (64, 8), 36864), ((18720, 288, 1), (64, 64), 224)),
    ],
}


def test_every_layout_is_in_a_table():
    assert {Layout.LATENT, *TABLE, *PARTS} == set(Layout)


@pytest.mark.parametrize(("layout", "parts"), [(layout, parts) for layout, of_layout in PARTS.items() for parts in of_layout])
def test_slots_of_several_types(layout, parts):
    (head_size, head_size_v, block_size, block), slot, *expected = parts
    layer = Layer(
        num_heads=2, num_kv_heads=1, head_size=head_size, head_size_v=head_size_v, scale=1.0,
        layout=layout, kv_cache_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    row = layout.row_size(head_size, head_size_v)
    pages = torch.empty(5, block, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, : block_size * row]
    kv_cache = pages if layout.has_dense_pages else pages.unflatten(1, (block_size, row))
    assert kv_cache_strides(kv_cache, layer) == KVCacheStrides(0, block, slot, 0, 5, block_size, "latent_scaled")
    of_layer = LatentRow.of(layer)
    assert of_layer is not None
    found = of_layer.parts(kv_cache)
    assert [_place(part) for part in found] == expected


def _place(part: torch.Tensor | None) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    return None if part is None else (part.stride(), tuple(part.shape[1:]), int(part.storage_offset()))
