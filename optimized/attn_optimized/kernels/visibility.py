"""Which keys a query sees."""

import triton
import triton.language as tl


@triton.jit
def visible_keys(first_position, last_position, left, right, seq_len):
    """Keys [begin, end) that queries at positions first to last see together; empty if `end <= begin`.

    An unlimited window is one wider than any sequence, and a causal mask one that ends at the query itself. Both ends rise
    with the position, so what one row of a tile sees is this for its own position, and what the tile sees has no holes.
    """
    begin = tl.maximum(first_position - left, 0)
    end = tl.minimum(last_position + right + 1, seq_len)
    return begin.to(tl.int32), end.to(tl.int32)
