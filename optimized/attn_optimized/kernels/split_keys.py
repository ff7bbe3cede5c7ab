"""How the keys of a tile of queries are cut into parts, by the lengths that the device knows.

The host knows at most an upper bound of the lengths, and a captured graph is replayed with other lengths. If no request is much
longer than the others, keys are cut into few parts, so many that all programs run in whole waves; else into many. Parts of few
keys are worth a program only as long as the GPU has room for it.
"""

import triton
import triton.language as tl
from triton import knobs

# few under the interpreter, where batches are small: the loop over them is to turn more than once
LENGTHS_AT_ONCE = tl.constexpr(4 if knobs.runtime.interpret else 128)


@triton.jit
def tiles_of_part(
    seq_lens_ptr,
    num_requests,
    num_splits,
    balanced_splits,
    filling_splits,
    min_tiles_per_split,
    max_tiles,
    BLOCK_N: tl.constexpr,
):
    """Tiles of keys of a part.

    Args:
        num_splits: parts of the longest request.
        balanced_splits: its parts where it is no longer than 5/4 of the average.
        filling_splits: parts that fill the GPU at once.
        min_tiles_per_split: the fewest tiles worth a part beyond those.
        max_tiles: an upper bound of the tiles that a tile of queries sees, by what the host knows.
    """
    longest = 0
    total = tl.full((), 0, tl.int64)
    # at least once: no keys are split without requests
    for first in range(0, num_requests, LENGTHS_AT_ONCE):
        request = first + tl.arange(0, LENGTHS_AT_ONCE)
        seq_len = tl.load(seq_lens_ptr + request, mask=request < num_requests, other=0)
        longest = tl.maximum(longest, tl.max(seq_len, 0))
        total += tl.sum(seq_len.to(tl.int64), 0)
    is_balanced = longest.to(tl.int64) * num_requests * 4 <= total * 5
    parts = tl.where(is_balanced, balanced_splits, num_splits)
    tiles = tl.minimum(tl.cdiv(longest, BLOCK_N), max_tiles)
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
