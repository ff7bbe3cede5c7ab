"""Cuts the query rows of a ragged batch into tiles, without a plan made on the host.

If no request has more queries than a tile, each request has one tile. Else request r needs `ceil(query_len / queries_per_tile)`
tiles, and its first tile is `query_start_loc[r] // queries_per_tile + r`. That leaves room for the tiles of all requests before
it. First tiles rise with the request, so a tile belongs to the last request whose first tile is not above it.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from triton import knobs

# only 4 under the interpreter, where batches are small, so that the loop over requests has more than one iteration
REQUESTS_AT_ONCE = tl.constexpr(4 if knobs.runtime.interpret else 256)


class Tile(NamedTuple):
    """The work of one program: queries [first_query, end_query) of a request, for query heads of one KV head.

    The tile has all query heads of that KV head, or the heads of group `head_group` of the grid if its rows are too few for
    all.
    """

    request: tl.tensor
    head_group: tl.tensor
    kv_head: tl.tensor
    split: tl.tensor
    seq_len: tl.tensor
    first_row: tl.tensor
    query_len: tl.tensor
    first_query: tl.tensor
    end_query: tl.tensor
    hidden_zero: tl.tensor


class Rows(NamedTuple):
    """The rows of a tile, [M] each: the query in its request, the head, the row of q, and whether the tile has such a row."""

    query: tl.tensor
    head: tl.tensor
    row: tl.tensor
    owned: tl.tensor


@triton.jit
def find_tile(query_start_loc_ptr, num_requests, queries_per_tile, one_tile_per_request, tile):
    """The request that a tile belongs to, its first row, its query length, and the tile's first and end query in it."""
    if one_tile_per_request:  # noqa: SIM108
        request = tile
    else:
        request = request_of_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile)
    first_row = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - first_row
    first_query = 0
    if one_tile_per_request == 0:
        first_query = (tile - request - first_row // queries_per_tile) * queries_per_tile  # int32: a query of its request
    end_query = tl.minimum(first_query + queries_per_tile, query_len)
    # int64: multiplied by strides
    return (
        request.to(tl.int64),
        first_row.to(tl.int64),
        query_len.to(tl.int64),
        first_query.to(tl.int64),
        end_query.to(tl.int64),
    )


@triton.jit
def request_of_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile):
    """The last request whose first tile is not above a tile.

    All requests are loaded at once, because each step of a binary search would wait for memory.
    """
    request = -1
    # at least once: without requests no program is launched
    for first in range(0, num_requests, REQUESTS_AT_ONCE):
        candidate = first + tl.arange(0, REQUESTS_AT_ONCE)
        row = tl.load(query_start_loc_ptr + candidate, mask=candidate < num_requests, other=0)
        begins = (candidate < num_requests) & (row // queries_per_tile + candidate <= tile)
        request += tl.sum(begins.to(tl.int32), 0)
    # if values are not checked, the first request may begin after all tiles
    request = tl.maximum(request, 0)
    return request  # noqa: RET504


@triton.jit
def rows_of_tile(tile, sizes, first, KIND: tl.constexpr, BLOCK_M: tl.constexpr):
    """The tile's rows, from row `first` on."""
    tile_row = first + tl.arange(0, BLOCK_M)
    tile_query = (tile_row * sizes.inverse_heads_per_group) >> 16  # int32: a row of a tile, times 2^16 at most
    query = tile.first_query.to(tl.int32) + tile_query
    head = (
        tile.head_group.to(tl.int32) * sizes.heads_per_group  # int32: a head
        + (tile_row - tile_query * sizes.heads_per_group)  # int32: a head of the group
    )
    row = tile.first_row.to(tl.int32) + query
    # outputs are written to these rows: lengths that were not checked must not reach beyond them
    owned = (query < tile.end_query.to(tl.int32)) & (row >= 0) & (row < sizes.num_tokens)
    if KIND.groups_per_kv_head > 1:
        # the last group of a KV head may have fewer heads than the others
        missing = KIND.groups_per_kv_head * sizes.heads_per_group - KIND.heads_per_kv_head  # int32: heads
        head -= tile.kv_head.to(tl.int32) * missing  # int32: a head
        owned &= head < (tile.kv_head.to(tl.int32) + 1) * KIND.heads_per_kv_head  # int32: heads
    return Rows(query, head, row, owned)


@triton.jit
def hidden_zero(query_start_loc_ptr, request, first_row):
    """A 0 that the compiler cannot see: a number that is loaded twice, minus itself. See `recomputed_rows`."""
    return tl.load(query_start_loc_ptr + request, volatile=True) - first_row.to(tl.int32)


@triton.jit
def recomputed_rows(tile, sizes, KIND: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows of `rows_of_tile`, computed again after the loops over keys.

    A compiler that sees the same computation twice keeps the first result in registers of every thread, here through the loops.
    So these rows begin at a hidden zero. On sm90 a split decode needs 226 registers with it and 238 without (Triton 3.9); on
    gfx942 the loops need about the same number in both cases.
    """
    return rows_of_tile(tile, sizes, tile.hidden_zero, KIND, BLOCK_M)
