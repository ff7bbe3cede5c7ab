"""Rotary position embedding (Su et al., arXiv:2104.09864)."""

import triton
import triton.language as tl


@triton.jit
def load_rotated(row_ptr, cos_sin_ptr, dim, loaded, ROTARY_DIM: tl.constexpr, IS_NEOX: tl.constexpr):
    """Rows of heads, rotated to their positions and rounded to their dtype; dims from ROTARY_DIM on as they are. [rows, D]

    Compile it without fusing products and sums: each is rounded to float32 by itself.

    Args:
        row_ptr, cos_sin_ptr: [rows, 1], of a row's first element, and of the ROTARY_DIM / 2 cosines of its position, which its
            sines follow.
        dim, loaded: [1, D], and [rows, D] where there is something to load.
        IS_NEOX: dims (i, i + ROTARY_DIM / 2) rotate together; else dims (2i, 2i + 1).
    """
    half: tl.constexpr = ROTARY_DIM // 2
    rotates = loaded & (dim < ROTARY_DIM)
    x = tl.load(row_ptr + dim, mask=loaded, other=0.0)
    if IS_NEOX:
        is_first, pair = dim < half, dim % half
        x_partner = tl.load(row_ptr + tl.where(is_first, dim + half, dim - half), mask=rotates, other=0.0)
    else:
        is_first, pair = dim % 2 == 0, dim // 2
        first, second = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x_partner = tl.reshape(tl.join(second, first), x.shape)
    cos = tl.load(cos_sin_ptr + pair, mask=rotates, other=0.0).to(tl.float32)
    sin = tl.load(cos_sin_ptr + half + pair, mask=rotates, other=0.0).to(tl.float32)
    across = x_partner.to(tl.float32) * sin
    along = x.to(tl.float32) * cos
    rotated = tl.where(is_first, along - across, along + across)
    return tl.where(rotates, rotated.to(x.dtype), x)
