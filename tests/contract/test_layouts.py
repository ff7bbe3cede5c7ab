"""Layouts pinned to addresses typed by hand, and the two relations between views of one allocation."""

import itertools
from dataclasses import replace

import pytest
import torch
from attn_contract import ContractError, KVCacheView, Layout, same_elements, same_footprint

BLOCKS_FIRST_NHD, BLOCKS_FIRST_HND, KV_FIRST_NHD, KV_FIRST_HND = Layout

DENSE = {"num_blocks": 3, "block_size": 3, "num_kv_heads": 2, "head_size": 4, "itemsize": 2}
"""A page (K or V of a block) is 24 elements, a block 48, a plane 72."""


def dense(layout: Layout, **sizes: int) -> KVCacheView:
    return KVCacheView.dense(layout, **(DENSE | sizes))


VIEWS = {
    "BLOCKS_FIRST_NHD": dense(BLOCKS_FIRST_NHD),
    "BLOCKS_FIRST_HND": dense(BLOCKS_FIRST_HND),
    "KV_FIRST_NHD": dense(KV_FIRST_NHD),
    "KV_FIRST_HND": dense(KV_FIRST_HND),
    "blocks padded from 48 to 64": replace(dense(BLOCKS_FIRST_NHD), block_stride=64),
    "second of two interleaved layers": replace(dense(BLOCKS_FIRST_HND), block_stride=96, offset=48),
    "planes of 3 layers interleaved, this is the last": replace(dense(KV_FIRST_NHD), block_stride=72, kv_stride=216, offset=48),
    "K and V interleaved per slot": replace(dense(KV_FIRST_NHD), kv_stride=8, slot_stride=16, block_stride=48),
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
}


@pytest.mark.parametrize("name", VIEWS)
def test_addresses(name):
    """By the formula, and by a tensor over an allocation whose elements are their own addresses."""
    view = VIEWS[name]
    tensor = view.tensor(torch.arange(view.end))
    for index, address in zip(INDICES, ADDRESSES[name], strict=True):
        at = dict(zip(("kv", "block", "slot", "head", "dim"), index, strict=True))
        assert view.element(**at) == address, at
        assert tensor[tuple(at[dim] for dim in view.layout.dims)] == address, at
    assert view.end == ADDRESSES[name][-1] + 1


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_read_back_from_its_tensor(name):
    view = VIEWS[name]
    assert KVCacheView.of(view.tensor(torch.zeros(view.end, dtype=torch.float16)), view.layout) == view


def test_one_shape_two_layouts():
    """With two blocks a blocks-first and a K/V-first cache have one shape: a layout cannot be guessed."""
    tensors = [dense(layout, num_blocks=2).tensor(torch.arange(96)) for layout in (BLOCKS_FIRST_NHD, KV_FIRST_NHD)]
    assert tensors[0].shape == tensors[1].shape == (2, 2, 3, 2, 4)
    blocks_first, kv_first = (
        KVCacheView.of(tensor, layout) for tensor, layout in zip(tensors, (BLOCKS_FIRST_NHD, KV_FIRST_NHD), strict=True)
    )
    assert (blocks_first.element(1, 0, 0, 0, 0), kv_first.element(1, 0, 0, 0, 0)) == (24, 48)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(2, 3, 3, 8), "kv, block, slot, head, dim"),
        (torch.zeros(3, 2, 3, 2, 4), "2 (K and V) in dimension 0"),
        (torch.zeros(2, 3, 3, 2, 8)[..., ::2], "must be dense"),
        (torch.zeros(2, 1, 3, 2, 4).expand(2, 3, 3, 2, 4), "do not share memory"),
    ],
)
def test_tensors_that_are_no_view(tensor, expected):
    with pytest.raises(ContractError) as error:
        KVCacheView.of(tensor, KV_FIRST_NHD)
    assert expected in str(error.value)


def test_blocks_first_and_kv_first_differ_in_footprint():
    """vLLM #43945: block 0 of the one lies over blocks 0 and 1 of the other's planes."""
    for a, b in itertools.product((BLOCKS_FIRST_NHD, BLOCKS_FIRST_HND), (KV_FIRST_NHD, KV_FIRST_HND)):
        assert not same_footprint(dense(a), dense(b))
        assert not same_elements(dense(a), dense(b))


def test_the_fix_of_vllm_43945_restores_the_footprint():
    """Cross-attention gets a blocks-first tensor over the decoder's K/V-first allocation, and views it with its strides."""
    decoder = dense(KV_FIRST_NHD)
    blocks_first = torch.zeros(144, dtype=torch.float16).view(3, 2, 3, 2, 4)
    assert not same_footprint(KVCacheView.of(blocks_first, BLOCKS_FIRST_NHD), decoder)
    fixed = KVCacheView.of(blocks_first.as_strided((2, 3, 3, 2, 4), (72, 24, 8, 4, 1)), KV_FIRST_NHD)
    assert same_footprint(fixed, decoder)
    assert same_elements(fixed, decoder)


def test_one_block_is_the_same_in_both_orders():
    a, b = dense(BLOCKS_FIRST_NHD, num_blocks=1), dense(KV_FIRST_NHD, num_blocks=1)
    assert same_footprint(a, b)
    assert same_elements(a, b)


@pytest.mark.parametrize(("nhd", "hnd"), [(BLOCKS_FIRST_NHD, BLOCKS_FIRST_HND), (KV_FIRST_NHD, KV_FIRST_HND)])
def test_nhd_and_hnd_share_the_footprint_but_not_the_elements(nhd, hnd):
    assert same_footprint(dense(nhd), dense(hnd))
    assert not same_elements(dense(nhd), dense(hnd))
    assert same_elements(dense(nhd, num_kv_heads=1), dense(hnd, num_kv_heads=1))


def test_padding_must_agree():
    plain, wide = dense(BLOCKS_FIRST_NHD), replace(dense(BLOCKS_FIRST_NHD), block_stride=64)
    assert not same_footprint(plain, wide)
    assert not same_elements(plain, wide)
    assert same_footprint(wide, replace(dense(BLOCKS_FIRST_HND), block_stride=64))
    assert not same_footprint(wide, replace(wide, offset=16))


def test_footprints_are_bytes():
    """Half as many elements of twice the size cover the same bytes, and share no element."""
    halves, floats = dense(BLOCKS_FIRST_NHD, head_size=8), dense(BLOCKS_FIRST_NHD, head_size=4, itemsize=4)
    assert same_footprint(halves, floats)
    assert not same_elements(halves, floats)
    same_strides = dense(BLOCKS_FIRST_NHD, head_size=8, itemsize=4)
    assert not same_footprint(halves, same_strides)
    assert not same_elements(halves, same_strides)


def test_the_number_of_blocks_must_agree():
    a, b = dense(BLOCKS_FIRST_NHD), dense(BLOCKS_FIRST_NHD, num_blocks=4)
    assert not same_footprint(a, b)
    assert not same_elements(a, b)


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(VIEWS.values(), 2)])
def test_relations_are_their_definitions(a, b):
    """Byte by byte and address by address, in plain Python."""

    def addresses(view: KVCacheView, block: int) -> list[int]:
        return [view.element(kv, block, *rest) for kv in range(2) for rest in itertools.product(range(3), range(2), range(4))]

    def block_bytes(view: KVCacheView, block: int) -> set[int]:
        return {address * view.itemsize + byte for address in addresses(view, block) for byte in range(view.itemsize)}

    assert same_footprint(a, b) == same_footprint(b, a) == all(block_bytes(a, i) == block_bytes(b, i) for i in range(3))
    assert same_elements(a, b) == same_elements(b, a) == all(addresses(a, i) == addresses(b, i) for i in range(3))
