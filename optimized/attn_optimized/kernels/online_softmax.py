"""Softmax over keys that come tile by tile (Milakov & Gimelshein, arXiv 1805.02867), all of it in float32.

Its state is what a row has seen so far: the largest logit, the sum of exp(logit - largest), and the values weighted alike.
Logits are in base 2, which is what GPUs compute exponentials in: logit * log2(e).
"""

import triton
import triton.language as tl

from attn_optimized.kernels.bfloat16 import nearest_bfloat16

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# stored in place of a sum of weights if the row's output is already written, so that nothing is left to reduce
FINISHED = tl.constexpr(-1.0)


@triton.jit
def begin_rows(sinks_ptr, has_sinks, rows, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The state before the first key: row_max [M], row_sum [M], acc [M, D].

    A sink is a first logit without a value, of weight exp(sink - max) = 1. Without a sink this logit is -inf, and the first
    visible key decays its weight to 0.
    """
    # has_sinks is 0 or 1: without sinks, a row reads the one element that is there
    sink_ptr = sinks_ptr + rows.head * has_sinks  # int32: a head or 0
    sink = tl.load(sink_ptr, mask=rows.owned, other=float("-inf"))
    row_max = tl.where(has_sinks != 0, sink * LOG2E, float("-inf"))
    return row_max, tl.full([BLOCK_M], 1.0, tl.float32), tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)


@triton.jit
def in_columns(row_sum, BLOCK_N: tl.constexpr):
    """Sums of weights [M, N], one for each row and column of a tile of keys. A row of them adds up to row_sum [M].

    So threads that hold different columns of a row add up once, after the loop, and not for each tile.
    """
    return tl.where(tl.arange(0, BLOCK_N)[None, :] == 0, row_sum[:, None], 0.0)


@triton.jit
def softmax_step(row_max, sums, logits, to_base_2, IN_COLUMNS: tl.constexpr, LOG2_UNIT: tl.constexpr):
    """Add a tile of keys: row_max [M], sums, the weights [M, N] of its keys, and the decay [M] of earlier weights.

    Args:
        sums: sums of weights, [M]; see `in_columns` if IN_COLUMNS.
        logits: [M, N], -inf where a row does not see a key.
        to_base_2: a positive factor of logits, which is applied in one instruction with the subtraction of the maximum.
        LOG2_UNIT: weights and their sums are multiplied by 2 to this power. If it is not 0, to_base_2 is [M].
    """
    new_max = tl.maximum(row_max, tl.max(logits, 1) * to_base_2)
    # a row that has seen no key yet keeps its maximum of -inf, and is shifted by 0: -inf - -inf would be NaN
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    if LOG2_UNIT == 0:
        weights = tl.exp2(logits * to_base_2 - shift[:, None])
    else:
        weights = tl.exp2(logits * to_base_2[:, None] - (shift - LOG2_UNIT)[:, None])
    decay = tl.exp2(row_max - shift)
    sums = sums * decay[:, None] + weights if IN_COLUMNS else sums * decay + tl.sum(weights, 1)
    return new_max, sums, weights, decay


@triton.jit
def add_values(acc, decay, weights, v, v_scale, SCALES: tl.constexpr, IN_INTEGERS: tl.constexpr):
    """acc [M, D] with a tile of values [N, D] added, times their scales [N] if SCALES.

    Args:
        IN_INTEGERS: True if float32 weights become bfloat16 by `nearest_bfloat16`. It has no effect if SCALES.
    """
    # ieee: the default is TF32 on NVIDIA and XF32 on gfx942, which is no float32 arithmetic
    if SCALES:
        # scales are divided by the tile's largest: they are small, and products with weights would be subnormal in float16
        largest = tl.max(tl.abs(v_scale), 0)
        relative = tl.div_rn(v_scale, tl.where(largest == 0.0, 1.0, largest))
        product = tl.dot((weights * relative[None, :]).to(v.dtype), v, input_precision="ieee")
        acc = acc * decay[:, None] + product * largest
    else:
        factors = nearest_bfloat16(weights) if IN_INTEGERS and v.dtype == tl.bfloat16 else weights.to(v.dtype)
        acc = tl.dot(factors, v, acc * decay[:, None], input_precision="ieee")
    return acc


@triton.jit
def normalize(row_max, row_sum, acc):
    """The output [M, D] and its LSE [M] (natural log). A row that saw no key gets 0 and -inf."""
    denominator = tl.where(row_sum == 0.0, 1.0, row_sum)
    return divide(acc, denominator), row_max * LN2 + tl.log(denominator)


@triton.jit
def divide(acc, denominator):
    """acc [M, D] / denominator [M], rounded once.

    An output of 16 bits needs one rounding: a second one can move a quotient across the middle between two numbers of 16
    bits. A division for each element would round once, but takes longer than a few tiles of keys. So each row has one
    division, for a reciprocal in two float32 numbers (the second is the rounding error of the first), and each element has two
    fused multiply-adds. Triton 3.6's interpreter rounds tl.fma twice, and gives slightly different results.
    """
    inverse = tl.div_rn(1.0, denominator)
    rest = tl.fma(-inverse, denominator, tl.full(inverse.shape, 1.0, tl.float32)) * inverse
    return tl.fma(acc, tl.broadcast_to(inverse[:, None], acc.shape), acc * rest[:, None])
