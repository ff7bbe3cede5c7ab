"""Tile sizes and grids, on any machine."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from attn_optimized.launch.plan import attention_grid, attention_plan
from attn_optimized.launch.splits import MOST_PARTS_BYTES, MOST_PROGRAMS_PER_UNIT, Splits, splits_of
from attn_optimized.launch.table import Parameters, Phase, entry_for
from attn_optimized.launch.tiles import attention_tiles, reduce_grid, reduce_tiles, row_grid, row_tiles
from attn_optimized.launch.units import distance, in_units
from attn_optimized.launch.workload import (
    DECODE_TILE_ROWS,
    MIN_DOT,
    SHORT_ROWS_PER_UNIT,
    SHORT_WINDOW_KEYS,
    Workload,
    phase_of,
)

ARCHITECTURES = ("interpreter", "sm90", "gfx942", "gfx1201")
HEAD_SIZES = (1, 16, 40, 64, 80, 96, 128, 256, 512)
GROUPS = (1, 2, 3, 5, 7, 8, 16, 64)


CALL = {
    "itemsize": 2,
    "quantized": False,
    "head_size": 128,
    "num_heads": 32,
    "num_kv_heads": 8,
    "num_tokens": 1,
    "num_requests": 1,
    "max_query_len": 1,
    "max_seq_len": 131072,
}
PHASES = {
    "decode": {},
    "mixed": {"num_requests": 9, "num_tokens": 2056, "max_query_len": 2048},
    "wide_decode": {"num_tokens": 5, "max_query_len": 5},
    "short": {"num_tokens": 2048, "max_query_len": 2048},
    "prefill": {"num_tokens": 8192, "max_query_len": 8192},
    "window": {"num_tokens": 2048, "max_query_len": 2048, "window_keys": SHORT_WINDOW_KEYS},
    "rules": {"num_tokens": 2048, "max_query_len": 2048, "has_other_masks": True},
}
"""Changes that make a batch of another phase of a decode of one request."""


COMPUTE_UNITS = 132


def tiles_of(architecture="sm90", phase="decode", **changed):
    return attention_tiles(Workload(**(CALL | PHASES[phase] | changed)), architecture, COMPUTE_UNITS)


def test_every_phase_has_an_example():
    assert {phase: phase_of(Workload(**(CALL | changed)), COMPUTE_UNITS) for phase, changed in PHASES.items()} == {
        phase: phase for phase in get_args(Phase)
    }


def test_a_batch_invariant_call_has_the_phase_of_its_layer():
    for changed in PHASES.values():
        invariant = CALL | changed | {"batch_invariant": True}
        assert phase_of(Workload(**invariant), COMPUTE_UNITS) == "prefill"
        assert phase_of(Workload(**invariant, has_bias=True), COMPUTE_UNITS) == "prefill"
        assert phase_of(Workload(**invariant, has_bias=True, has_slopes=True), COMPUTE_UNITS) == "rules"


def test_tiles_of_keys_that_shared_memory_does_not_hold_have_fewer_stages():
    """A multiprocessor of sm90 holds 128 rows of 256 dims and two tiles of 64 keys in 16 bits; one of sm80, one of them."""

    def stages(architecture="sm90", **changed):
        return tiles_of(architecture, "prefill", head_size=256, **changed).parameters.num_stages

    assert entry_for("sm90", phase="prefill", itemsize=2, block_d=256, quantized=False).parameters.num_stages == 3
    assert (stages(), stages(is_paged=False), stages("sm80")) == (2, 2, 1)


def test_dots_of_few_rows_have_a_stage_more_than_tiles_of_keys():
    """They read no operand while the next is loaded: 3 tiles of 64 keys of 256 dims, and q, are 196,608 bytes and 8,192."""
    most = replace(
        entry_for("sm90", phase="decode", itemsize=2, block_d=256, quantized=False).parameters, block_n=64, num_stages=9
    )
    decode = Workload(**(CALL | {"head_size": 256}))
    assert attention_tiles(decode, "sm90", COMPUTE_UNITS, most).parameters.num_stages == 4


def test_two_tiles_of_a_latent_cache_fit_without_a_bias():
    """Two stages keep two tiles of a latent cache: 237,568 bytes of 232,448, with 64 rows of q and a tile of logits."""
    latent = {"head_size": 576, "head_size_v": 512, "is_latent": True, "num_kv_heads": 1, "max_query_len": 5, "num_tokens": 5}
    most = replace(
        entry_for("sm90", phase="latent", itemsize=2, block_d=576, quantized=False).parameters, block_n=64, num_stages=2
    )
    without_bias, with_bias = (
        attention_tiles(Workload(**(CALL | latent | {"has_bias": has_bias})), "sm90", COMPUTE_UNITS, most).parameters
        for has_bias in (False, True)
    )
    assert (without_bias.num_stages, with_bias.num_stages) == (2, 1)


def test_a_bias_that_is_loaded_takes_a_tile_of_each_stage():
    """253,952 bytes of 232,448 with three stages, as Triton 3.6 asked for on an H200: a one-byte latent cache and a tree."""
    latent = {"head_size": 576, "head_size_v": 512, "is_latent": True, "quantized": True, "num_kv_heads": 1, "num_heads": 12}
    call = CALL | latent | {"max_query_len": 2, "num_tokens": 2, "has_bias": True}
    slopes, loaded = (
        attention_tiles(Workload(**call, loads_bias=loads), "sm90", COMPUTE_UNITS).parameters.num_stages
        for loads in (False, True)
    )
    assert (slopes, loaded) == (3, 2)


def test_parameters_are_those_of_the_wider_of_k_and_v():
    """80 registers hold a tile of 64 values. Of 96 they hold none: ptxas refuses it."""
    narrow = tiles_of(phase="window", head_size=16).parameters
    wide = tiles_of(phase="window", head_size=16, head_size_v=96).parameters
    assert narrow == entry_for("sm90", phase="window", itemsize=2, block_d=16, quantized=False).parameters
    assert wide == entry_for("sm90", phase="window", itemsize=2, block_d=128, quantized=False).parameters
    assert wide.maxnreg > narrow.maxnreg


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_decode_has_one_tile_of_its_size(architecture):
    """A tile of 16 rows or of 64, or the interpreter's."""
    for group in GROUPS:
        for max_query_len in range(1, DECODE_TILE_ROWS // group + 1):
            tiles = tiles_of(architecture, num_heads=8 * group, max_query_len=max_query_len)
            rows = max_query_len * group
            assert tiles.queries >= max_query_len
            assert tiles.block_m == max(tiles.parameters.block_m, 16 if rows <= 16 else 64)
            assert tiles.small_block_m == 0


def test_few_tile_sizes_are_compiled():
    """For a head size, a dtype and the usual groups: two for decode, and three more, however the batch looks."""
    decode, others = set(), set()
    for group in (1, 2, 3, 5, 7, 8, 16):
        for n in (*range(300), 3000, 30000):
            for num_requests in (1, 40):
                call = {"num_heads": 8 * group, "num_tokens": n + num_requests - 1, "num_requests": num_requests}
                tiles = plan(**call, max_query_len=n).tiles
                (decode if n * group <= DECODE_TILE_ROWS else others).add((tiles.small_block_m > 0, tiles.block_m))
    assert decode == {(False, 16), (False, 64)}
    assert len(others) <= 3, "large ones, with small ones beside them, and those of a batch that is short"


PREFILL = {"num_tokens": 4096, "num_requests": 2, "max_query_len": 2048}
SHORT_WINDOW = {"window_keys": SHORT_WINDOW_KEYS}


@pytest.mark.parametrize(
    ("changed", "phase"),
    [
        ({}, "prefill"),
        (SHORT_WINDOW, "window"),
        ({"window_keys": SHORT_WINDOW_KEYS + 1}, "prefill"),
        ({"has_other_masks": True}, "rules"),
        ({"has_bias": True}, "rules"),
        ({"has_other_masks": True, **SHORT_WINDOW}, "rules"),
        ({"has_other_masks": True, "num_requests": 9}, "mixed"),
        ({"num_requests": 7, "num_tokens": 10}, "short"),
        ({"num_tokens": SHORT_ROWS_PER_UNIT * COMPUTE_UNITS // 32 - 1}, "short"),
        ({"num_tokens": SHORT_ROWS_PER_UNIT * COMPUTE_UNITS // 32}, "prefill"),
        ({"num_requests": 8}, "prefill"),
        ({"num_requests": 9}, "mixed"),
        ({"num_requests": 9, **SHORT_WINDOW}, "mixed"),
        ({"num_tokens": 16, "num_requests": 16, "max_query_len": 1}, "decode"),
        ({"num_tokens": 8, "max_query_len": 4}, "decode"),
        ({"num_tokens": 10, "max_query_len": 5}, "wide_decode"),
        ({"num_tokens": 32, "max_query_len": 16}, "wide_decode"),
        ({"num_tokens": 34, "max_query_len": 17}, "short"),
        ({"num_tokens": 0, "num_requests": 0, "max_query_len": 0}, "decode"),
    ],
)
def test_each_batch_has_its_phase(changed, phase):
    """The phase by which tiles are chosen; one for all batches where a request's output must not depend on the others."""
    workload = Workload(**(CALL | PREFILL | changed))
    assert phase_of(workload, COMPUTE_UNITS) == phase
    assert phase_of(replace(workload, batch_invariant=True), COMPUTE_UNITS) == "prefill"


def test_a_short_request_beside_long_ones_has_a_small_tile():
    tiles = tiles_of(phase="mixed")
    assert 0 < tiles.small_block_m < tiles.block_m
    assert tiles_of("gfx942", "mixed", num_heads=64, num_kv_heads=1).small_block_m == 0, "its heads fill the large one"
    assert tiles_of(phase="prefill").small_block_m == 0


def test_the_interpreter_takes_several_tiles_for_a_few_hundred_tokens():
    tiles = tiles_of("interpreter", "prefill", itemsize=4, head_size=64, max_query_len=200)
    assert 200 / tiles.queries > 3
    assert 200 / tiles.block_n > 3


@pytest.mark.parametrize(
    ("heads", "groups", "group"), [(8, 1, 8), (64, 1, 64), (65, 2, 33), (71, 2, 36), (128, 2, 64), (129, 3, 43), (1000, 16, 63)]
)
def test_heads_of_a_kv_head_are_cut_into_as_few_groups_as_hold_them(heads, groups, group):
    tiles = tiles_of(phase="decode", num_heads=2 * heads, num_kv_heads=2)
    assert (tiles.groups_per_kv_head, tiles.group, tiles.heads_per_kv_head) == (groups, group, heads)
    assert group <= tiles.block_m <= 64
    assert tiles.queries >= 1


def test_a_speculating_decode_has_one_tile_of_64_rows_for_each_of_up_to_8_groups():
    def of(heads: int, max_query_len: int, **call: object):
        return plan(
            num_heads=2 * heads,
            num_kv_heads=2,
            num_tokens=3 * max_query_len,
            num_requests=3,
            max_query_len=max_query_len,
            **call,
        )

    for heads, max_query_len, groups, group in ((12, 8, 2, 6), (16, 8, 2, 8), (71, 4, 5, 15), (48, 10, 8, 6), (8, 8, 1, 8)):
        cut = of(heads, max_query_len)
        assert (cut.tiles.groups_per_kv_head, cut.tiles.group) == (groups, group)
        assert cut.tiles.block_m == DECODE_TILE_ROWS
        assert cut.one_tile_per_request
    for whole in (of(71, 8), of(12, 17), of(12, 8, head_size=192), of(12, 8, batch_invariant=True)):
        assert whole.tiles.group == -(-whole.tiles.heads_per_kv_head // whole.tiles.groups_per_kv_head)
        assert whole.tiles.groups_per_kv_head == (2 if whole.tiles.heads_per_kv_head == 71 else 1)


@pytest.mark.parametrize("kind", [{}, {"is_latent": True}, {"is_latent": True, "has_scaled_rows": True}])
def test_few_rows_have_small_tiles_in_the_interpreter_too(kind):
    """Every kind of cache has code of its own."""
    few, more = (tiles_of("interpreter", num_heads=heads, num_kv_heads=1, head_size=64, **kind) for heads in (16, 17))
    assert few.block_m == MIN_DOT < more.block_m


@pytest.mark.parametrize("query_lens", [[1] * 9, [0, 0, 0], [17], [12, 12], [11, 25, 0, 1], [17, 17, 17]])
def test_grid_has_a_tile_for_every_query(query_lens):
    """The rule of kernels/query_tiles.py: request r starts at tile query_start_loc[r] // queries + r, or at r with one each."""
    batch = {"num_tokens": sum(query_lens), "num_requests": len(query_lens), "max_query_len": max(query_lens)}
    workload = Workload(**(CALL | {"head_size": 64, "num_heads": 10, "num_kv_heads": 2} | batch))
    tiles = attention_tiles(workload, "interpreter", 1)
    queries = 3 if max(query_lens) <= 1 else 12
    assert tiles.queries == queries
    (num_tiles, num_kv_heads), one_tile_per_request = attention_grid(workload, tiles)
    assert num_kv_heads == 2
    assert one_tile_per_request == (max(query_lens) <= queries)
    starts = [0, *itertools.accumulate(query_lens)]
    first_tiles = [r if one_tile_per_request else start // queries + r for r, start in enumerate(starts)]
    for r, query_len in enumerate(query_lens):
        end = first_tiles[r] + -(-query_len // queries)
        assert end <= (first_tiles[r + 1] if r + 1 < len(query_lens) else num_tiles)


def test_one_tile_for_each_request_wastes_no_program():
    """A bound from the tokens alone would nearly double them."""
    assert plan(num_tokens=64, num_requests=64).grid == (64, 8)
    assert plan(num_tokens=64, num_requests=64).one_tile_per_request
    assert not plan(num_tokens=600, num_requests=2, max_query_len=500).one_tile_per_request


def test_programs_begin_in_the_order_of_their_work_unless_there_are_many_waves():
    few, many = (plan(num_tokens=n, num_requests=1, max_query_len=n, max_seq_len=n) for n in (2048, 65536))
    assert (few.heads_first, few.launch_grid[0]) == (True, 8)
    assert (many.heads_first, many.launch_grid[1]) == (False, 8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_size", [1, 80, 256, 4000])
def test_row_tiles_cover_all_rows(architecture, head_size):
    tiles = row_tiles(architecture, head_size=head_size)
    assert tiles.block_d >= head_size
    assert tiles.block_rows.bit_count() == tiles.block_d.bit_count() == 1
    (programs,) = row_grid(tiles, 1000)
    assert programs * tiles.block_rows >= 1000 > (programs - 1) * tiles.block_rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_reduce_tiles_cover_all_rows_in_few_sizes(architecture, head_size):
    """Few sizes whatever the number of parts: each is compiled."""
    tiles = {reduce_tiles(architecture, head_size=head_size, num_parts=n) for n in range(2, 300)}
    assert len(tiles) <= 5
    for size in tiles:
        rows, blocks = reduce_grid(size, 1000)
        assert rows * size.block_rows >= 1000 > (rows - 1) * size.block_rows
        assert blocks * size.block_d >= head_size > (blocks - 1) * size.block_d
        for side in (size.block_rows, size.block_parts, size.block_d):
            assert side.bit_count() == 1


def test_an_unlimited_edge_is_farther_than_any_sequence_is_long():
    assert distance(-1) == 2**31 - 1
    assert distance(0) == 0
    assert distance(7) == 7


def plan(architecture="sm90", compute_units=132, **changed):
    return attention_plan(Workload(**(CALL | changed)), architecture=architecture, compute_units=compute_units)


def test_a_window_is_what_is_split_and_may_be_short():
    assert plan(window_keys=200).splits == 1
    assert plan(window_keys=1 << 20).splits == plan().splits > 1, "no more than there is"
    assert [plan(window_keys=keys).has_short_window for keys in (SHORT_WINDOW_KEYS, SHORT_WINDOW_KEYS + 1, None)] == [
        True,
        False,
        False,
    ]
    assert not plan(max_seq_len=SHORT_WINDOW_KEYS).has_short_window, "a short sequence is another matter"


@pytest.mark.parametrize("max_keys", [1, 64, 65, 500, 4096, 100_000])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_are_no_more_than_keys_are_worth(architecture, max_keys):
    """The keys of a tile of queries begin anywhere: one tile more than they fill is left to the kernel to make room for."""
    for num_requests, max_query_len in itertools.product((1, 3, 40), (1, 5, 300)):
        chosen = plan(
            architecture,
            num_requests=num_requests,
            num_tokens=num_requests * max_query_len,
            max_query_len=max_query_len,
            max_seq_len=max_keys,
        )
        seen = max_keys + chosen.tiles.queries - 1
        assert 0 <= chosen.max_tiles * chosen.tiles.block_n - seen < chosen.tiles.block_n
        worth = max(1, seen // chosen.tiles.parameters.keys_per_split)
        assert 1 <= chosen.balanced_splits <= chosen.splits <= max(worth, min(chosen.filling_splits, chosen.max_tiles))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "shares"),
    [
        (16, 1, (4, 32), 32768, 528),  # sums of two waves of programs
        (32, 8, (4, 32), 32768, 129),  # of an eighth of the bytes of K and V
        (32, 8, (4, 64), 65536, 132),  # of all shares
    ],
)
def test_sums_of_parts_are_few_beside_keys_and_values(heads, kv_heads, queries, keys, shares):
    number, length = queries
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "num_requests": number, "num_tokens": number * length}
    assert plan("sm90", **sizes, max_query_len=length, max_seq_len=keys, compute_units=132).work_shares == shares


OF_ONE_TILE = {"groups": 8, "queries": 4, "one_tile_per_request": True, "compute_units": 132, "most_programs": 6336}


@pytest.mark.parametrize(
    ("num_programs", "parts"),
    [(8, (66, 66)), (64, (33, 8)), (264, (8, 2)), (300, (8, 4)), (512, (5, 1)), (1024, (3, 1)), (2048, (2, 1)), (2112, (1, 1))],
)
def test_programs_of_one_length_end_together(num_programs, parts):
    """264 run at once. Of one length, in two waves or so; of different lengths, in eight, so that short ones fill gaps."""
    parameters = Parameters(
        block_m=16, block_n=64, num_warps=2, num_stages=3, keys_per_split=256, programs_per_unit=2, uneven_waves=8
    )
    workload = Workload(**(CALL | {"num_requests": 1 if num_programs == 8 else num_programs // 8}))
    call = {**OF_ONE_TILE, "num_programs": num_programs, "at_once": 264, "max_keys": 1 << 20}
    assert splits_of(workload, **call, parameters=parameters)[:2] == parts
    assert splits_of(workload, **call, parameters=replace(parameters, uneven_waves=0))[:2] == (parts[1], parts[1])
    assert splits_of(replace(workload, batch_invariant=True), **call, parameters=parameters) == Splits()


@pytest.mark.parametrize("num_requests", [1, 3, 16, 64])
def test_decodes_over_a_latent_cache_are_one_wave(num_requests):
    latent = {"num_heads": 128, "num_kv_heads": 1, "head_size": 576, "head_size_v": 512, "is_latent": True}
    chosen = plan(**latent, num_requests=num_requests, num_tokens=num_requests, max_seq_len=1 << 17)
    at_once = COMPUTE_UNITS * chosen.tiles.parameters.programs_per_unit
    assert 0.9 * at_once <= chosen.grid[0] * chosen.grid[1] * chosen.balanced_splits <= at_once


@pytest.mark.parametrize("num_tokens", [63, 119, 127])
def test_the_tiles_of_a_shared_prefix_are_one_wave(num_tokens):
    chosen = plan(num_heads=16, num_kv_heads=2, num_tokens=num_tokens, max_query_len=num_tokens, max_seq_len=11264)
    at_once = COMPUTE_UNITS * chosen.tiles.parameters.programs_per_unit
    assert 0.9 * at_once <= chosen.num_programs <= at_once


CHUNKS = {"num_requests": 48, "num_tokens": 2000, "max_query_len": 512, "max_seq_len": 100_000}
"""Decodes beside chunks of prompts: requests have one or several tiles of queries."""


def test_a_step_of_decodes_and_chunks_is_split_by_its_work():
    chosen = plan(**CHUNKS)
    assert not chosen.one_tile_per_request
    assert chosen.work_shares
    assert 1 < chosen.splits <= MOST_PROGRAMS_PER_UNIT * COMPUTE_UNITS // (chosen.grid[0] * chosen.grid[1])
    assert chosen.scratch_bytes <= MOST_PARTS_BYTES
    assert not plan(**CHUNKS | {"num_requests": 1, "num_tokens": 512}).work_shares, "one request: its length tells its work"
    assert plan(**CHUNKS, batch_invariant=True).splits == 1


def step(num_requests, max_query_len, max_seq_len, **changed):
    """A step of requests of one length."""
    tokens = {"num_tokens": num_requests * max_query_len, "max_query_len": max_query_len}
    return {"num_requests": num_requests, "max_seq_len": max_seq_len, **tokens, **changed}


def heads(count, max_seq_len, **changed):
    """A decode of one request, of 8 query heads for each KV head."""
    return {"num_heads": count, "num_kv_heads": count // 8, "max_seq_len": max_seq_len, **changed}


SPLITS = [
    # what fills the device, is short, or has a short window
    (step(600, 1, 1 << 17), 1), (step(1, 1, 200), 1), (step(1, 8192, 1 << 17), 1), (step(1, 1, 1 << 17, window_keys=200), 1),
    # a short extend; many short requests, of which some may be long; 2.6 waves of programs; a prompt of one wave
    (step(1, 16, 1 << 17), 99), (step(256, 1, 2000), 1), (step(256, 1, 2100), 3), (step(128, 1, 2000), 5),
    (step(1, 500, 500), 1),
    # 8 programs on a GPU with room for 396: parts of one tile of 32 keys, where it has room, and of several
    (step(1, 1, 1024), 33), (step(1, 1, 8192), 49), (step(8, 1, 500), 6),
    # 36 programs more would be a second wave: parts of 4 tiles, which are worth a program
    (step(9, 1, 250), 1), (step(64, 1, 500), 1), (step(64, 1, 1024), 4),
    # a prompt whose tiles fill the GPU has no parts
    (step(1, 4096, 4096), 1),
    # a long request of few heads has many parts
    (heads(8, 1 << 19), 256), (heads(8, 1 << 17), 256), (heads(8, 80_000), 156), (heads(8, 1 << 15), 128),
    (heads(16, 1 << 17), 132), (heads(24, 1 << 19), 128), (heads(8, 1 << 17, quantized=True), 128),
    (heads(8, 1 << 19, quantized=True), 256),
    # decodes beside chunks of prompts, whose parts would cost more than they bring: few keys, memory, chunks of much the
    # same work, programs
    (CHUNKS | {"max_seq_len": 2000}, 1), (CHUNKS | {"num_tokens": 60_000}, 1), (step(4, 4096, 5000), 1),
    (CHUNKS | {"num_requests": 7000, "num_tokens": 7500}, 1),
]  # fmt: skip
"""A step, and in how many parts its keys are on 132 compute units."""


@pytest.mark.parametrize(("call", "splits"), SPLITS, ids=str)
def test_in_how_many_parts_the_keys_of_a_step_are(call, splits):
    assert plan(**call).splits == splits


def test_scratch_of_a_split_is_small():
    """At most what the programs that a device is given leave behind, the last split of which may double them."""
    splits = set()
    for n, q in itertools.product(range(1, 300), (1, 4, 16, 64)):
        chosen = plan(num_tokens=n * q, num_requests=n, max_query_len=q, head_size=256, max_seq_len=1 << 20)
        splits.add(chosen.splits)
        parameters = chosen.tiles.parameters
        waves = 1 + max(8, parameters.uneven_waves)
        programs = waves * 132 * parameters.programs_per_unit + chosen.num_programs // chosen.splits
        assert chosen.scratch_bytes <= programs * chosen.tiles.block_m * (256 + 2) * 4
        assert (chosen.scratch_bytes > 0) == (chosen.splits > 1)
    assert len(splits) > 3
    assert plan(num_tokens=600, num_requests=600).scratch_bytes == 0


def test_strides_are_counted_in_16_bytes_where_all_are_multiples():
    assert in_units(2, row=64, head=8) == (8, {"row": 8, "head": 1})
    assert in_units(4, row=64, head=4, kv=0) == (4, {"row": 16, "head": 1, "kv": 0})
    assert in_units(2, row=64, head=12) == (1, {"row": 64, "head": 12})
