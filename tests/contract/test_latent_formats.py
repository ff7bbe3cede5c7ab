"""Latent formats: each slot's bytes at addresses typed by hand, and every view that a format cannot have."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from attn_contract import ContractError, KVCacheView, Layout
from attn_contract.latent_format import LatentFormat
from attn_contract.layouts import LATENT_FORMATS

LATENT, SCALED, E8M0, PLANES = Layout.LATENT, Layout.LATENT_SCALED, Layout.LATENT_E8M0, Layout.LATENT_E8M0_PLANES


class Addresses(NamedTuple):
    """Addresses in 3 blocks of 3 slots.

    Args:
        head_size, head_size_v: of the layer.
        shape: of the view, without its blocks.
        indices: (block, slot, byte of the slot); the last of them is the view's last byte if `ends` says so.
        views: strides and offset that differ from the dense view's, and the address of each index.
    """

    head_size: int
    head_size_v: int
    shape: tuple[int, ...]
    indices: list[tuple[int, int, int]]
    views: list[tuple[dict[str, int], list[int]]]


ADDRESSES = {
    LATENT: Addresses(4, 3, (3, 4), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 1, 2), (2, 2, 3)], [
        ({}, [1, 4, 12, 30, 35]),
        ({"block_stride": 20}, [1, 4, 20, 46, 51]),
        ({"block_stride": 18, "slot_stride": 6, "offset": 5}, [6, 11, 23, 49, 56]),
        # the second of two layers, slot by slot
        ({"block_stride": 24, "slot_stride": 8, "offset": 4}, [5, 12, 28, 62, 71]),
    ]),
    # 256 float8, two float32 scales and two bfloat16: 268 bytes. The dims 0 and 255, the first byte of scale 1, the second byte
    # of kept dim 1; dim 128; the first byte of kept dim 0
    SCALED: Addresses(258, 256, (3, 268), [(0, 0, 0), (0, 0, 255), (0, 0, 260), (0, 0, 267), (1, 2, 128), (2, 2, 264)], [
        ({}, [0, 255, 260, 267, 1468, 2408]),
        ({"block_stride": 900}, [0, 255, 260, 267, 1564, 2600]),
        ({"block_stride": 816, "slot_stride": 272, "offset": 8}, [8, 263, 268, 275, 1496, 2448]),
    ]),
    # 64 float8 and two bytes of scales: 66 bytes. The dims 0 and 63 and the scales 0 and 1; dim 32; scale 1
    E8M0: Addresses(64, 64, (3, 66), [(0, 0, 0), (0, 0, 63), (0, 0, 64), (0, 0, 65), (1, 2, 32), (2, 2, 65)], [
        ({}, [0, 63, 64, 65, 362, 593]),
        ({"block_stride": 201}, [0, 63, 64, 65, 365, 599]),
        ({"block_stride": 213, "slot_stride": 71, "offset": 5}, [5, 68, 69, 70, 392, 638]),
    ]),
    # 128 float8 and 64 bfloat16: 256 bytes; behind those of 3 slots 3 bytes each: two scales and padding. A page is 777 bytes,
    # and 1024 with its padding. The row's bytes 0 and 255 and the scales 0 and 1; the first bfloat16; padding; scale 1, padding
    PLANES: Addresses(
        192, 192, (777,),
        [(0, 0, 0), (0, 0, 255), (0, 0, 256), (0, 0, 257), (1, 2, 128), (1, 1, 258), (2, 2, 257), (2, 2, 258)], [
            ({}, [0, 255, 768, 769, 1664, 1797, 2823, 2824]),
            ({"block_stride": 1280}, [0, 255, 768, 769, 1920, 2053, 3335, 3336]),
            ({"offset": 6}, [6, 261, 774, 775, 1670, 1803, 2829, 2830]),
        ],
    ),
}  # fmt: skip


def test_every_format_has_addresses():
    assert set(ADDRESSES) == {LATENT, *LATENT_FORMATS}


def dense(layout: Layout, **sizes: int) -> KVCacheView:
    widths = {"head_size": ADDRESSES[layout].head_size, "head_size_v": ADDRESSES[layout].head_size_v}
    return KVCacheView.dense(layout, **{"num_blocks": 3, "block_size": 3, "num_kv_heads": 1, "itemsize": 1} | widths | sizes)


@pytest.mark.parametrize(
    ("layout", "changes", "addresses"),
    [(layout, *view) for layout, of_layout in ADDRESSES.items() for view in of_layout.views],
    ids=str,
)
def test_elements_lie_at_their_addresses(layout, changes, addresses):
    """K and V have the same addresses: V is the beginning of K's row."""
    view, of_layout = replace(dense(layout), **changes), ADDRESSES[layout]
    for index, address in zip(of_layout.indices, addresses, strict=True):
        block, slot, byte = index
        assert view.element(0, block, slot, 0, byte) == view.element(1, block, slot, 0, byte) == address
    tensor = view.tensor(torch.zeros(view.end, dtype=torch.uint8))
    assert tensor.shape == (3, *of_layout.shape)
    sizes = {"num_kv_heads": 1, "head_size": of_layout.head_size, "head_size_v": of_layout.head_size_v}
    assert KVCacheView.of(tensor, layout, **sizes) == view
    assert view.kv_stride == 0


@pytest.mark.parametrize(
    ("layout", "widths", "block_size", "slot", "page", "elements"),
    [
        # DeepSeek-V3: the last element of all is that of the third 36,864
        (LATENT, (576, 512), 64, 576, 36864, {(2, 63, 575): 110591, (1, 0, 511): 37375}),
        # DeepSeek-V3.2: 512 float8, 4 float32 and 64 bfloat16. The last byte of all, a byte of scale 3, one of the last dim
        (SCALED, (576, 512), 64, 656, 41984, {(2, 63, 655): 125951, (1, 1, 524): 43164, (0, 2, 654): 1966}),
        # DeepSeek-V4.1: 512 float8 and 16 bytes
        (E8M0, (512, 512), 64, 528, 33792, {(2, 63, 527): 101375, (1, 1, 527): 34847, (0, 2, 511): 1567}),
        # DeepSeek-V4: rows of 576 bytes and 8 of scales behind those of all slots; pages are multiples of 576 bytes. The last
        # float8, the first byte of the last bfloat16, the last scale
        (PLANES, (512, 512), 64, 584, 37440, {(2, 63, 447): 111615, (2, 63, 574): 111742, (2, 63, 582): 112254}),
        (PLANES, (512, 512), 256, 584, 149760, {(2, 255, 447): 446847, (2, 255, 582): 449022}),
        (PLANES, (512, 512), 72, 584, 42048, {(2, 71, 582): 126142}),
        (PLANES, (512, 512), 1, 584, 1152, {(2, 0, 447): 2751, (2, 0, 582): 2886}),
    ],
)
def test_the_slots_of_models(layout, widths, block_size, slot, page, elements):
    view = dense(layout, head_size=widths[0], head_size_v=widths[1], block_size=block_size)
    assert (view.row_size, view.block_stride) == (slot, page)
    assert {index: view.element(0, *index[:2], 0, index[2]) for index in elements} == elements


BYTES = torch.arange(4000).byte()
NO_VIEWS = [
    (SCALED, {"head_size_v": None}, (3, 268), "head_size_v: got None, expected a multiple of 128 in layout LATENT_SCALED"),
    (SCALED, {"head_size_v": 192}, (3, 268), "head_size_v: got 192, expected a multiple of 128 in layout LATENT_SCALED"),
    (SCALED, {"head_size_v": 384}, (3, 268), "head_size_v: got 384, expected a multiple of 128 in layout LATENT_SCALED, at m"),
    (SCALED, {"head_size": 257}, (3, 266), "head_size: got 257, expected one whose rows have a multiple of 4 bytes"),
    (SCALED, {"num_kv_heads": 2}, (3, 268), "num_kv_heads: got 2, expected 1 in layout LATENT_SCALED"),
    (SCALED, {}, (3, 258), "kv_cache: got shape (3, 3, 258), expected 268 (row) in dimension 2 of LATENT_SCALED"),
    (SCALED, {}, (3, 1, 268), "kv_cache: got shape (3, 3, 1, 268), expected 3 dimensions: block, slot, row"),
    (E8M0, {"head_size_v": None}, (3, 66), "head_size_v: got None, expected head_size (64) in layout LATENT_E8M0: all of K"),
    (E8M0, {"head_size_v": 32}, (3, 66), "head_size_v: got 32, expected head_size (64) in layout LATENT_E8M0: all of K is V"),
    (E8M0, {"head_size": 48, "head_size_v": 48}, (3, 66), "head_size: got 48, expected a multiple of 32 in layout LATENT_E8M0"),
    (PLANES, {"head_size_v": 128}, (777,), "head_size_v: got 128, expected head_size (192) in layout LATENT_E8M0_PLANES"),
    (PLANES, {"head_size": 160, "head_size_v": 160}, (777,), "head_size: got 160, expected a multiple of 64 in layout L"),
    (PLANES, {"head_size": 64, "head_size_v": 64}, (777,), "head_size: got 64, expected more than 64 in layout LATENT"),
    (PLANES, {}, (776,), "kv_cache: got shape (3, 776), expected pages of slots of 259 elements in LATENT_E8M0_PLANES"),
    (PLANES, {}, (0,), "kv_cache: got shape (3, 0), expected at least one slot in a block"),
    (PLANES, {}, (3, 259), "kv_cache: got shape (3, 3, 259), expected 2 dimensions: block, page"),
]


@pytest.mark.parametrize(("layout", "changes", "shape", "message"), NO_VIEWS, ids=[message for *_, message in NO_VIEWS])
def test_sizes_that_a_format_cannot_have(layout, changes, shape, message):
    size = 3 * torch.Size(shape).numel()
    with pytest.raises(ContractError) as caught:
        KVCacheView.of(BYTES[:size].view(3, *shape), layout, **of(layout) | changes)
    assert str(caught.value).startswith(message)


def of(layout: Layout) -> dict[str, int]:
    return {"num_kv_heads": 1, "head_size": ADDRESSES[layout].head_size, "head_size_v": ADDRESSES[layout].head_size_v}


@pytest.mark.parametrize(
    ("layout", "strides", "offset", "message"),
    [
        (SCALED, (810, 270, 1), 0, "multiples of 4: scales are float32"),
        (SCALED, (805, 268, 1), 0, "multiples of 4: scales are float32"),
        (SCALED, (804, 268, 1), 2, "multiples of 4: scales are float32"),
        (PLANES, (777, 1), 0, "multiples of 2: the last dims are bfloat16"),
        (PLANES, (1024, 1), 1, "multiples of 2: the last dims are bfloat16"),
        (PLANES, (896, 1), 0, "blocks that begin at multiples of 256, a slot's data, in LATENT_E8M0_PLANES"),
    ],
)
def test_elements_wider_than_a_byte_lie_on_their_own_multiples(layout, strides, offset, message):
    tensor = BYTES.as_strided((3, *ADDRESSES[layout].shape), strides, offset)
    with pytest.raises(ContractError) as caught:
        KVCacheView.of(tensor, layout, **of(layout))
    assert str(caught.value) == f"kv_cache: got strides {strides} from {offset}, expected {message}"


@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_elements_wider_than_a_byte_are_refused(layout):
    tensor = torch.zeros(3, *ADDRESSES[layout].shape, dtype=torch.float16)
    with pytest.raises(ContractError, match=rf"^kv_cache: got elements of 2 bytes, expected 1 byte in layout {layout}$"):
        KVCacheView.of(tensor, layout, **of(layout))


def test_one_page_needs_no_padding():
    assert KVCacheView.of(BYTES[:777].view(1, 777), PLANES, **of(PLANES)).block_size == 3


def test_dims_that_are_kept_are_as_many_as_share_a_scale():
    """The kernels select one group of dims."""
    with pytest.raises(ValueError, match=r"^kept_dims: got 32, expected None, 0 or scale_dims \(64\)$"):
        LatentFormat(scale_dims=64, scale_dtype=torch.float32, kept_dims=32)
