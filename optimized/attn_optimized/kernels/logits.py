"""What happens to a logit between the dot product and the softmax, in float32. Shapes: logits [M, N], position [M], key [N]."""

import triton
import triton.language as tl


@triton.jit
def soft_cap(logits, cap):
    """`cap * tanh(logits / cap)`; a cap of 0 is off."""
    divisor = tl.where(cap == 0.0, 1.0, cap)
    ratio = tl.abs(logits / divisor)
    # of the magnitude, whose exponential cannot overflow
    decayed = tl.exp(ratio * -2.0)
    large = cap * (1.0 - decayed) / (1.0 + decayed)
    # where that cancels: Lambert's continued fraction, exact to 2^-22
    square = ratio * ratio
    small = tl.abs(logits) * (105.0 + 10.0 * square) / (105.0 + square * (45.0 + square))
    capped = tl.where(ratio < 0.5, small, large)
    return tl.where(cap == 0.0, logits, tl.where(logits < 0.0, -capped, capped))


@triton.jit
def alibi(slopes_ptr, has_alibi, head, owned, position, key):
    """Minus slope times distance, of each head of the tile's rows."""
    # has_alibi is 0 or 1: without slopes, the one element that is there
    slope = tl.where(has_alibi != 0, tl.load(slopes_ptr + head * has_alibi, mask=owned, other=0.0), 0.0)
    return -slope[:, None] * tl.abs(key[None, :] - position[:, None]).to(tl.float32)


@triton.jit
def qq_bias(bias_ptr, stride_bias, bias_len, query, new_key):
    """Bias between this step's own tokens: query is [M], new_key [N] counts from the first of them. 0 for other keys."""
    known = (query < bias_len)[:, None] & ((new_key >= 0) & (new_key < bias_len))[None, :]
    return tl.load(bias_ptr + query[:, None] * stride_bias + new_key[None, :], mask=known, other=0.0)
