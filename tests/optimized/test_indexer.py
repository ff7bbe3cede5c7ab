"""The kernels of an index layer: bytes and selections are the reference's, a row's logits do not depend on its batch."""

import contextlib
import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Indexer, IndexLayout, IndexScore, ScaleFormat, UnsupportedError
from attn_fuzz.cases import wrong_values
from attn_fuzz.cases.tensors import Write
from attn_fuzz.verdict.indexer import wrong_selection
from attn_optimized.indexer import index_logits_call, select_call, write_index_cache_call
from attn_optimized.launch.indexer import logit_tiles, select_tiles
from attn_optimized.launch.widths import MAX_HEAD_SIZE

from tests.optimized.launch.test_tile_sizes import MAX_OF_ATTENTION, borders, each_architecture
from tests.optimized.test_wrong_arguments import RightCall
from tests.support.waits import waits_of

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
SMALL = Indexer(num_heads=2, head_size=16, top_k=5)
LAYERS = {
    "plain": SMALL,
    "plain float8": replace(SMALL, cache_dtype=FNUZ),
    "flat": replace(SMALL, layout=IndexLayout.FLAT, cache_dtype=FN),
    "tiled": replace(SMALL, layout=IndexLayout.TILED, cache_dtype=FNUZ, scale_format=ScaleFormat.UE8M0, largest=224.0),
    "units, maximum": replace(SMALL, selection_unit=4, score=IndexScore.MAX, num_selections=2),
    "shared keys": replace(SMALL, selection_unit=4, key_unit=4, first_units=1, last_units=1),
}


def step(device: torch.device, *lens: tuple[int, int], block_size: int = 16, padding: int = 0) -> Batch:
    """A step of requests (query_len, seq_len), each with blocks of its own."""
    starts = [*itertools.accumulate((query_len for query_len, _ in lens), initial=0)]
    width = max(-(-seq_len // block_size) for _, seq_len in lens)
    table = torch.arange(len(lens) * width, dtype=torch.int32).flip(0).view(len(lens), width)
    return Batch(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32, device=device),
        max_query_len=max(query_len for query_len, _ in lens),
        max_seq_len=max(seq_len for _, seq_len in lens),
        num_actual_tokens=starts[-1] + padding,
        causal=True,
        block_table=table.to(device),
    )


def cache_of(indexer: Indexer, num_blocks: int, device: torch.device) -> torch.Tensor:
    """An index cache whose keys and scales are random."""
    generator = torch.Generator().manual_seed(1)
    k = torch.randn(num_blocks * 16, indexer.head_size, generator=generator)
    dtype = torch.uint8 if indexer.layout.has_scales else indexer.cache_dtype or torch.float32
    cache = torch.zeros(num_blocks, 16, indexer.row_size, dtype=torch.float32).to(dtype)
    attn_reference.write_index_cache(k, cache, indexer, torch.arange(len(k)))
    return cache.to(device)


def queries(indexer: Indexer, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(rows, indexer.num_heads, indexer.head_size, generator=generator).to(device)
    weights = torch.randn(rows, indexer.num_heads, generator=generator).to(device)
    return q, weights if indexer.score is IndexScore.SUM_RELU else None


@pytest.mark.parametrize("indexer", LAYERS.values(), ids=LAYERS)
def test_a_write_gives_the_reference_s_bytes(indexer, device):
    k = torch.randn(8, 16) * torch.tensor([0.0, 1e-6, 1.0, 448.0, 0.3, 7.0, 1.0, 1.0])[:, None]
    slots = torch.tensor([0, 47, -1, 15, 16, 30, 33, 31])
    dtype = torch.uint8 if indexer.layout.has_scales else indexer.cache_dtype or torch.float32
    right = torch.full((3, 16, indexer.row_size), 1.0).to(dtype)
    written = right.to(device)
    attn_reference.write_index_cache(k, right, indexer, slots)
    attn_optimized.write_index_cache(k.to(device), written, indexer, slots.to(device))
    assert torch.equal(written.cpu().view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("indexer", LAYERS.values(), ids=LAYERS)
def test_a_row_s_logits_do_not_depend_on_its_batch(indexer, device):
    cache = cache_of(replace(indexer, head_size=16), 30, device)
    batch = step(device, (3, 70), (1, 150), (20, 41))
    q, weights = queries(indexer, 24, device)
    logits = attn_optimized.index_logits(q, weights, cache, indexer, batch, validate=True)
    reference = attn_reference.index_logits(q, weights, cache, indexer, batch)
    seen = reference > -torch.inf
    torch.testing.assert_close(logits[seen], reference[seen], rtol=1e-5, atol=1e-5)
    table, starts = batch.block_table, [0, 3, 4, 24]
    assert table is not None
    for r, (query_len, seq_len) in enumerate(((3, 70), (1, 150), (20, 41))):
        rows = slice(starts[r], starts[r + 1])
        alone = replace(step(device, (query_len, seq_len)), block_table=table[r : r + 1])
        own = attn_optimized.index_logits(q[rows], None if weights is None else weights[rows], cache, indexer, alone)
        units = indexer.num_units(seq_len)
        known = seen[:, rows, :units]
        assert torch.equal(own[known], logits[:, rows, :units][known])


def hard_logits(rows: int, units: int, selections: int) -> torch.Tensor:
    """Rows whose logits are equal, of few values, zeros of both signs, one another's neighbours, or of both signs."""
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(selections, rows, units, generator=generator)
    kinds = (
        torch.full_like(random, -2.5),
        (random * 2).round(),
        torch.where(random > 0, 0.0, -0.0),
        1 + torch.randint(0, 3, random.shape, generator=generator) * 2.0**-23,
        random * 1e30,
    )
    rows_of_kinds = torch.arange(rows) % len(kinds)
    return torch.stack(kinds).permute(2, 0, 1, 3)[torch.arange(rows), rows_of_kinds].transpose(0, 1).contiguous()


SELECTING = {
    "one": {"top_k": 1},
    "many": {"top_k": 150},
    "first and last": {"top_k": 9, "first_units": 3, "last_units": 4},
    "only forced": {"top_k": 4, "first_units": 2, "last_units": 2},
    "units": {"top_k": 7, "selection_unit": 3, "num_selections": 2},
    "open unit": {"top_k": 7, "selection_unit": 4, "key_unit": 4, "last_units": 1},
}


@pytest.mark.parametrize("fields", SELECTING.values(), ids=SELECTING)
def test_a_selection_is_the_reference_s_with_ties(fields, device):
    indexer = replace(SMALL, **fields)
    # a request without queries, queries that stand before their sequence, and rows of no request
    batch = step(device, (5, 700), (0, 9), (6, 4), (5, 400), (1, 150), padding=2)
    logits = hard_logits(19, indexer.num_units(700), indexer.num_selections)
    on_cpu = replace(batch, **{name: value.cpu() for name, value in batch.tensors.items()})
    # a tensor that is given keeps what it holds in rows of no request
    out = torch.full((*logits.shape[:2], indexer.selected_width), 7, dtype=torch.int32)
    expected = attn_reference.select(logits, indexer, on_cpu, out=out.clone())
    given = torch.nn.functional.pad(logits, (0, 5), value=torch.nan).to(device)
    for row, position in enumerate([*range(695, 700), *range(-2, 4), *range(395, 400), 149]):
        given[:, row, -(-(position + 1) // indexer.selection_unit) :] = torch.nan
    selected = attn_optimized.select(given, indexer, batch, out=out.to(device), validate=True).cpu()
    assert torch.equal(selected.sort(-1).values, expected.sort(-1).values)
    assert (selected[:, 17:] == 7).all()


@pytest.mark.parametrize("indexer", LAYERS.values(), ids=LAYERS)
def test_logits_are_written_where_the_step_has_rows_and_units_and_nowhere_else(indexer, device):
    batch = step(device, (3, 70), (1, 5), padding=2)
    q, weights = queries(indexer, 6, device)
    units = indexer.num_units(batch.max_seq_len)
    wide = torch.full((indexer.num_selections, 6, units + 30), 7.0, device=device)
    for side in (attn_reference, attn_optimized):
        logits = side.index_logits(q, weights, cache_of(indexer, 10, device), indexer, batch, out=wide.clone())
        assert (logits[:, :3, 0] != 7).all()
        assert (logits[:, :, units:] == 7).all(), side
        assert (logits[:, 4:] == 7).all(), side


@pytest.mark.parametrize("fields", SELECTING.values(), ids=SELECTING)
def test_nan_is_less_than_every_number_and_refused_where_values_are_checked(fields, device):
    indexer, batch = replace(SMALL, **fields), step(device, (1, 300), (2, 150))
    logits = hard_logits(3, indexer.num_units(300), indexer.num_selections)
    least = logits.clone()
    least[:, :, 1::2], logits[:, :, 1::4], logits[:, :, 3::4] = -torch.inf, torch.nan, -torch.nan
    selected = attn_optimized.select(logits.to(device), indexer, batch).cpu()
    assert wrong_selection(selected, logits, indexer, batch) is None
    assert wrong_selection(selected, least, indexer, batch) is None
    for select in (attn_reference.select, partial(attn_optimized.select, validate=True)):
        with pytest.raises(ContractError, match=r"logits\[0, 0, 1\]: got nan, expected a number: the row sees the unit"):
            select(logits.to(device), indexer, batch)


def test_a_selection_is_in_rising_order(device):
    selected = attn_optimized.select(torch.randn(1, 1, 400, device=device), replace(SMALL, top_k=300), step(device, (1, 400)))
    assert (selected.diff() > 0).all()


def test_selecting_again_gives_the_same_and_what_two_ranks_select_merges_to_one_selection(device):
    """Each rank has every other unit, with ties among them. The best of both ranks' best are judged as any selection."""
    indexer, lengths, ranks = replace(SMALL, top_k=40), (400, 151), (0, 1)
    batch, logits = step(device, *((1, length) for length in lengths)), hard_logits(10, 400, 1)[:, 3:5].to(device)
    whole = attn_optimized.select(logits, indexer, batch)
    assert torch.equal(attn_optimized.select(logits, indexer, batch), whole)
    found = []
    for rank in ranks:
        of_rank = step(device, *((1, len(range(rank, length, 2))) for length in lengths))
        found.append(attn_optimized.select(logits[..., rank::2].contiguous(), indexer, of_rank) * 2 + rank)
    candidates = torch.cat(found, -1)
    best = logits.gather(-1, candidates.long())
    merged = candidates.gather(-1, attn_optimized.select(best, indexer, step(device, (1, 80), (1, 80))).long())
    assert wrong_selection(merged, logits, indexer, batch) is None
    merged[0, 1, 0] = next(unit for unit in range(151) if unit not in whole[0, 1] and unit not in merged[0, 1])
    assert wrong_selection(merged, logits, indexer, batch) is not None


def test_logits_and_sizes_beyond_the_kernels_are_refused(device):
    batch = step(device, (1, 9))
    with pytest.raises(UnsupportedError, match=r"logits of torch\.float64"):
        attn_optimized.select(torch.zeros(1, 1, 9, dtype=torch.float64, device=device), SMALL, batch)
    wide = replace(SMALL, head_size=MAX_HEAD_SIZE + 1)
    q, weights = queries(wide, 1, device)
    with pytest.raises(UnsupportedError, match=f"head size {MAX_HEAD_SIZE + 1}"):
        attn_optimized.index_logits(q, weights, torch.zeros(1, 16, MAX_HEAD_SIZE + 1, device=device), wide, batch)


def calls(device: torch.device) -> dict[str, tuple[Any, dict[str, Any]]]:
    batch = step(device, (2, 20), (1, 9))
    q, weights = queries(SMALL, 3, device)
    cache = cache_of(SMALL, 4, device)
    slots = torch.full((2,), -1, dtype=torch.int64, device=device)
    logits, selected = (torch.zeros(1, 3, size, dtype=dtype, device=device) for size, dtype in ((20, None), (5, torch.int32)))
    return {
        "write": (
            attn_optimized.write_index_cache,
            {"k": torch.ones(2, 16, device=device), "index_cache": cache, "indexer": SMALL, "slot_mapping": slots},
        ),
        "logits": (
            attn_optimized.index_logits,
            {"q": q, "weights": weights, "index_cache": cache, "indexer": SMALL, "batch": batch, "out": logits},
        ),
        "select": (
            attn_optimized.select,
            {"logits": torch.zeros(1, 3, 20, device=device), "indexer": SMALL, "batch": batch, "out": selected},
        ),
    }


FREE = {"k": (0,), "index_cache": (0, 1), "slot_mapping": (0,), "logits": (1, 2)}


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("name", ["write", "logits", "select"])
def test_wrong_arguments_are_refused(name, validate, device):
    function, arguments = calls(device)[name]
    free = {argument: dims for argument, dims in FREE.items() if argument in arguments}
    free |= {"out": (2,)} if name == "logits" else {}
    written = ("index_cache",) if name == "write" else ("out",)
    function = partial(function, validate=validate)
    RightCall(function=function, arguments=arguments, optional=("out",), free=free, written=written).check()


@pytest.mark.parametrize("name", ["write", "logits", "select"])
def test_the_first_value_beyond_each_bound_is_refused_and_the_last_within_is_not(name, device):
    function, arguments = calls(device)[name]
    indexer, cache = arguments["indexer"], arguments.get("index_cache")
    keys = {"num_keys": lambda tokens: tokens // indexer.key_unit, "selection_unit": None, "tensors": {}}
    like = SimpleNamespace(attn_type=AttentionType.DECODER, layout=indexer.layout, view_of=indexer.view_of, **keys)
    if name == "write":
        rows = arguments["k"]
        edges = wrong_values.of_write(Write(like, indexer.view_of(cache), rows, rows, arguments["slot_mapping"]))
    else:
        edges = wrong_values.of_attention(like, arguments["batch"], cache)
    legal = 0
    for edge in edges:
        with edge.holding as changed, contextlib.nullcontext() if edge.is_legal else pytest.raises(ContractError):
            function(**arguments | changed, validate=True)
        legal += edge.is_legal
    assert legal


@pytest.mark.parametrize("name", ["write", "logits", "select"])
def test_only_validation_waits_for_the_device(name, device):
    function, arguments = calls(device)[name]
    assert waits_of(partial(function, **arguments)) == []
    assert waits_of(partial(function, **arguments, validate=True))


@each_architecture
def test_tiles_of_logits_fit_registers(architecture):
    sizes = itertools.product(borders(1, MAX_HEAD_SIZE), (1, 3, 64, 100, 128), (1, 4, 128, 1000), (1, 2, 4))
    for head_size, heads, unit, itemsize in sizes:
        tiles = logit_tiles(architecture, replace(SMALL, head_size=head_size, num_heads=heads, selection_unit=unit), itemsize)
        rows, keys = tiles.block_q * tiles.block_h, tiles.block_units * tiles.block_keys
        assert min(rows, keys, tiles.block_d) >= 16
        assert max(rows * tiles.block_d, keys * tiles.block_d, rows * keys) / tiles.num_warps <= MAX_OF_ATTENTION


def test_layers_and_steps_of_a_decode_share_launches(device):
    launches = []
    for seq_len in (401, 402):
        batch, logits = step(device, (1, seq_len)), torch.zeros(1, 1, 512, device=device)
        q, weights = queries(SMALL, 1, device)
        slots = torch.full((1,), seq_len, dtype=torch.int64, device=device)
        selected = torch.zeros(1, 1, SMALL.top_k, dtype=torch.int32, device=device)
        calls_of_step = (
            write_index_cache_call(torch.zeros(1, 16, device=device), cache_of(SMALL, 26, device), SMALL, slots),
            index_logits_call(q, weights, cache_of(SMALL, 26, device), SMALL, batch, logits=logits),
            select_call(logits[:, :, :seq_len], SMALL, batch, selected=selected),
        )
        launches.append([call.launch for call in calls_of_step])
    first, second = launches
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_a_selection_looks_at_no_unit_past_the_memory(device):
    batch, selected = step(device, (2, 9)), torch.zeros(1, 2, SMALL.top_k, dtype=torch.int32, device=device)
    for units in (9, 511, 512):
        logits = torch.zeros(1, 2, units, device=device)[:, :, :9]
        assert select_call(logits, SMALL, batch, selected=selected).launch.numbers["num_units"] <= units


def test_no_program_runs_without_a_row(device):
    empty = step(device, (0, 3))
    q, weights = queries(SMALL, 0, device)
    assert attn_optimized.index_logits(q, weights, cache_of(SMALL, 1, device), SMALL, empty).shape == (1, 0, 3)
    logits = torch.zeros(1, 0, 3, device=device)
    assert attn_optimized.select(logits, SMALL, empty).shape == (1, 0, 5)
    call = index_logits_call(q, weights, cache_of(SMALL, 1, device), SMALL, empty, logits=logits)
    assert call.launch.grid == (1, 1, 1)
    assert select_tiles("gfx942", SMALL).block < 2**15
