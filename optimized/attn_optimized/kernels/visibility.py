"""Which keys a query sees.

Each rule is one function of a position, scalar or tensor, that gives keys [begin, end) (empty if `end <= begin`). Both ends
rise with the position, so what a tile of queries sees together lies between the begin of its first position and the end of its
last, and what each of them sees between the begin of the last and the end of the first: then the two change places. An
unlimited edge is a distance greater than any sequence is long.
"""

import triton
import triton.language as tl


@triton.jit
def in_window(first_position, last_position, left, right, seq_len):
    """Keys within a window's edges; a causal mask is a right edge of 0."""
    return tl.maximum(first_position - left, 0), tl.minimum(last_position + right + 1, seq_len)


@triton.jit
def in_chunk(first_position, last_position, chunk, seq_len):
    """Keys of the query's own chunk of positions; chunk 0 is off. Positions before the sequence are in no key's chunk."""
    size = tl.maximum(chunk, 1)
    begin = tl.where(chunk > 0, tl.maximum(first_position, 0) // size * size, 0)
    end = tl.where(chunk > 0, tl.where(last_position < 0, 0, (last_position // size + 1) * size), seq_len)
    return begin, tl.minimum(end, seq_len)


@triton.jit
def num_keys(begin, end):
    """In [begin, end), without a sign."""
    return tl.maximum(end - begin, 0).to(tl.uint32)


@triton.jit
def among(key, begin, num_keys):
    """[M, N]: which keys [N] are of the first `num_keys` [M] from `begin` [M] on."""
    # in one comparison: what is before the first key is a large number without a sign
    return (key[None, :] - begin.to(tl.int32)[:, None]).to(tl.uint32, bitcast=True) < num_keys[:, None]


@triton.jit
def in_any_range(visible, position, owned, key, ranges_ptr, num_ranges, range_left, seq_len):
    """`visible`, and keys that lie with their query in one of the request's bidirectional ranges.

    Shapes: [M, N], [M], [M], [N].
    """
    for _ in range(num_ranges):
        first = tl.load(ranges_ptr).to(tl.int64)
        last = tl.load(ranges_ptr + 1).to(tl.int64)
        ranges_ptr += 2
        query_in_range = (first <= position) & (position <= last)
        begin = tl.maximum(tl.maximum(first, position.to(tl.int64) - range_left), 0)
        end = tl.where(query_in_range & owned, tl.minimum(last + 1, seq_len), 0)
        visible = visible | among(key, begin, num_keys(begin, end))
    return visible


@triton.jit
def with_ranges(begin, end, first_position, last_position, ranges_ptr, num_ranges, range_left, seq_len):
    """Keys [begin, end) of a tile of queries, widened to what the ranges that it touches show it."""
    for _ in range(num_ranges):
        first = tl.load(ranges_ptr).to(tl.int64)
        last = tl.load(ranges_ptr + 1).to(tl.int64)
        ranges_ptr += 2
        touched = (first <= last_position) & (first_position <= last) & (first <= last)
        shown = tl.maximum(tl.maximum(first, first_position - range_left), 0)
        begin = tl.where(touched, tl.minimum(begin, shown), begin)
        end = tl.where(touched, tl.maximum(end, tl.minimum(last + 1, seq_len)), end)
    return begin, end
