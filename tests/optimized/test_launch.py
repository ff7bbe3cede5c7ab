"""Tile sizes and grids, on any machine."""

import itertools

import pytest
from attn_contract import UnsupportedError
from attn_optimized.launch import attention_grid, attention_tiles, in_units, row_grid, row_tiles, window_bounds

ARCHITECTURES = ("interpreter", "sm90", "gfx942", "gfx1201")
HEAD_SIZES = (1, 16, 40, 64, 80, 96, 128, 256)
GROUPS = (1, 2, 3, 5, 7, 8, 16, 64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_hold_whole_groups_and_heads(architecture):
    for itemsize, head_size, group, max_query_len in itertools.product((2, 4), HEAD_SIZES, GROUPS, (0, 1, 5, 4096)):
        tiles = attention_tiles(architecture, itemsize=itemsize, head_size=head_size, group=group, max_query_len=max_query_len)
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
        attention_tiles("sm90", itemsize=2, head_size=128, group=group, max_query_len=n).block_m
        for group in (1, 2, 3, 5, 7, 8, 16)
        for n in range(300)
    }
    assert sizes == {16, 64}


def test_the_interpreter_takes_several_tiles_for_a_few_hundred_tokens():
    tiles = attention_tiles("interpreter", itemsize=4, head_size=64, group=4, max_query_len=200)
    assert 200 / tiles.queries > 3
    assert 200 / tiles.block_n > 3


@pytest.mark.parametrize("changed", [{"head_size": 257}, {"group": 65}])
def test_too_large_for_a_tile(changed):
    with pytest.raises(UnsupportedError, match=r"attn_optimized: .*25[67]|attn_optimized: 65 .*64"):
        attention_tiles("sm90", **({"itemsize": 2, "head_size": 64, "group": 4, "max_query_len": 1} | changed))


@pytest.mark.parametrize("query_lens", [[1] * 9, [0, 0, 0], [13], [12, 12], [11, 25, 0, 1], [13, 13, 13]])
def test_grid_has_a_tile_for_every_query(query_lens):
    """The rule of kernels/query_tiles.py: request r starts at tile query_start_loc[r] // queries + r."""
    tiles = attention_tiles("interpreter", itemsize=4, head_size=64, group=5, max_query_len=1)
    assert tiles.queries == 12
    num_tiles, num_kv_heads = attention_grid(tiles, num_tokens=sum(query_lens), num_requests=len(query_lens), num_kv_heads=2)
    assert num_kv_heads == 2
    starts = [0, *itertools.accumulate(query_lens)]
    first_tiles = [start // 12 + r for r, start in enumerate(starts)]
    for r, query_len in enumerate(query_lens):
        end = first_tiles[r] + -(-query_len // 12)
        assert end <= (first_tiles[r + 1] if r + 1 < len(query_lens) else num_tiles)


def test_no_request_no_program():
    tiles = attention_tiles("sm90", itemsize=2, head_size=64, group=1, max_query_len=0)
    assert attention_grid(tiles, num_tokens=100, num_requests=0, num_kv_heads=2) == (0, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_size", [1, 80, 256, 4000])
def test_row_tiles(architecture, head_size):
    tiles = row_tiles(architecture, head_size=head_size)
    assert tiles.block_d >= head_size
    (programs,) = row_grid(tiles, 1000)
    assert programs * tiles.block_rows >= 1000 > (programs - 1) * tiles.block_rows


def test_window_bounds():
    unlimited = 2**31 - 1
    assert window_bounds((-1, -1), causal=False) == (unlimited, unlimited)
    assert window_bounds((-1, -1), causal=True) == (unlimited, 0)
    assert window_bounds((0, 7), causal=False) == (0, 7)
    assert window_bounds((3, 7), causal=True) == (3, 0)


def test_strides_are_counted_in_16_bytes_where_all_are_multiples():
    assert in_units(2, row=64, head=8) == {"STRIDE_UNIT": 8, "row": 8, "head": 1}
    assert in_units(4, row=64, head=4, kv=0) == {"STRIDE_UNIT": 4, "row": 16, "head": 1, "kv": 0}
    assert in_units(2, row=64, head=12) == {"STRIDE_UNIT": 1, "row": 64, "head": 12}
