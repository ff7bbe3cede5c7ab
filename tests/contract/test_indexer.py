"""The index layer: addresses of index caches typed by hand, and what each call refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from attn_contract import Batch, ContractError, Indexer, IndexLayout, IndexScore, ScaleFormat
from attn_contract.validation import check_index_logits, check_select, check_write_index_cache

from tests.support import refusals

FLOAT8 = torch.float8_e4m3fn
PLAIN, FLAT, TILED = IndexLayout
SUM_RELU, MAX = IndexScore
UE8M0 = ScaleFormat.UE8M0


def indexer(**fields: Any) -> Indexer:
    return Indexer(**{"num_heads": 4, "head_size": 32, "top_k": 3, **fields})


def at(layout: IndexLayout, block: int, slot: int, dim: int, *, block_size: int, pad: int = 0) -> int:
    """The element of a cache of three blocks of 32 dims, with padding behind each page."""
    has_dtype = {"cache_dtype": FLOAT8} if layout.has_scales else {}
    made = indexer(layout=layout, **has_dtype)
    page = block_size * made.row_size + pad
    cache = torch.zeros(3 * page, dtype=torch.uint8 if layout.has_scales else torch.bfloat16)
    view = made.view_of(cache.as_strided((3, block_size, made.row_size), (page, made.row_size, 1)))
    return int(view.element(*map(torch.tensor, (block, slot, dim))))


@pytest.mark.parametrize(
    ("layout", "block", "slot", "dim", "block_size", "pad", "expected"),
    [
        # a row has 32 numbers, a page of 4 slots 128
        (PLAIN, 0, 0, 31, 4, 0, 31),
        (PLAIN, 0, 3, 2, 4, 0, 98),
        (PLAIN, 2, 1, 5, 4, 8, 2 * 136 + 37),
        # a page of 4 slots has 4 * 32 bytes of numbers, then 4 * 4 of scales
        (FLAT, 0, 1, 0, 4, 0, 32),
        (FLAT, 0, 3, 31, 4, 0, 127),
        (FLAT, 1, 0, 0, 4, 0, 144),
        (FLAT, 2, 2, 7, 4, 16, 2 * 160 + 71),
        # a page of 32 slots has two rows of tiles, each of two tiles of 256 bytes, and then 128 bytes of scales
        (TILED, 0, 0, 15, 32, 0, 15),
        (TILED, 0, 1, 0, 32, 0, 16),
        (TILED, 0, 0, 16, 32, 0, 256),
        (TILED, 0, 15, 31, 32, 0, 511),
        (TILED, 0, 16, 0, 32, 0, 512),
        (TILED, 0, 17, 18, 32, 0, 512 + 256 + 16 + 2),
        (TILED, 1, 31, 31, 32, 0, 1152 + 1023),
        (TILED, 2, 0, 0, 16, 4, 2 * 580),
    ],
)
def test_an_element_lies_at_its_address(
    layout: IndexLayout, block: int, slot: int, dim: int, block_size: int, pad: int, expected: int
) -> None:
    assert at(layout, block, slot, dim, block_size=block_size, pad=pad) == expected


@pytest.mark.parametrize(
    ("layout", "block", "slot", "block_size", "expected"),
    [(FLAT, 0, 0, 1, 32), (FLAT, 0, 3, 4, 128 + 12), (FLAT, 2, 1, 4, 288 + 132), (TILED, 1, 17, 32, 1152 + 1024 + 68)],
)
def test_a_scale_lies_at_its_address(layout: IndexLayout, block: int, slot: int, block_size: int, expected: int) -> None:
    made = indexer(layout=layout, cache_dtype=FLOAT8)
    view = made.view_of(torch.zeros(3, block_size, 36, dtype=torch.uint8))
    assert int(view.scale(torch.tensor(block), torch.tensor(slot))) == expected


def test_flat_and_tiled_meet_in_a_block_of_one_slot_alone() -> None:
    slots = torch.arange(16)[:, None]
    views = [
        indexer(layout=layout, cache_dtype=FLOAT8).view_of(torch.zeros(3, 16, 36, dtype=torch.uint8))
        for layout in (FLAT, TILED)
    ]
    flat, tiled = (view.element(torch.tensor(0), slots, torch.arange(32)) for view in views)
    assert torch.equal(flat.flatten().sort().values, tiled.flatten().sort().values)
    assert not torch.equal(flat, tiled)


def batch(**fields: Any) -> Batch:
    arguments = {
        "query_start_loc": torch.tensor([0, 2, 3], dtype=torch.int32),
        "seq_lens": torch.tensor([9, 4], dtype=torch.int32),
        "max_query_len": 2,
        "max_seq_len": 9,
        "num_actual_tokens": 3,
        "causal": True,
        "block_table": torch.tensor([[1, 2, 0], [0, -1, 7]], dtype=torch.int32),
    }
    return Batch(**{**arguments, **fields})


CALLS: dict[str, Any] = {
    "indexer": lambda **fields: indexer(**fields),
    "logits": lambda **changed: check_index_logits(
        **{
            "q": torch.zeros(3, 4, 32),
            "weights": torch.zeros(3, 4),
            "index_cache": torch.zeros(3, 4, 32),
            "indexer": indexer(),
            "batch": batch(),
            "out": torch.zeros(1, 3, 13),
            "values": True,
            **changed,
        }
    ),
    "select": lambda **changed: check_select(
        **{
            "logits": torch.zeros(1, 3, 9),
            "indexer": indexer(),
            "batch": batch(),
            "out": torch.zeros(1, 3, 3, dtype=torch.int32),
            "values": True,
            **changed,
        }
    ),
    "write": lambda **changed: check_write_index_cache(
        **{
            "k": torch.zeros(3, 32),
            "index_cache": torch.zeros(3, 4, 32),
            "indexer": indexer(),
            "slot_mapping": torch.tensor([5, -1, 0]),
            "values": True,
            **changed,
        }
    ),
}


@refusals.parametrize(list(refusals.of(__file__, "indexer_refusals.txt")))
def test_a_wrong_call_is_refused(refusal: refusals.Refusal) -> None:
    with pytest.raises(ContractError) as caught:
        CALLS[refusal.call](**refusal.changed({}, globals()))
    refusal.check(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_right_calls_pass(call: str) -> None:
    CALLS[call]()


def test_width_has_a_place_for_the_open_unit() -> None:
    assert indexer(selection_unit=4).selected_width == 3
    assert indexer(selection_unit=4, key_unit=4).selected_width == 4
    assert indexer(selection_unit=4).num_units(9) == 3
    assert dataclasses.replace(indexer(), layout=FLAT, cache_dtype=FLOAT8).row_size == 36
