"""Rotary position embedding (Su et al., arXiv:2104.09864)."""

import triton
import triton.language as tl


@triton.jit
def load_rotated(row_ptr, cos_sin_ptr, dim, loaded, rotary_dim, is_neox):
    """Rows of heads, rotated to their positions and rounded to their dtype; dims from rotary_dim on as they are. [rows, D]

    Compile it without fusing products and sums: each is rounded to float32 by itself.

    Args:
        row_ptr, cos_sin_ptr: [rows, 1], of a row's first element, and of the rotary_dim / 2 cosines of its position, which its
            sines follow.
        dim, loaded: [1, D], and [rows, D] where there is something to load.
        is_neox: 1: dims (i, i + rotary_dim / 2) rotate together; 0: dims (2i, 2i + 1).
    """
    half = rotary_dim // 2
    # from a pair's first dim to its second
    apart = tl.where(is_neox != 0, half, 1)
    is_first = tl.where(is_neox != 0, dim < half, dim % 2 == 0)
    pair = tl.where(is_neox != 0, dim % half, dim // 2)
    partner = tl.where(is_first, dim + apart, dim - apart)
    rotates = loaded & (dim < rotary_dim)
    x = tl.load(row_ptr + dim, mask=loaded, other=0.0)
    x_partner = tl.load(row_ptr + partner, mask=rotates, other=0.0)
    cos = tl.load(cos_sin_ptr + pair, mask=rotates, other=0.0).to(tl.float32)
    sin = tl.load(cos_sin_ptr + half + pair, mask=rotates, other=0.0).to(tl.float32)
    across = x_partner.to(tl.float32) * sin
    along = x.to(tl.float32) * cos
    rotated = tl.where(is_first, along - across, along + across)
    return tl.where(rotates, rotated.to(x.dtype), x)
