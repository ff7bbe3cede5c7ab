"""Rotary position embedding (Su et al., arXiv:2104.09864)."""

import triton
import triton.language as tl


@triton.jit
def load_rotated(row_ptr, cos_sin_ptr, dim, loaded, ROTARY_DIM: tl.constexpr, IS_NEOX: tl.constexpr):
    """Load rows of heads, rotate them to their positions and round them to their dtype; dims from ROTARY_DIM on stay. [rows, D]

    A kernel that calls this is compiled without fused multiply-adds: each product and each sum is rounded to float32.

    Args:
        row_ptr: [rows, 1], the first element of each row.
        cos_sin_ptr: [rows, 1], the first of the ROTARY_DIM / 2 cosines of each row's position; the sines follow them.
        dim: [1, D].
        loaded: [rows, D], whether an element is there.
        IS_NEOX: whether dims (i, i + ROTARY_DIM / 2) rotate together, as in GPT-NeoX, else dims (2i, 2i + 1), as in GPT-J.
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
