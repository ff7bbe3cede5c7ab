"""The tiles of keys that a program visits, and those that need no mask."""

from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.selection import keys_at
from attn_optimized.kernels.visibility import keys_seen_by_all


class KeyTiles(NamedTuple):
    """The tiles of keys for a tile of queries, in the order of the loops: first those of sink tokens, then the others.

    No query sees a key outside [first_key, end_key): it may be garbage, and is not loaded.
    """

    first_key: tl.tensor
    end_key: tl.tensor
    first_tile: tl.tensor
    """tile `n` of the order is `first_tile + n`, or `first_sink_tile + n` if it is one of the sink tiles"""
    count: tl.tensor
    first_sink_tile: tl.tensor
    num_sink_tiles: tl.tensor


class Loops(NamedTuple):
    """The tiles of one split: its range [begin, end) in their order, the range that needs no mask, and KeyTiles as int32."""

    begin: tl.tensor
    end: tl.tensor
    unmasked_begin: tl.tensor
    unmasked_end: tl.tensor
    first_key: tl.tensor
    end_key: tl.tensor
    first_tile: tl.tensor
    first_sink_tile: tl.tensor
    num_sink_tiles: tl.tensor


@triton.jit
def key_tiles(seen, selection, KIND: tl.constexpr):
    """The tiles that hold the keys that some query of a tile sees, or all places of its selection."""
    if KIND.selection_unit > 0:
        first_tile = tl.full((), 0, tl.int64)
        count = tl.cdiv(selection.count.to(tl.int64) * KIND.selection_unit, KIND.block_n)
    else:
        first_tile = seen.begin // KIND.block_n - seen.num_sink_tiles
        count = tl.maximum(tl.cdiv(seen.end, KIND.block_n) - first_tile, seen.num_sink_tiles)
    return KeyTiles(seen.begin, seen.end, first_tile, count, seen.first_sink_tile, seen.num_sink_tiles)


@triton.jit
def loops_over(tiles, begin, end, tile, positions, rules, KIND: tl.constexpr):
    """The loops over tiles [begin, end) of the order."""
    unmasked_begin, unmasked_end = end, end
    if KIND.has_unmasked_loop:
        begin_key, end_key = keys_seen_by_all(tile, positions, rules, KIND)
        unmasked_begin = tl.minimum(tl.maximum(tl.cdiv(begin_key, KIND.block_n) - tiles.first_tile, begin), end)
        unmasked_end = tl.minimum(tl.maximum(end_key // KIND.block_n - tiles.first_tile, unmasked_begin), end)
    return Loops(
        begin=begin.to(tl.int32),
        end=end.to(tl.int32),
        unmasked_begin=unmasked_begin.to(tl.int32),
        unmasked_end=unmasked_end.to(tl.int32),
        first_key=tiles.first_key.to(tl.int32),
        end_key=tiles.end_key.to(tl.int32),
        first_tile=tiles.first_tile.to(tl.int32),
        first_sink_tile=tiles.first_sink_tile,
        num_sink_tiles=tiles.num_sink_tiles,
    )


@triton.jit
def keys_of_tile(i, loops, selection, KIND: tl.constexpr, MASKED: tl.constexpr):
    """The tile of step `i` of a loop: its first key, its keys [N], and whether any query may see them [N].

    With a selection, `first_key` is a place in the selection, and the keys are in any order.
    """
    n = tl.where(i < loops.unmasked_begin, i, i + loops.unmasked_end - loops.unmasked_begin) if MASKED else i
    tile = loops.first_tile + n
    if KIND.has_other_masks and MASKED and KIND.selection_unit == 0:
        tile = tl.where(n < loops.num_sink_tiles, loops.first_sink_tile + n, tile).to(tl.int32)
    first_key = tile * KIND.block_n  # int32: a key of its request
    key = first_key + tl.arange(0, KIND.block_n)
    if KIND.selection_unit > 0:
        key = keys_at(key, selection, KIND)
    return first_key, key, (loops.first_key <= key) & (key < loops.end_key)
