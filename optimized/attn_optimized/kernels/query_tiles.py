"""How the query rows of a ragged batch are cut into tiles, without a plan made on the host.

Where no request has more queries than a tile, each has one. Else request r needs `ceil(query_len / queries_per_tile)` tiles, so
its first one can be `query_start_loc[r] // queries_per_tile + r`: room enough for everybody before it. These numbers rise, and
the request of a tile is the last whose number is not above it.
"""

import triton
import triton.language as tl

REQUESTS_AT_ONCE = tl.constexpr(256)


@triton.jit
def find_tile(query_start_loc_ptr, num_requests, queries_per_tile, one_each, tile):
    """The request that a tile belongs to, its first row, its query length, and the tile's first and end query in it."""
    if one_each:
        request = tile
    else:
        # all at once: each step of a binary search would wait for memory
        request = -1
        for first in range(0, num_requests, REQUESTS_AT_ONCE):
            candidate = first + tl.arange(0, REQUESTS_AT_ONCE)
            row = tl.load(query_start_loc_ptr + candidate, mask=candidate < num_requests, other=0)
            begins = (candidate < num_requests) & (row // queries_per_tile + candidate <= tile)
            request += tl.sum(begins.to(tl.int32), 0)
        # unchecked, the first request may begin behind all tiles
        request = tl.maximum(request, 0)
    first_row = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - first_row
    first_query = 0
    if one_each == 0:
        first_query = (tile - request - first_row // queries_per_tile) * queries_per_tile
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
def rows_of_tile(first_row, first_query, end_query, kv_head, num_tokens, group, group_inverse, first, BLOCK_M: tl.constexpr):
    """Of a tile's rows, from `first` on: the query of the request, the head, the row of q, and whether it is the tile's own."""
    tile_row = first + tl.arange(0, BLOCK_M)
    tile_query = (tile_row * group_inverse) >> 16
    query = first_query.to(tl.int32) + tile_query
    head = kv_head.to(tl.int32) * group + (tile_row - tile_query * group)
    row = first_row.to(tl.int32) + query
    # rows are where outputs are written: unchecked lengths must not reach beyond them
    owned = (query < end_query.to(tl.int32)) & (row >= 0) & (row < num_tokens)
    return query, head, row, owned
