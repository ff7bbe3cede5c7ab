"""The selections of drawn queries, and their form for kernels that know no units."""

import random

import pytest
import torch
from attn_contract import Layout
from attn_fuzz.cases import earlier
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.cases.tensors import build
from attn_fuzz.targets.packages.latent_rows import ragged, selected_slots, selected_tokens

UNIT, BLOCK = 4, 16
REQUESTS = (Request(3, 37, (5, 0, 2), causal=True), Request(2, 9, (3,), causal=True))
POSITIONS = (34, 35, 36, 7, 8)


def case(kind: str, seed: int, **fields: object) -> Case:
    return Case(
        target="triton",
        dtype="float32",
        num_kv_heads=2,
        group_size=1,
        head_size=16,
        scale=1.0,
        selection_unit=UNIT,
        selected=kind,
        requests=REQUESTS,
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=BLOCK, num_blocks=6),
        values=Values("random", seed),
        **fields,
    )


def rows_of(kind: str, seed: int, **fields: object) -> torch.Tensor:
    return build(case(kind, seed, **fields)).batch.selected


def visible_units(position: int) -> int:
    return -(-(position + 1) // UNIT)


def check_selected(rows: torch.Tensor, positions: tuple[int, ...]) -> None:
    assert len(rows) == 2
    for of_head in rows:
        for row, position in zip(of_head, positions, strict=True):
            units = min(len(row), visible_units(position))
            assert (row[units:] < 0).all()
            assert len({unit for unit in row[:units].tolist() if 0 <= unit < visible_units(position)}) == units


@pytest.mark.parametrize("seed", range(8))
def test_an_indexer_picks_as_many_units_as_a_row_has_entries_or_all_that_are_seen(seed):
    step = build(case("top", seed, selected_per_head=True))
    check_selected(step.batch.selected, POSITIONS)
    with earlier.changed(step, "contents"):
        assert step.batch.seq_lens.tolist() == [18, 4]
        check_selected(step.batch.selected, (15, 16, 17, 2, 3))


def test_rows_select_nothing_if_they_may_alone():
    for kind in ("some", "top", "holes", "all", "ahead"):
        assert all((rows_of(kind, seed) >= 0).any(-1).all() for seed in range(12)), kind
        assert not all((rows_of(kind, seed, empty_selections=True) >= 0).any(-1).all() for seed in range(12)), kind


def test_holes_stand_anywhere_and_fill_whole_tiles():
    rows = [row for seed in range(20) for row in rows_of("holes", seed)[0]]
    first = [int((row >= 0).nonzero()[0]) for row in rows]
    assert min(first) == 0
    assert max(first) >= 8
    assert any((row < -1).any() for row in rows)


def test_adapters_name_the_tokens_and_slots_that_a_row_selects_and_sees():
    step = build(case("ahead", 1))
    layer, batch = step.layer, step.batch
    tokens, slots = selected_tokens(layer, batch), selected_slots(layer, batch, BLOCK)
    assert tokens.shape == slots.shape == (1, len(POSITIONS), UNIT * batch.selected.shape[2])
    for row, position in enumerate(POSITIONS):
        units = [unit for unit in batch.selected[0, row].tolist() if unit >= 0]
        expected = [unit * UNIT + i for unit in units for i in range(UNIT) if unit * UNIT + i <= position]
        assert [token for token in tokens[0, row].tolist() if token >= 0] == expected
        blocks = REQUESTS[row >= 3].blocks
        assert [slot for slot in slots[0, row].tolist() if slot >= 0] == [
            blocks[token // BLOCK] * BLOCK + token % BLOCK for token in expected
        ]


@pytest.mark.parametrize("least", [0, 1])
def test_ragged_rows_end_with_their_last_slot_or_are_whole(least):
    slots = torch.tensor([[7, -1, 3, -1], [-1, -1, -1, -1]], dtype=torch.int32)
    made = [ragged(slots, random.Random(seed), least=least) for seed in range(8)]
    cut = [7, -1, 3] + [-1] * least
    assert {tuple(flat.tolist()) for flat, _ in made} == {tuple(cut), tuple(slots.flatten().tolist())}
    assert {tuple(starts.tolist()) for _, starts in made} == {(0, 3, 3 + least), (0, 4, 8)}
    assert all(starts.dtype == torch.int32 for _, starts in made)
