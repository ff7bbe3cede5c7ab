"""What happens to a logit between the dot product and the softmax, in float32. Shapes: logits [M, N], position [M], key [N]."""

import triton
import triton.language as tl

from attn_optimized.kernels.online_softmax import LOG2E


@triton.jit
def tanh(x):
    """In one exponential: of the magnitude, so that it cannot overflow."""
    magnitude = tl.abs(x)
    decayed = tl.exp2(magnitude * (-2.0 * LOG2E))
    large = (1.0 - decayed) / (1.0 + decayed)
    # where that cancels: the series, to 2^-29
    square = x * x
    small = magnitude * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    result = tl.where(magnitude < 0.125, small, large)
    return tl.where(x < 0.0, -result, result)


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
    return tl.load(bias_ptr + query.to(tl.int64)[:, None] * stride_bias + new_key[None, :], mask=known, other=0.0)
