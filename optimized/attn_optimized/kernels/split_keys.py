"""Cuts the keys of a tile of queries into parts (split-KV), on the device.

The host knows only an upper bound of the lengths, and a captured graph is replayed with other lengths.

Keys are cut by length where most requests have one tile of queries. If no request is much longer than the others, the number of
parts is small, and fills whole waves of programs; otherwise it is large. A part of few keys is worth a program only while the
GPU has room for it. Keys are cut by work where requests have several tiles of queries: a part is a share of the work of all
tiles, and nothing is cut if no tile has much more work than a share."""

import triton
import triton.language as tl
from triton import knobs

# The most requests whose lengths are read: a loop over more would cost registers in the loops over keys. The interpreter
# reads only 4, so that some small batches of tests have more requests than that.
MAX_LENGTHS = tl.constexpr(4 if knobs.runtime.interpret else 512)
# keys are split if a tile has more than this number of shares of the work; 1 under the interpreter, whose sequences are short
SHARES_OF_LONGEST = tl.constexpr(1 if knobs.runtime.interpret else 4)


@triton.jit
def tiles_of_part(
    query_start_loc_ptr,
    seq_lens_ptr,
    num_requests,
    queries_per_tile,
    num_splits,
    balanced_splits,
    filling_splits,
    work_shares,
    min_tiles_per_split,
    max_tiles,
    BLOCK_N: tl.constexpr,
):
    """The number of tiles of keys in a part.

    Args:
        num_splits: the number of parts of the longest request.
        balanced_splits: that number if the longest request has at most 5/4 of the average length.
        filling_splits: the number of parts that fill the GPU at once.
        work_shares: shares of the work of all tiles of queries, for the heads that one program has; 0: keys are cut by length.
        min_tiles_per_split: the fewest tiles of a part if there are more than filling_splits parts, and of a share of the work.
        max_tiles: the host's upper bound of the tiles of keys that a tile of queries sees.
        BLOCK_N: the number of tokens in a tile of keys.
    """
    request = tl.arange(0, MAX_LENGTHS)
    is_request = request < num_requests
    seq_len = tl.load(seq_lens_ptr + request, mask=is_request, other=0)
    longest = tl.max(seq_len, 0)
    tiles = tl.minimum(tl.cdiv(longest, BLOCK_N), max_tiles)
    parts = num_splits
    if work_shares > 0:
        first_row = tl.load(query_start_loc_ptr + request, mask=is_request, other=0)
        query_len = tl.load(query_start_loc_ptr + request + 1, mask=is_request, other=0) - first_row
        # the middle one of causal queries sees the average number of keys
        tiles_seen = tl.minimum(tl.cdiv(seq_len - query_len // 2, BLOCK_N), max_tiles)
        work = tl.sum(tl.cdiv(query_len, queries_per_tile).to(tl.int64) * tiles_seen, 0)
        share = tl.maximum(tl.cdiv(work, work_shares), min_tiles_per_split)
        fewest = tl.where(tiles > share * SHARES_OF_LONGEST, share, tl.maximum(tiles, 1)).to(tl.int32)
    else:
        num_lengths = tl.minimum(num_requests, MAX_LENGTHS)
        if longest.to(tl.int64) * num_lengths * 4 <= tl.sum(seq_len.to(tl.int64), 0) * 5:
            parts = balanced_splits
        fewest = tl.minimum(tl.maximum(tl.cdiv(tiles, filling_splits), 1), min_tiles_per_split)
    return tl.maximum(tl.cdiv(tiles, parts), fewest)


@triton.jit
def tiles_of_split(split, num_tiles, sizes, writes_output):
    """Tiles [begin, end) of a split, and whether they are a part that must be reduced (False: they are all of the keys)."""
    # if values are not checked, a length may be above the host's bound
    tiles_per_split = tl.maximum(sizes.tiles_per_split, tl.cdiv(num_tiles, sizes.num_splits))
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, num_tiles)
    return begin, end, (writes_output == 0) | (num_tiles > tiles_per_split)
