"""Layouts pinned to addresses typed by hand, and the two relations between views of one allocation."""

import collections
import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from attn_contract import (
    ContractError,
    KVCacheView,
    Layout,
    PhysicalOrder,
    check_shared_allocation,
    same_elements,
    same_footprint,
)
from attn_contract.layouts import LATENT_FORMATS

from tests.support import refusals
from tests.support.latent_formats import latent_sizes

BLOCKS_FIRST_NHD = Layout.BLOCKS_FIRST_NHD
BLOCKS_FIRST_HND = Layout.BLOCKS_FIRST_HND
KV_FIRST_NHD = Layout.KV_FIRST_NHD
KV_FIRST_HND = Layout.KV_FIRST_HND
X_PACKED = Layout.X_PACKED
SHUFFLED = Layout.SHUFFLED
CONTENT_PACKED = Layout.CONTENT_PACKED
CONTENT_PACKED_SCALED = Layout.CONTENT_PACKED_SCALED
LATENT = Layout.LATENT
OF_TWO_PARTS = [layout for layout in Layout if not layout.has_latent_value]
"""Layouts that store K and V apart."""

SMALL = {"num_blocks": 3, "block_size": 3, "num_kv_heads": 2, "head_size": 4, "itemsize": 2}
"""A page (K or V of a block) is 24 elements, a block 48, a plane 72."""

X_SMALL = {"num_blocks": 3, "block_size": 4, "num_kv_heads": 2, "head_size": 4, "itemsize": 8}
"""For layouts in units of x: x is 2, a page 32 elements, a plane 96."""

SCALED_SMALL = SMALL | {"itemsize": 1}
"""A row is K (4), its scale (4), V (4) and its scale (4): 16 bytes; a block is 96."""

HEADS = {"num_kv_heads": 2, "head_size": 4}


def dense(layout: Layout, **sizes: int) -> KVCacheView:
    small = X_SMALL if layout.is_x_packed else SCALED_SMALL if layout.has_inline_scales else SMALL
    if layout.has_latent_value:
        small = small | {"num_kv_heads": 1}
    return KVCacheView.dense(layout, **(small | sizes))


def content(order: PhysicalOrder, layout: Layout = CONTENT_PACKED) -> KVCacheView:
    """The second of two layers; a row of content (K and V) is 8 elements, 16 with scales."""
    small = SCALED_SMALL if layout.has_inline_scales else SMALL
    return KVCacheView.content_packed(layout, order, num_layers=2, layer=1, **small)


VIEWS = {
    "BLOCKS_FIRST_NHD": dense(BLOCKS_FIRST_NHD),
    "BLOCKS_FIRST_HND": dense(BLOCKS_FIRST_HND),
    "KV_FIRST_NHD": dense(KV_FIRST_NHD),
    "KV_FIRST_HND": dense(KV_FIRST_HND),
    "blocks padded from 48 to 64": replace(dense(BLOCKS_FIRST_NHD), block_stride=64),
    "second of two interleaved layers": replace(dense(BLOCKS_FIRST_HND), block_stride=96, offset=48),
    "planes of 3 layers interleaved, this is the last": replace(dense(KV_FIRST_NHD), block_stride=72, kv_stride=216, offset=48),
    "K and V interleaved per slot": replace(dense(KV_FIRST_NHD), kv_stride=8, slot_stride=16, block_stride=48),
    "CONTENT_PACKED": dense(CONTENT_PACKED),
    **{f"CONTENT_PACKED {order}": content(order) for order in PhysicalOrder},
    "CONTENT_PACKED_SCALED": dense(CONTENT_PACKED_SCALED),
    **{f"CONTENT_PACKED_SCALED {order}": content(order, CONTENT_PACKED_SCALED) for order in PhysicalOrder},
}

INDICES = [
    # kv, block, slot, head, dim
    (0, 0, 0, 0, 1),
    (0, 0, 0, 1, 0),
    (0, 0, 1, 0, 0),
    (0, 1, 0, 0, 0),
    (1, 0, 0, 0, 0),
    (0, 0, 2, 1, 3),
    (0, 2, 1, 0, 2),
    (1, 2, 2, 1, 3),
]
"""One step along each dimension, the last element of the first page, one in the middle, and the last of all."""

ADDRESSES = {
    "BLOCKS_FIRST_NHD": [1, 4, 8, 48, 24, 23, 106, 143],
    "BLOCKS_FIRST_HND": [1, 12, 4, 48, 24, 23, 102, 143],
    "KV_FIRST_NHD": [1, 4, 8, 24, 72, 23, 58, 143],
    "KV_FIRST_HND": [1, 12, 4, 24, 72, 23, 54, 143],
    "blocks padded from 48 to 64": [1, 4, 8, 64, 24, 23, 138, 175],
    "second of two interleaved layers": [49, 60, 52, 144, 72, 71, 246, 287],
    "planes of 3 layers interleaved, this is the last": [49, 52, 56, 120, 264, 71, 202, 431],
    "K and V interleaved per slot": [1, 4, 16, 48, 8, 39, 114, 143],
    # one layer of [B, H, N, C]: H 24, N 8, C 1
    "CONTENT_PACKED": [1, 24, 8, 48, 4, 43, 106, 143],
    # the second of two layers, 144 elements each
    "CONTENT_PACKED LBHNC": [145, 168, 152, 192, 148, 187, 250, 287],  # L 144, B 48, H 24, N 8
    "CONTENT_PACKED LBNHC": [145, 152, 160, 192, 148, 187, 258, 287],  # L 144, B 48, N 16, H 8
    "CONTENT_PACKED LHBNC": [145, 216, 152, 168, 148, 235, 202, 287],  # L 144, H 72, B 24, N 8
    "CONTENT_PACKED BLHNC": [49, 72, 56, 144, 52, 91, 250, 287],  # B 96, L 48, H 24, N 8
    "CONTENT_PACKED BLNHC": [49, 56, 64, 144, 52, 91, 258, 287],  # B 96, L 48, N 16, H 8
    "CONTENT_PACKED BHLNC": [25, 72, 32, 120, 28, 91, 226, 287],  # B 96, H 48, L 24, N 8
    # rows of 16 bytes, V 8 bytes after K
    "CONTENT_PACKED_SCALED": [1, 48, 16, 96, 8, 83, 210, 283],
    "CONTENT_PACKED_SCALED LBHNC": [289, 336, 304, 384, 296, 371, 498, 571],  # L 288, B 96, H 48, N 16
    "CONTENT_PACKED_SCALED LBNHC": [289, 304, 320, 384, 296, 371, 514, 571],  # L 288, B 96, N 32, H 16
    "CONTENT_PACKED_SCALED LHBNC": [289, 432, 304, 336, 296, 467, 402, 571],  # L 288, H 144, B 48, N 16
    "CONTENT_PACKED_SCALED BLHNC": [97, 144, 112, 288, 104, 179, 498, 571],  # B 192, L 96, H 48, N 16
    "CONTENT_PACKED_SCALED BLNHC": [97, 112, 128, 288, 104, 179, 514, 571],  # B 192, L 96, N 32, H 16
    "CONTENT_PACKED_SCALED BHLNC": [49, 144, 64, 240, 56, 179, 450, 571],  # B 192, H 96, L 48, N 16
}


@pytest.mark.parametrize("name", VIEWS)
def test_elements_lie_at_their_addresses(name):
    """The address of an element, by the formula and by a tensor whose elements are their own addresses."""
    view = VIEWS[name]
    tensor = view.tensor(torch.arange(view.end))
    for index, address in zip(INDICES, ADDRESSES[name], strict=True):
        at = dict(zip(("kv", "block", "slot", "head", "dim"), index, strict=True))
        assert view.element(**at) == address, at
        at["content"] = at["kv"] * (8 if view.layout.has_inline_scales else 4) + at["dim"]
        assert tensor[tuple(at[dim] for dim in view.layout.dims)] == address, at
    scale = 4 if view.layout.has_inline_scales else 0
    assert view.end == ADDRESSES[name][-1] + 1 + scale


X_INDICES = [
    # kv, block, slot, head, dim
    (0, 0, 0, 0, 1),
    (0, 0, 0, 0, 2),
    (0, 0, 1, 0, 0),
    (0, 0, 0, 1, 0),
    (0, 1, 0, 0, 0),
    (0, 2, 3, 1, 3),
    (1, 0, 0, 0, 0),
    (1, 0, 1, 0, 0),
    (1, 0, 2, 0, 0),
    (1, 0, 0, 0, 1),
    (1, 0, 0, 1, 0),
    (1, 1, 0, 0, 0),
    (1, 2, 1, 1, 2),
    (1, 2, 3, 1, 3),
]
"""Steps inside a unit of x = 2 and from it to the next, along each dimension; in the middle, and the last of each plane."""

X_VIEWS = {
    "X_PACKED": dense(X_PACKED),
    "SHUFFLED": dense(SHUFFLED),
    "X_PACKED, planes of two layers interleaved by block, the second": replace(
        dense(X_PACKED), block_stride=64, kv_stride=192, offset=32
    ),
    "SHUFFLED, K and V of a block together, padded": replace(dense(SHUFFLED), kv_stride=32, block_stride=80),
}

X_ADDRESSES = {
    # K: head 16, pair of dims 8, slot 2, dim of the pair 1. V: head 16, dim 4, slot 1
    "X_PACKED": [1, 8, 2, 16, 32, 95, 96, 97, 98, 100, 112, 128, 185, 191],
    # V: head 16, pair of slots 8, dim 2, slot of the pair 1
    "SHUFFLED": [1, 8, 2, 16, 32, 95, 96, 97, 104, 98, 112, 128, 181, 191],
    "X_PACKED, planes of two layers interleaved by block, the second": [
        33, 40, 34, 48, 96, 191, 224, 225, 226, 228, 240, 288, 377, 383
    ],
    "SHUFFLED, K and V of a block together, padded": [1, 8, 2, 16, 80, 191, 32, 33, 40, 34, 48, 112, 213, 223],
}  # fmt: skip


@pytest.mark.parametrize("name", X_VIEWS)
def test_elements_in_units_of_x_lie_at_their_addresses(name):
    view = X_VIEWS[name]
    for index, address in zip(X_INDICES, X_ADDRESSES[name], strict=True):
        assert view.element(*index) == address, index
    assert view.end == X_ADDRESSES[name][-1] + 1


@pytest.mark.parametrize(
    ("layout", "shape_of_v", "order"), [(X_PACKED, (3, 2, 4, 4), "bhdo"), (SHUFFLED, (3, 2, 2, 4, 2), "bhodx")]
)
def test_x_packed_pages_are_the_dense_tensors_that_kernels_take(layout, shape_of_v, order):
    """K as [NB, HK, D/x, BS, x], V as [NB, HK, D, BS] or [NB, HK, BS/x, D, x]: element by element."""
    view = dense(layout)
    planes = view.tensor(torch.arange(view.end))
    k, v = planes[0].view(3, 2, 2, 4, 2), planes[1].view(shape_of_v)
    for block, slot, head, dim in itertools.product(range(3), range(4), range(2), range(4)):
        assert k[block, head, dim // 2, slot, dim % 2] == view.element(0, block, slot, head, dim)
        at = {"bhdo": (block, head, dim, slot), "bhodx": (block, head, slot // 2, dim, slot % 2)}[order]
        assert v[at] == view.element(1, block, slot, head, dim)


def test_x_is_16_bytes_of_elements():
    """Fewer elements of more bytes: the unit of an fp8 cache is 16 dims, of a bf16 one 8, of an fp32 one 4."""
    for itemsize, x in ((1, 16), (2, 8), (4, 4)):
        view = KVCacheView.dense(X_PACKED, num_blocks=1, block_size=16, num_kv_heads=1, head_size=32, itemsize=itemsize)
        assert view.x == x
        assert view.element(0, 0, 1, 0, 0) == x
        assert view.element(0, 0, 0, 0, x) == 16 * x


def test_inline_scales_follow_their_row():
    """Dims D to D + 3 are the bytes of the scale: K at 0 to 3, its scale at 4, V at 8, its scale at 12."""
    view = dense(CONTENT_PACKED_SCALED)
    assert [view.element(kv, 0, 0, 0, dim) for kv in range(2) for dim in range(4, 8)] == [4, 5, 6, 7, 12, 13, 14, 15]
    assert view.row_size == 8


TWO_WIDTHS = {
    # rows of 6: K of 4 and V of 2, or K of 2 and V of 4. One layer of [B, H, N, C]: B 36, H 18, N 6
    (4, 2): ([1, 6, 18, 36, 4, 81, 107], KVCacheView.dense(CONTENT_PACKED, **SMALL | {"head_size": 4, "head_size_v": 2})),
    (2, 4): ([1, 6, 18, 36, 2, 79, 107], KVCacheView.dense(CONTENT_PACKED, **SMALL | {"head_size": 2, "head_size_v": 4})),
    # the second of two layers: B 72, L 36, N 12, H 6
    (4, 2, "BLNHC"): (
        [37, 48, 42, 108, 40, 195, 215],
        KVCacheView.content_packed(
            CONTENT_PACKED, PhysicalOrder.BLNHC, num_layers=2, layer=1, **SMALL | {"head_size": 4, "head_size_v": 2}
        ),
    ),
}


@pytest.mark.parametrize("widths", TWO_WIDTHS, ids=str)
def test_rows_of_two_widths(widths):
    """One step along each dimension, the last dim of a K, and the last element of all."""
    addresses, view = TWO_WIDTHS[widths]
    k_size, v_size = widths[:2]
    at = [(0, 0, 0, 0, 1), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 1, 0, 0, 0), (1, 0, 0, 0, 0), (0, 2, 1, 0, k_size - 1)]
    assert [view.element(*index) for index in (*at, (1, 2, 2, 1, v_size - 1))] == addresses
    assert (view.row_sizes, view.end) == ((k_size, v_size), addresses[-1] + 1)
    tensor = view.tensor(torch.zeros(view.end, dtype=torch.float16))
    assert tensor.shape == (3, 2, 3, 6)
    sizes = {"num_kv_heads": 2, "head_size": k_size, "head_size_v": v_size}
    assert KVCacheView.of(tensor, CONTENT_PACKED, **sizes) == view
    k, v = view.first_block_elements()
    assert (k.shape, v.shape) == ((3, 2, k_size), (3, 2, v_size))
    assert len({*k.flatten().tolist(), *v.flatten().tolist()}) == 36


def test_rows_of_mimo_lie_at_their_addresses():
    """192 of K and 128 of V in blocks of 16 slots, 4 KV heads."""
    view = KVCacheView.dense(
        CONTENT_PACKED, num_blocks=2, block_size=16, num_kv_heads=4, head_size=192, head_size_v=128, itemsize=2
    )
    assert [view.element(1, 0, 0, 0, 0), view.element(0, 0, 1, 0, 0), view.element(0, 0, 0, 1, 0)] == [192, 320, 5120]
    assert [view.element(0, 1, 0, 0, 191), view.element(1, 1, 15, 3, 127)] == [20671, 40959]


@pytest.mark.parametrize("layout", [layout for layout in OF_TWO_PARTS if layout is not CONTENT_PACKED])
def test_layouts_of_one_width_refuse_another_one(layout):
    with pytest.raises(ContractError) as caught:
        dense(layout, head_size_v=2)
    assert str(caught.value) == f"head_size_v: got 2, expected None: layout {layout} holds K and V of one width"


@pytest.mark.parametrize("name", VIEWS | X_VIEWS)
def test_a_view_is_read_back_from_its_tensor(name):
    view = (VIEWS | X_VIEWS)[name]
    dtype = {1: torch.int8, 2: torch.float16, 8: torch.float64}[view.itemsize]
    assert KVCacheView.of(view.tensor(torch.zeros(view.end, dtype=dtype)), view.layout, **HEADS) == view


@pytest.mark.parametrize("layout", Layout)
def test_dimensions_of_one_element_may_have_any_stride(layout):
    """They are not stepped along, and torch sets their strides as it likes."""
    sizes = latent_sizes(layout) if layout in LATENT_FORMATS else {"head_size": 16}
    widths = {"num_kv_heads": 1, **sizes}
    view = KVCacheView.dense(layout, num_blocks=1, block_size=16, itemsize=1, **widths)
    tensor = view.tensor(torch.arange(view.end).to(torch.int8))
    strides = [7 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    odd = KVCacheView.of(tensor.as_strided(tensor.shape, strides), layout, **widths)
    assert same_elements(odd, view)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("layout", OF_TWO_PARTS)
def test_every_element_has_an_address_of_its_own(layout, num_kv_heads):
    """Within a dense allocation, which they fill."""
    view = dense(layout, num_kv_heads=num_kv_heads)
    sizes = (2, view.num_blocks, view.block_size, view.num_kv_heads, view.row_size)
    addresses = [view.element(*index) for index in itertools.product(*map(range, sizes))]
    assert sorted(addresses) == list(range(math.prod(sizes)))
    assert view.end == math.prod(sizes)


def halves(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int8)


def rows_of_bytes(strides: tuple[int, ...], offset: int = 0) -> torch.Tensor:
    return bytes_of(400).as_strided((3, 2, 3, 16), strides, offset)


NO_VIEWS = [one for one in refusals.of(__file__) if one.call.startswith("view")]


@refusals.parametrize(NO_VIEWS)
def test_tensors_that_are_no_view(refusal):
    layout = Layout.__members__.get(refusal.call.removeprefix("view "))
    arguments = refusal.changed({"layout": layout, **HEADS}, globals())
    with pytest.raises(ContractError) as error:
        KVCacheView.of(arguments.pop("tensor"), **arguments)
    refusal.check(error.value)


@refusals.parametrize([one for one in refusals.of(__file__) if one.call == "content_packed"])
def test_a_wrong_content_packed_view_is_refused(refusal):
    right = {"layout": CONTENT_PACKED, "order": PhysicalOrder.LBHNC, "num_layers": 2, "layer": 1, **SMALL}
    with pytest.raises(ContractError) as error:
        KVCacheView.content_packed(**refusal.changed(right, globals()))
    refusal.check(error.value)


@pytest.mark.parametrize("name", ["num_kv_heads", "head_size"])
def test_sizes_of_a_view_are_positive(name):
    for make in (
        lambda **sizes: KVCacheView.of(halves(2, 3, 64), X_PACKED, **({"num_kv_heads": 2, "head_size": 8} | sizes)),
        lambda **sizes: dense(X_PACKED, **sizes),
    ):
        with pytest.raises(ContractError, match=f"^{name}: got 0, expected an int, at least 1"):
            make(**{name: 0})


def test_the_number_of_blocks_must_agree():
    a, b = dense(BLOCKS_FIRST_NHD), dense(BLOCKS_FIRST_NHD, num_blocks=4)
    assert not same_footprint(a, b)
    assert not same_elements(a, b)


def pages(layout: Layout, **changes: int) -> KVCacheView:
    """One that all layouts allow for: pages of 16 slots, 1 head and 16 dims of a byte, so that x is 16, too."""
    sizes = {"num_blocks": 3, "block_size": 16, "num_kv_heads": 1, "head_size": 16, "itemsize": 1}
    if layout in LATENT_FORMATS:
        sizes |= latent_sizes(layout)
    return KVCacheView.dense(layout, **(sizes | changes))


NAMED = {"blocks": dense(BLOCKS_FIRST_NHD), "planes": dense(KV_FIRST_NHD), "HND planes": dense(KV_FIRST_HND)}
PLANES = {name: NAMED[name] for name in ("planes", "HND planes")}


@pytest.mark.parametrize(
    ("names", "shared_contents"),
    [([], []), (["blocks"], []), (["planes", "HND planes"], []), (["planes", "HND planes"], [("planes", "planes")])],
)
def test_allocations_that_layers_may_share(names, shared_contents):
    check_shared_allocation({name: NAMED[name] for name in names}, shared_contents)


@refusals.parametrize([one for one in refusals.of(__file__) if one.call == "shared allocation"])
def test_allocations_that_layers_may_not_share(refusal):
    with pytest.raises(ContractError) as error:
        check_shared_allocation(**refusal.changed({"views": {"planes": NAMED["planes"]}, "shared_contents": []}, globals()))
    refusal.check(error.value)


OF_LATENT = [dense(LATENT), *(dense(layout, **latent_sizes(layout)) for layout in LATENT_FORMATS)]
OF_LATENT += [replace(view, block_stride=2 * view.block_stride) for view in OF_LATENT]
SMALLEST = {
    **{f"dense {layout}": pages(layout, num_blocks=2) for layout in Layout},
    "padded": replace(pages(BLOCKS_FIRST_NHD, num_blocks=2), block_stride=560),
    "of 2 bytes": pages(KV_FIRST_NHD, num_blocks=2, block_size=8, itemsize=2),
    "x of 2 bytes": pages(X_PACKED, num_blocks=2, block_size=8, itemsize=2),
    "of half the slots, as large as latent ones": pages(BLOCKS_FIRST_NHD, num_blocks=2, block_size=8),
}
TWO = [view for _, view in TWO_WIDTHS.values()]
ONE_WIDTH = [KVCacheView.dense(CONTENT_PACKED, **SMALL | sizes) for sizes in ({"head_size": 3}, {"head_size_v": 4})]
WITH_A_GAP = replace(dense(KV_FIRST_NHD), block_stride=128, kv_stride=40)
AS_FAR = [WITH_A_GAP, replace(dense(BLOCKS_FIRST_NHD, block_size=4), block_stride=128)]
"""Blocks that begin and end at the same bytes."""
OF_SMALL_SIZES = [*AS_FAR, *VIEWS.values(), *X_VIEWS.values(), *OF_LATENT, *TWO, *ONE_WIDTH]
PAIRS = [
    *itertools.combinations_with_replacement(OF_SMALL_SIZES, 2),
    *itertools.combinations_with_replacement(SMALLEST.values(), 2),
]


def test_every_layout_has_addresses():
    """Addresses of latent layouts are in test_latent_formats.py."""
    assert {view.layout for view in (VIEWS | X_VIEWS).values()} == {*Layout} - {LATENT, *LATENT_FORMATS}


def test_relations_are_their_definitions():
    """Every pair of views is compared byte by byte and address by address, in plain Python."""

    @functools.cache
    def addresses(view: KVCacheView, block: int) -> list[int]:
        sizes = [(view.block_size, view.num_kv_heads, row_size) for row_size in view.row_sizes]
        return [view.element(kv, block, *rest) for kv in range(2) for rest in itertools.product(*map(range, sizes[kv]))]

    @functools.cache
    def block_bytes(view: KVCacheView, block: int) -> frozenset[int]:
        return frozenset(address * view.itemsize + byte for address in addresses(view, block) for byte in range(view.itemsize))

    def sizes(view: KVCacheView) -> tuple[object, ...]:
        return view.block_size, view.num_kv_heads, view.row_sizes, view.itemsize

    found = collections.Counter()
    for a, b in PAIRS:
        assert a.num_blocks == b.num_blocks
        blocks = range(a.num_blocks)
        footprint = all(block_bytes(a, i) == block_bytes(b, i) for i in blocks)
        elements = sizes(a) == sizes(b) and all(addresses(a, i) == addresses(b, i) for i in blocks)
        assert same_footprint(a, b) == same_footprint(b, a) == footprint, (a, b)
        assert same_elements(a, b) == same_elements(b, a) == elements, (a, b)
        found[footprint, elements] += a != b
    assert set(found) == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize("layout", [layout for layout in Layout if not layout.has_inline_scales])
def test_a_cache_without_blocks_is_a_view(layout):
    """Nothing overlaps in it, although its planes are no element apart."""
    sizes = {"num_kv_heads": 1 if layout is LATENT else 2, "head_size": 16}
    view = KVCacheView.dense(layout, num_blocks=0, block_size=16, itemsize=4, **sizes)
    assert KVCacheView.of(view.tensor(torch.empty(0)), layout, **sizes).num_blocks == 0
