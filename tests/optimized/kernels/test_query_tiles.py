"""Which queries a tile holds: every query in one tile, and no request that is not there."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from attn_optimized.kernels.query_tiles import REQUESTS_AT_ONCE, find_tile

QUERIES = 12
MANY = [r * 5 % 31 for r in range(REQUESTS_AT_ONCE.value + 9)]


@triton.jit
def find_all(found_ptr, query_start_loc_ptr, num_requests, queries_per_tile, one_tile_per_request):
    tile = tl.program_id(0)
    request, first_row, query_len, first_query, end_query = find_tile(
        query_start_loc_ptr, num_requests, queries_per_tile, one_tile_per_request, tile
    )
    tl.store(found_ptr + tile * 5, request)
    tl.store(found_ptr + tile * 5 + 1, first_row)
    tl.store(found_ptr + tile * 5 + 2, query_len)
    tl.store(found_ptr + tile * 5 + 3, first_query)
    tl.store(found_ptr + tile * 5 + 4, end_query)


def tiles(starts, num_tiles, device, *, one_tile_per_request=False):
    """The request and rows that each tile finds; starts that are not there are negative."""
    there = torch.full((len(starts) + 2,), -(2**20), dtype=torch.int32, device=device)
    there[1:-1] = torch.tensor(starts)
    found = torch.zeros(num_tiles, 5, dtype=torch.int64, device=device)
    find_all[(num_tiles,)](found, there[1:-1], len(starts) - 1, QUERIES, int(one_tile_per_request))
    return found.tolist()


@pytest.mark.parametrize("query_lens", [[1], [12, 12], [0, 25, 0, 1, 0], [11, 25, 0, 1], [0, 0, 36], MANY], ids=str)
def test_every_query_is_in_one_tile(query_lens, device):
    starts = [0, *itertools.accumulate(query_lens)]
    num_tiles = -(-starts[-1] // QUERIES) + len(query_lens) - 1
    rows = []
    for request, first_row, query_len, first_query, end_query in tiles(starts, num_tiles, device):
        assert (first_row, query_len) == (starts[request], query_lens[request])
        rows += range(first_row + first_query, first_row + end_query)
    assert sorted(rows) == list(range(starts[-1]))


def test_each_request_can_have_one_tile(device):
    """Tile r is request r's, and holds all of its queries."""
    starts = [0, 3, 3, 15, 16]
    found = tiles(starts, 4, device, one_tile_per_request=True)
    assert found == [[0, 0, 3, 0, 3], [1, 3, 0, 0, 0], [2, 3, 12, 0, 12], [3, 15, 1, 0, 1]]


@pytest.mark.parametrize("starts", [[900, 903, 908], [100, 3, 8], [2**31 - 1, 0, 3], [-500, -400, 9], [5, 0, -7]], ids=str)
def test_unchecked_starts_lead_to_no_other_request(starts, device):
    assert {request for request, *_ in tiles(starts, 7, device)} <= {0, 1}
