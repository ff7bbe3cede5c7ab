"""Cuts the keys of a tile of queries into parts, by the lengths that the device knows.

The host knows at most an upper bound of the lengths, and a captured graph is replayed with other lengths.

By length, where most requests have one tile: if no request is much longer than the others, keys are cut into few parts, so many
that all programs run in whole waves; else into many. Parts of few keys are worth a program only as long as the GPU has room for
it. By work, where requests have several tiles: a part takes a share of the work of all tiles, and nothing is cut if no tile has
much more than a share.
"""

import triton
import triton.language as tl
from triton import knobs

# The most requests whose lengths are read: a loop over more would cost registers in the loops over keys. The interpreter reads
# few, so that some of its small batches have more.
MOST_LENGTHS = tl.constexpr(4 if knobs.runtime.interpret else 512)
# keys are split if a tile has more than this number of shares of the work; the interpreter's sequences are short
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
    """Tiles of keys of a part.

    Args:
        num_splits: parts of the longest request.
        balanced_splits: its parts where it is no longer than 5/4 of the average.
        filling_splits: parts that fill the GPU at once.
        work_shares: shares of the work of all tiles of queries, for the heads that one program has; 0: keys are cut by length.
        min_tiles_per_split: the fewest tiles worth a part beyond those, and the fewest of a share.
        max_tiles: an upper bound of the tiles that a tile of queries sees, by what the host knows.
        BLOCK_N: tokens that a tile of keys stands for.
    """
    request = tl.arange(0, MOST_LENGTHS)
    is_request = request < num_requests
    seq_len = tl.load(seq_lens_ptr + request, mask=is_request, other=0)
    longest = tl.max(seq_len, 0)
    tiles = tl.minimum(tl.cdiv(longest, BLOCK_N), max_tiles)
    parts = num_splits
    if work_shares > 0:
        first_row = tl.load(query_start_loc_ptr + request, mask=is_request, other=0)
        query_len = tl.load(query_start_loc_ptr + request + 1, mask=is_request, other=0) - first_row
        # of causal queries, the one in the middle sees as many keys as they do on average
        tiles_seen = tl.minimum(tl.cdiv(seq_len - query_len // 2, BLOCK_N), max_tiles)
        work = tl.sum(tl.cdiv(query_len, queries_per_tile).to(tl.int64) * tiles_seen, 0)
        share = tl.maximum(tl.cdiv(work, work_shares), min_tiles_per_split)
        fewest = tl.where(tiles > share * SHARES_OF_LONGEST, share, tl.maximum(tiles, 1)).to(tl.int32)
    else:
        num_lengths = tl.minimum(num_requests, MOST_LENGTHS)
        if longest.to(tl.int64) * num_lengths * 4 <= tl.sum(seq_len.to(tl.int64), 0) * 5:
            parts = balanced_splits
        fewest = tl.minimum(tl.maximum(tl.cdiv(tiles, filling_splits), 1), min_tiles_per_split)
    return tl.maximum(tl.cdiv(tiles, parts), fewest)


@triton.jit
def tiles_of_split(split, num_tiles, sizes, writes_output):
    """Tiles [begin, end) of a split, and whether they are a part, to be reduced, rather than all of the keys."""
    # unchecked, a length may be beyond the host's bound
    tiles_per_split = tl.maximum(sizes.tiles_per_split, tl.cdiv(num_tiles, sizes.num_splits))
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, num_tiles)
    return begin, end, (writes_output == 0) | (num_tiles > tiles_per_split)
