"""Dots of bfloat16 queries with a float8 cache, in float16, which loses nothing that matters.

NVIDIA converts two float8 numbers to float16 in one instruction, and to bfloat16 in four. float16 holds every number of e4m3fn
and the 8 bits of every bfloat16 number, but not its range. So each row of q is scaled by a power of two: its largest magnitude
comes to lie in [2^14, 2^15), and only what is less than 2^-31 of it is rounded. Weights, of which the largest is 1, are scaled
by 2^LOG2_UNIT.
"""

import triton
import triton.language as tl

LOG2_UNIT = tl.constexpr(14)


@triton.jit
def float16_queries(q, q_odd, q_rest, factor, KIND: tl.constexpr):
    """The parts of the queries as float16, and the factor [M] of each row that replaces the factor of q's dots.

    A row of zeros, or of numbers too small to matter, is scaled by 2^114. A row keeps its infinities and NaN.
    """
    largest = tl.maximum(_largest(q), _largest(q_odd))
    if KIND.block_rest > 0:
        largest = tl.maximum(largest, _largest(q_rest))
    # the biased exponent, from 2^-100 to 2^126, whose inverses are normal numbers, too
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 27), 253)
    scale = ((254 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    inverse = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    q, q_odd = _scaled(q, scale), _scaled(q_odd, scale)
    if KIND.block_rest > 0:
        q_rest = _scaled(q_rest, scale)
    # never 0: a masked logit is -inf
    return q, q_odd, q_rest, tl.minimum(tl.maximum(factor * inverse, 2.0**-126), 2.0**127)


@triton.jit
def _largest(q):
    return tl.max(tl.abs(q.to(tl.float32)), 1)


@triton.jit
def _scaled(q, scale):
    # by columns: Triton 3.6 then keeps q in registers, or a long row of it in shared memory as the dots read it fastest
    return tl.trans((tl.trans(q).to(tl.float32) * scale[None, :]).to(tl.float16))
