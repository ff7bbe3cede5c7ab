"""Where an element of one head's K or V lies inside its page. Offsets count elements.

INTERIOR is "rows" (each slot a dense row of dims, STRIDE_UNIT * stride_slot apart), "x_packed" or "shuffled". In the latter two
a page is dense: K is [D/x, BS, x] in both, V is [D, BS] or [BS/x, D, x], with X = x elements in 16 bytes.
"""

import triton
import triton.language as tl


@triton.jit
def key_offset(slot, dim, block_size, stride_slot, STRIDE_UNIT: tl.constexpr, X: tl.constexpr, INTERIOR: tl.constexpr):
    """Of K's element (slot, dim); the two broadcast."""
    packed_dim = dim.to(tl.int64) // X * block_size
    return slot * stride_slot * STRIDE_UNIT + dim if INTERIOR == "rows" else (packed_dim + slot) * X + dim % X


@triton.jit
def value_offset(
    slot,
    dim,
    block_size,
    stride_slot,
    STRIDE_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    X: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    """Of V's element (slot, dim); the two broadcast."""
    if INTERIOR == "rows":
        offset = slot * stride_slot * STRIDE_UNIT + dim
    elif INTERIOR == "x_packed":
        offset = dim.to(tl.int64) * block_size + slot
    else:
        offset = (slot // X * HEAD_SIZE + dim) * X + slot % X
    return offset
