"""Tile sizes and grids, on any machine."""

import itertools

import pytest
from attn_contract import UnsupportedError
from attn_optimized.launch import attention_grid, attention_plan, attention_tiles, distance, in_units, row_grid, row_tiles

ARCHITECTURES = ("interpreter", "sm90", "gfx942", "gfx1201")
HEAD_SIZES = (1, 16, 40, 64, 80, 96, 128, 256)
GROUPS = (1, 2, 3, 5, 7, 8, 16, 64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_hold_whole_groups_and_heads(architecture):
    for itemsize, head_size, group, max_query_len in itertools.product((2, 4), HEAD_SIZES, GROUPS, (0, 1, 5, 4096)):
        tiles = attention_tiles(
            architecture,
            itemsize=itemsize,
            head_size=head_size,
            group=group,
            max_query_len=max_query_len,
            batch_invariant=False,
        )
        assert tiles.queries >= 1
        assert tiles.queries * group <= tiles.block_m < (tiles.queries + 1) * group
        assert tiles.block_d >= head_size
        for side in (tiles.block_m, tiles.block_n, tiles.block_d):
            assert side >= 16
            assert side.bit_count() == 1
        assert tiles.block_m * tiles.block_d * itemsize <= 64 * 1024, "AMD's shared memory holds a tile of queries"


def test_few_tile_sizes_are_compiled():
    """For a head size, a dtype and the usual groups: two, however the batch looks."""
    sizes = {
        attention_tiles("sm90", itemsize=2, head_size=128, group=group, max_query_len=n, batch_invariant=False).block_m
        for group in (1, 2, 3, 5, 7, 8, 16)
        for n in range(300)
    }
    assert sizes == {16, 64}


def test_the_interpreter_takes_several_tiles_for_a_few_hundred_tokens():
    tiles = attention_tiles("interpreter", itemsize=4, head_size=64, group=4, max_query_len=200, batch_invariant=False)
    assert 200 / tiles.queries > 3
    assert 200 / tiles.block_n > 3


@pytest.mark.parametrize("changed", [{"head_size": 257}, {"group": 65}])
def test_too_large_for_a_tile(changed):
    with pytest.raises(UnsupportedError, match=r"attn_optimized: .*25[67]|attn_optimized: 65 .*64"):
        attention_tiles(
            "sm90", **({"itemsize": 2, "head_size": 64, "group": 4, "max_query_len": 1, "batch_invariant": False} | changed)
        )


@pytest.mark.parametrize("query_lens", [[1] * 9, [0, 0, 0], [13], [12, 12], [11, 25, 0, 1], [13, 13, 13]])
def test_grid_has_a_tile_for_every_query(query_lens):
    """The rule of kernels/query_tiles.py: request r starts at tile query_start_loc[r] // queries + r."""
    tiles = attention_tiles("interpreter", itemsize=4, head_size=64, group=5, max_query_len=1, batch_invariant=False)
    assert tiles.queries == 12
    num_tiles, num_kv_heads = attention_grid(tiles, num_tokens=sum(query_lens), num_requests=len(query_lens), num_kv_heads=2)
    assert num_kv_heads == 2
    starts = [0, *itertools.accumulate(query_lens)]
    first_tiles = [start // 12 + r for r, start in enumerate(starts)]
    for r, query_len in enumerate(query_lens):
        end = first_tiles[r] + -(-query_len // 12)
        assert end <= (first_tiles[r + 1] if r + 1 < len(query_lens) else num_tiles)


def test_no_request_no_program():
    tiles = attention_tiles("sm90", itemsize=2, head_size=64, group=1, max_query_len=0, batch_invariant=False)
    assert attention_grid(tiles, num_tokens=100, num_requests=0, num_kv_heads=2) == (0, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_size", [1, 80, 256, 4000])
def test_row_tiles(architecture, head_size):
    tiles = row_tiles(architecture, head_size=head_size)
    assert tiles.block_d >= head_size
    (programs,) = row_grid(tiles, 1000)
    assert programs * tiles.block_rows >= 1000 > (programs - 1) * tiles.block_rows


def test_an_unlimited_edge_is_farther_than_any_sequence_is_long():
    assert distance(-1) == 2**31 - 1
    assert distance(0) == 0
    assert distance(7) == 7


def plan(architecture="sm90", **changed):
    call = {
        "compute_units": 132,
        "itemsize": 2,
        "head_size": 128,
        "num_heads": 32,
        "num_kv_heads": 8,
        "num_tokens": 1,
        "num_requests": 1,
        "max_query_len": 1,
        "max_seq_len": 131072,
        "batch_invariant": False,
    }
    return attention_plan(architecture, **(call | changed))


def test_one_long_request_fills_the_device():
    for architecture, compute_units in (("sm90", 132), ("gfx942", 304), ("gfx1201", 64)):
        assert plan(architecture, compute_units=compute_units).num_programs >= compute_units


def test_what_fills_the_device_or_is_short_is_not_split():
    assert plan(num_tokens=256, num_requests=256).splits == 1
    assert plan(max_seq_len=200).splits == 1
    assert plan(num_tokens=8192, max_query_len=8192).splits == 1
    assert plan(num_tokens=16, num_requests=1, max_query_len=16).splits > 1, "a short extend"


def test_batch_invariant_plans_depend_on_shapes_of_the_layer_alone():
    plans = [
        plan(batch_invariant=True, num_tokens=num_tokens, max_query_len=max_query_len, max_seq_len=max_seq_len)
        for num_tokens, max_query_len, max_seq_len in ((1, 1, 1 << 17), (4096, 4096, 4096), (64, 1, 300))
    ]
    assert {plan.splits for plan in plans} == {1}
    assert len({plan.tiles for plan in plans}) == 1


def test_scratch_of_a_split_is_small():
    """At most what two waves of programs leave behind, whatever the batch."""
    worst = max(
        plan(num_tokens=n * q, num_requests=n, max_query_len=q, head_size=256, max_seq_len=1 << 20).scratch_bytes
        for n in range(1, 300)
        for q in (1, 4, 16, 64)
    )
    assert 0 < worst < 32 * 2**20
    assert plan(num_tokens=256, num_requests=256).scratch_bytes == 0


def test_strides_are_counted_in_16_bytes_where_all_are_multiples():
    assert in_units(2, row=64, head=8) == (8, {"row": 8, "head": 1})
    assert in_units(4, row=64, head=4, kv=0) == (4, {"row": 16, "head": 1, "kv": 0})
    assert in_units(2, row=64, head=12) == (1, {"row": 64, "head": 12})
