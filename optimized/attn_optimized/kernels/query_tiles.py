"""How the query rows of a ragged batch are cut into tiles, without a plan made on the host.

Request r needs `ceil(query_len / queries_per_tile)` tiles, so its first one can be
`query_start_loc[r] // queries_per_tile + r`: room enough for everybody before it, and a binary search finds the way back.
"""

import triton
import triton.language as tl


@triton.jit
def find_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile):
    """The request that a tile belongs to, its first row, its query length, and the tile's first and end query in it."""
    request = tl.full((), 0, tl.int64)
    end = num_requests.to(tl.int64)
    while request + 1 < end:
        middle = (request + end) // 2
        first_tile = tl.load(query_start_loc_ptr + middle).to(tl.int64) // queries_per_tile + middle
        if first_tile <= tile:
            request = middle
        else:
            end = middle
    first_row = tl.load(query_start_loc_ptr + request).to(tl.int64)
    query_len = tl.load(query_start_loc_ptr + request + 1).to(tl.int64) - first_row
    first_query = (tile - request - first_row // queries_per_tile) * queries_per_tile
    end_query = tl.minimum(first_query + queries_per_tile, query_len)
    return request, first_row, query_len, first_query, end_query
