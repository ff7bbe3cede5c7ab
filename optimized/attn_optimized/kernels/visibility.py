"""The mask: which keys a query sees.

    (in its window, or a sink token) and in its chunk and not too far ahead, or in a range with it; and no bias of -inf

Three functions compose the rules: `seen_keys`, for the keys that some query of a tile sees and for those that each row sees;
`keys_seen_by_all`, for the keys that need no mask; and `visible_keys`, for the mask.

A rule that leaves an interval of keys [begin, end), empty if `end <= begin`, is a function of two positions, scalars or
tensors: it returns the beginning for the first and the end for the second. Both rise with the position. So a query sees the
interval of (its position, its position). Some query of a tile sees at most the interval of (first position, last position), and
every query of the tile sees the interval of (last position, first position).

An unlimited edge is a distance greater than any sequence is long.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Rules(NamedTuple):
    """The numbers of all rules. This module reads the rules of visibility, and logits.py those of logits."""

    scale: tl.tensor
    logits_soft_cap: tl.tensor
    window_left: tl.tensor
    window_right: tl.tensor
    max_ahead: tl.tensor
    range_left: tl.tensor
    sink_tokens: tl.tensor
    chunked_local: tl.tensor
    num_ranges: tl.tensor
    qq_bias_len: tl.tensor


class Positions(NamedTuple):
    """Positions of a tile's first query, its last query and each of its rows [M], and of the request's first query.

    Where several tokens share a key, a query stands at the last key that it sees, and -1 if it sees none.
    """

    first: tl.tensor
    last: tl.tensor
    each: tl.tensor
    context_len: tl.tensor


class SeenBySome(NamedTuple):
    """Keys that some query of a tile sees: [begin, end), and whole tiles of sink tokens before that."""

    begin: tl.tensor
    end: tl.tensor
    first_sink_tile: tl.tensor
    num_sink_tiles: tl.tensor


class SeenByEach(NamedTuple):
    """[M] each: the position of a row's query, the keys of its window, and the limits of the keys that other rules add."""

    position: tl.tensor
    window_begin: tl.tensor
    window_len: tl.tensor
    limit_begin: tl.tensor
    limit_len: tl.tensor


@triton.jit
def positions_of(tile, rows, KIND: tl.constexpr):
    """The positions of a tile of queries."""
    context_len = tile.seq_len - tile.query_len
    return Positions(
        first=last_key(context_len + tile.first_query, KIND),
        last=last_key(context_len + tile.end_query - 1, KIND),
        each=last_key(context_len + rows.query, KIND),
        context_len=context_len,
    )


@triton.jit
def last_key(position, KIND: tl.constexpr):
    """The last key that is complete at a position, -1 for none: the position itself, unless several tokens share a key."""
    if KIND.key_unit > 1:
        position = tl.maximum(position + 1, 0) // KIND.key_unit - 1
    return position


@triton.jit
def seen_keys(tile, rows, positions, args, KIND: tl.constexpr):
    """Keys that some query of a tile sees, and the numbers that decide which of them each row sees."""
    rules, seq_len, first, last, each = args.rules, tile.seq_len, positions.first, positions.last, positions.each
    begin, end = in_window(first, last, rules, seq_len)
    window_begin, window_end = in_window(each, each, rules, seq_len)
    window_begin, window_len = window_begin.to(tl.int32), num_keys(window_begin, window_end)
    first_sink_tile, num_sink_tiles = 0, 0
    limit_begin, limit_len = window_begin, window_len
    if KIND.has_other_masks:
        chunk_begin, chunk_end = in_chunk(first, last, rules, not_ahead(last, rules, seq_len))
        begin, end = tl.maximum(begin, chunk_begin), tl.minimum(end, chunk_end)
        begin, end = with_ranges(begin, end, tile, positions, args)
        sink_end = tl.minimum(chunk_end, rules.sink_tokens)
        end = tl.where(chunk_begin < sink_end, tl.maximum(end, sink_end), end)
        first_sink_tile = chunk_begin // KIND.block_n
        end_sink_tile = tl.minimum(tl.cdiv(sink_end, KIND.block_n), begin // KIND.block_n)
        num_sink_tiles = tl.maximum(end_sink_tile - first_sink_tile, 0)
        limit_begin, limit_end = in_chunk(each, each, rules, not_ahead(each, rules, seq_len))
        limit_len = num_keys(limit_begin, tl.where(rows.owned, limit_end, 0))
        limit_begin = limit_begin.to(tl.int32)
    seen_by_some = SeenBySome(begin, end, first_sink_tile, num_sink_tiles)
    return seen_by_some, SeenByEach(each.to(tl.int32), window_begin, window_len, limit_begin, limit_len)


@triton.jit
def keys_seen_by_all(tile, positions, rules, KIND: tl.constexpr):
    """Keys [begin, end) that every query of a tile sees. Keys that sink tokens and ranges add are left out."""
    begin, end = in_window(positions.last, positions.first, rules, tile.seq_len)
    if KIND.has_other_masks:
        chunk_begin, end = in_chunk(positions.last, positions.first, rules, end)
        begin = tl.maximum(begin, chunk_begin)
        if KIND.has_bias:
            # qq_bias may hide keys of the step's own tokens
            end = tl.where(rules.qq_bias_len > 0, tl.minimum(end, positions.context_len), end)
    return begin, end


@triton.jit
def visible_keys(tile, rows, seen, key, in_tile, bias, args, KIND: tl.constexpr, MASKED: tl.constexpr):
    """[M, N] which keys each row sees, and [N] which keys are loaded. If not MASKED, all are loaded, and the first is no mask.

    Args:
        in_tile: [N], keys that some query may see.
        bias: [M, N], added to logits.
    """
    visible = in_tile
    if MASKED:
        visible = among(key, seen.window_begin, seen.window_len)
        if KIND.has_other_masks:
            visible = visible | (key < args.rules.sink_tokens)[None, :]
            visible = visible & among(key, seen.limit_begin, seen.limit_len)
            visible = in_any_range(visible, tile, rows, seen.position, key, args)
            if KIND.has_bias:
                visible = visible & (bias > float("-inf"))
            in_tile = tl.max(visible.to(tl.int32), 0) > 0
    return visible, in_tile


@triton.jit
def in_window(begin_position, end_position, rules, seq_len):
    """Keys within a window's edges; a causal mask is a right edge of 0."""
    right = tl.minimum(rules.window_right, rules.max_ahead)
    return tl.maximum(begin_position - rules.window_left, 0), tl.minimum(end_position + right + 1, seq_len)


@triton.jit
def not_ahead(position, rules, seq_len):
    """The end of the keys that causality leaves, independent of the window."""
    return tl.minimum(seq_len, position + rules.max_ahead + 1)


@triton.jit
def in_chunk(begin_position, end_position, rules, end_key):
    """Keys below `end_key` in the query's chunk of positions. A query before the sequence has none; chunked_local 0 is off."""
    size = tl.maximum(rules.chunked_local, 1)
    begin = tl.where(rules.chunked_local > 0, tl.maximum(begin_position, 0) // size * size, 0)
    end = tl.where(rules.chunked_local > 0, tl.where(end_position < 0, 0, (end_position // size + 1) * size), end_key)
    return begin, tl.minimum(end, end_key)


@triton.jit
def num_keys(begin, end):
    """The number of keys [begin, end), as an unsigned number."""
    return tl.maximum(end - begin, 0).to(tl.uint32)


@triton.jit
def among(key, begin, num_keys):
    """[M, N]: which keys [N] are among the `num_keys` [M] keys that start at `begin` [M]."""
    # one unsigned comparison: a negative difference is a large unsigned number
    return (key[None, :] - begin.to(tl.int32)[:, None]).to(tl.uint32, bitcast=True) < num_keys[:, None]


@triton.jit
def in_any_range(visible, tile, rows, position, key, args):
    """[M, N]: `visible`, or the key [N] lies in one of the request's bidirectional ranges together with the row's query."""
    ranges_ptr = args.tensors.bidirectional_ranges_ptr + tile.request * args.rules.num_ranges * 2
    for _ in range(args.rules.num_ranges):
        first = tl.load(ranges_ptr).to(tl.int64)
        last = tl.load(ranges_ptr + 1).to(tl.int64)
        ranges_ptr += 2
        query_in_range = (first <= position) & (position <= last)
        begin = tl.maximum(tl.maximum(first, position.to(tl.int64) - args.rules.range_left), 0)
        end = tl.where(query_in_range & rows.owned, tl.minimum(last + 1, tile.seq_len), 0)
        visible = visible | among(key, begin, num_keys(begin, end))
    return visible


@triton.jit
def with_ranges(begin, end, tile, positions, args):
    """Keys [begin, end) of a tile of queries, and what the ranges that one of its queries lies in show it."""
    ranges_ptr = args.tensors.bidirectional_ranges_ptr + tile.request * args.rules.num_ranges * 2
    for _ in range(args.rules.num_ranges):
        first = tl.load(ranges_ptr).to(tl.int64)
        last = tl.load(ranges_ptr + 1).to(tl.int64)
        ranges_ptr += 2
        touched = (first <= positions.last) & (positions.first <= last) & (first <= last)
        shown = tl.maximum(tl.maximum(first, positions.first - args.rules.range_left), 0)
        begin = tl.where(touched, tl.minimum(begin, shown), begin)
        end = tl.where(touched, tl.maximum(end, tl.minimum(last + 1, tile.seq_len)), end)
    return begin, end
