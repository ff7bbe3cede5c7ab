"""How the keys of a tile of queries are cut into parts, by the lengths that the device knows.

The host knows an upper bound of them at most, and a captured graph is replayed with other lengths. Requests of much the same
length are cut into few parts, so many that all programs run in whole waves; what is longer than most is cut finely.
"""

import triton
import triton.language as tl

LENGTHS_AT_ONCE = tl.constexpr(128)


@triton.jit
def tiles_of_part(seq_lens_ptr, num_requests, num_splits, even_splits, least_tiles, most_tiles, BLOCK_N: tl.constexpr):
    """Tiles of keys of a part.

    Args:
        num_splits, even_splits: parts of the longest request; the second where none is longer than the average by more than a
            quarter.
        least_tiles: worth a part.
        most_tiles: that a tile of queries sees, by what the host knows.
    """
    longest = 0
    total = tl.full((), 0, tl.int64)
    for first in range(0, num_requests, LENGTHS_AT_ONCE):
        request = first + tl.arange(0, LENGTHS_AT_ONCE)
        seq_len = tl.load(seq_lens_ptr + request, mask=request < num_requests, other=0)
        longest = tl.maximum(longest, tl.max(seq_len, 0))
        total += tl.sum(seq_len.to(tl.int64), 0)
    is_even = longest.to(tl.int64) * num_requests * 4 <= total * 5
    parts = tl.where(is_even, even_splits, num_splits)
    return tl.maximum(tl.cdiv(tl.minimum(tl.cdiv(longest, BLOCK_N), most_tiles), parts), least_tiles)
