"""The index layer of the reference: against loops over integers, and against bytes and sets that are typed by hand."""

import itertools
import random
import struct
from typing import Any

import pytest
import torch
from attn_contract import Batch, ContractError, Indexer, IndexLayout, IndexScore, ScaleFormat
from attn_reference import index_logits, select, write_index_cache

PLAIN, FLAT, TILED = IndexLayout
SUM_RELU, MAX = IndexScore
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def indexer(**fields: Any) -> Indexer:
    return Indexer(**{"num_heads": 2, "head_size": 2, "top_k": 2, **fields})


def step(lens: list[tuple[int, int]], blocks: list[list[int]]) -> Batch:
    """A step of requests (query_len, seq_len) whose rows of the block table are padded with blocks that do not exist."""
    width = max(map(len, blocks)) + 1
    starts = list(itertools.accumulate((query_len for query_len, _ in lens), initial=0))
    return Batch(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32),
        max_query_len=max(query_len for query_len, _ in lens),
        max_seq_len=max(seq_len for _, seq_len in lens),
        num_actual_tokens=starts[-1],
        causal=True,
        block_table=torch.tensor([[*row, *[-7] * (width - len(row))] for row in blocks], dtype=torch.int32),
    )


@pytest.mark.parametrize("score", IndexScore)
@pytest.mark.parametrize(("selection_unit", "key_unit"), [(1, 1), (4, 1), (4, 4), (3, 3)])
def test_logits_are_those_of_loops(score: IndexScore, selection_unit: int, key_unit: int) -> None:
    rng = random.Random(0)
    made = indexer(
        num_heads=4, num_selections=2, head_size=3, score=score, selection_unit=selection_unit, key_unit=key_unit, top_k=5
    )
    lens, blocks = [(3, 9), (0, 4), (4, 2), (1, 1)], [[4, 1, 3], [0, 2], [5], [6]]
    batch, rows = step(lens, blocks), 9
    q, k = (
        [[[rng.randint(-3, 3) for _ in range(3)] for _ in range(count)] for _ in range(of)] for count, of in ((4, rows), (4, 8))
    )
    w = [[rng.randint(-2, 2) for _ in range(4)] for _ in range(rows)]
    weights = torch.tensor(w, dtype=torch.float32) if score is SUM_RELU else None
    logits = index_logits(torch.tensor(q).float(), weights, torch.tensor(k).float(), made, batch)
    assert logits.shape == (2, rows, -(-9 // selection_unit))
    expected: dict[tuple[int, int, int], int] = {}
    row = 0
    for (query_len, seq_len), table in zip(lens, blocks, strict=True):
        for p in range(seq_len - query_len, seq_len):
            for key in range(seq_len // key_unit):
                if key * key_unit + key_unit - 1 > p:
                    continue
                vector = k[table[key // 4]][key % 4]
                dots = [sum(a * b for a, b in zip(head, vector, strict=True)) for head in q[row]]
                for s in range(2):
                    own = range(2 * s, 2 * s + 2)
                    logit = sum(w[row][h] * max(dots[h], 0) for h in own) if score is SUM_RELU else max(dots[h] for h in own)
                    place = (s, row, key * key_unit // selection_unit)
                    expected[place] = max(expected.get(place, logit), logit)
            row += 1
    for place in itertools.product(range(2), range(row), range(logits.shape[2])):
        assert float(logits[place]) == expected.get(place, -torch.inf), place


def selected_of(logits: list[float], query_len: int = 1, **fields: Any) -> list[set[int]]:
    """The selections of the last rows of a request, by logits that all rows have."""
    made = indexer(num_heads=1, **fields)
    seq_len = len(logits) * made.selection_unit if "seq_len" not in fields else fields["seq_len"]
    batch = step([(query_len, seq_len)], [[0]])
    chosen = select(torch.tensor(logits).expand(1, query_len, -1).contiguous(), made, batch)
    assert chosen.shape == (1, query_len, made.selected_width)
    return [{unit for unit in row if unit >= 0} for row in chosen[0].tolist()]


def test_the_greatest_are_selected() -> None:
    assert selected_of([3.0, -1.0, 7.0, 0.0]) == [{0, 2}]
    assert selected_of([-3.0, -1.0, -7.0, -2.0]) == [{1, 3}]
    assert selected_of([1.0, 1.0], top_k=5) == [{0, 1}]
    assert selected_of([0.0] * 6, top_k=4) == [{0, 1, 2, 3}]


def test_a_row_chooses_among_units_that_it_sees() -> None:
    assert selected_of([1.0, 2.0, 9.0], query_len=3) == [{0}, {0, 1}, {1, 2}]
    # units of 4 tokens with a key each: the row at 6 sees unit 0 alone, and stands in unit 1
    assert selected_of([1.0, 2.0], query_len=3, selection_unit=4, key_unit=4, top_k=1) == [{0, 1}, {0, 1}, {1}]
    # with a key per token, a unit is seen from its first token on
    assert selected_of([1.0, 2.0], query_len=5, selection_unit=4, top_k=1) == [{0}, {1}, {1}, {1}, {1}]


def test_forced_units_count_among_the_best() -> None:
    logits = [0.0, 5.0, 9.0, 8.0, 1.0]
    assert selected_of(logits, top_k=3, first_units=1, last_units=1) == [{0, 2, 4}]
    assert selected_of(logits, top_k=2, first_units=1, last_units=1) == [{0, 4}]
    assert selected_of(logits[:1], top_k=3, first_units=1, last_units=2) == [{0}]
    assert selected_of(logits, query_len=2, top_k=1, last_units=1) == [{3}, {4}]


def test_rows_before_the_sequence_select_nothing() -> None:
    made = indexer(num_heads=1, selection_unit=2, key_unit=2)
    chosen = select(torch.zeros(1, 3, 1), made, step([(3, 1)], [[0]]))
    assert chosen.tolist() == [[[-1, -1, -1], [-1, -1, -1], [-1, -1, 0]]]


BYTES = {
    # 448 / 448 is the scale 1: 448 is 0x7E, 1 is 0x38, -0.5 is 0xB0, 0 is 0
    (FN, ScaleFormat.FLOAT32, None): (1.0, [0x7E, 0x38, 0xB0, 0x00]),
    (FN, ScaleFormat.UE8M0, None): (1.0, [0x7E, 0x38, 0xB0, 0x00]),
    # 448 / 240 is no power of two; the next is 2: 224 is 0x7E, 0.5 is 0x38, -0.25 is 0xB0
    (FNUZ, ScaleFormat.UE8M0, None): (2.0, [0x7E, 0x38, 0xB0, 0x00]),
    (FNUZ, ScaleFormat.FLOAT32, 224.0): (2.0, [0x7E, 0x38, 0xB0, 0x00]),
    # of 448 at most 256 is stored: 1.75
    (FN, ScaleFormat.FLOAT32, 256.0): (1.75, [0x78, 0x31, 0xA9, 0x00]),
}


@pytest.mark.parametrize(("dtype", "scale_format", "largest"), BYTES)
def test_bytes_of_a_key(dtype: torch.dtype, scale_format: ScaleFormat, largest: float | None) -> None:
    made = indexer(head_size=4, layout=FLAT, cache_dtype=dtype, scale_format=scale_format, largest=largest)
    cache = torch.full((2, 2, 8), 0xEE, dtype=torch.uint8)
    k = torch.tensor([[9.0] * 4, [448.0, 1.0, -0.5, 0.0]])
    write_index_cache(k, cache, made, torch.tensor([-1, 3]))
    scale, codes = BYTES[dtype, scale_format, largest]
    page = cache.view(2, 16)
    assert page[1].tolist() == [*[0xEE] * 4, *codes, *[0xEE] * 4, *struct.pack("<f", scale)]
    assert page[0].tolist() == [0xEE] * 16


def test_a_scale_is_at_least_that_of_the_smallest_largest_element() -> None:
    made = indexer(head_size=4, layout=FLAT, cache_dtype=FN)
    cache = torch.zeros(1, 1, 8, dtype=torch.uint8)
    write_index_cache(torch.full((1, 4), 1e-6), cache, made, torch.tensor([0]))
    scale = cache[0, 0, 4:].view(torch.float32)
    assert float(scale) == float(torch.tensor(1e-4) / 448)
    assert float(cache[0, 0, :4].view(FN).float()[0] * scale) == pytest.approx(1e-6, rel=0.07)


@pytest.mark.parametrize("layout", IndexLayout)
@pytest.mark.parametrize("dtype", [FN, FNUZ])
def test_logits_of_what_was_written(layout: IndexLayout, dtype: torch.dtype) -> None:
    """Powers of two are stored exactly, so the logits are integers. Slots that hold no key hold NaN."""
    generator = torch.Generator().manual_seed(0)
    made = indexer(num_heads=2, head_size=16, layout=layout, cache_dtype=dtype, scale_format=ScaleFormat.FLOAT32)
    if layout is not PLAIN:
        made = indexer(num_heads=2, head_size=16, layout=layout, cache_dtype=dtype, scale_format=ScaleFormat.UE8M0)
    k = torch.randint(-1, 2, (20, 16), generator=generator).float() * 4
    q = torch.randint(-2, 3, (1, 2, 16), generator=generator).float()
    w = torch.tensor([[1.0, -2.0]])
    nan = 0x80 if dtype is FNUZ else 0x7F
    cache = torch.full((4 * 16 * made.row_size + 4,), nan, dtype=torch.uint8)[4:].view(4, 16, made.row_size)
    cache = cache if layout is not PLAIN else cache.view(dtype)
    blocks = [[3, 1]]
    slots = torch.tensor([blocks[0][i // 16] * 16 + i % 16 for i in range(20)])
    write_index_cache(k, cache, made, slots)
    logits = index_logits(q.to(dtype), w, cache, made, step([(1, 20)], blocks))
    assert torch.equal(logits[0, 0], (w[0, :, None] * torch.relu(q[0] @ k.T)).sum(0))


def test_a_row_past_the_block_table_is_refused() -> None:
    with pytest.raises(ContractError, match=r"^block_table\[0, 1\]: got -7, expected a block of the cache, 0 to 0"):
        index_logits(torch.zeros(1, 2, 2), torch.zeros(1, 2), torch.zeros(1, 4, 2), indexer(), step([(1, 6)], [[0]]))
