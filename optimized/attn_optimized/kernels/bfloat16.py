"""Float32 numbers as bfloat16, which is their upper 16 bits, in arithmetic of integers.

Most AMD GPUs have no instruction for the conversion. There LLVM rounds to nearest even in about six instructions a number, some
of them for NaN. Fewer suffice here: numbers of float8 or int8 fit into the upper 16 bits, and weights are never negative.
"""

import triton
import triton.language as tl


@triton.jit
def exact_bfloat16(numbers):
    """Float32 numbers that bfloat16 holds, or quiet NaN: arithmetic makes no other."""
    return (numbers.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def nearest_bfloat16(numbers):
    """Float32 numbers rounded to the nearest bfloat16; a number halfway between two goes to the larger magnitude.

    The sum carries from the mantissa into the exponent, and so from the largest numbers into infinity. A quiet NaN stays one,
    unless bits 15 to 30 are all set: then it becomes 0. A weight that is NaN makes the row's sum of weights NaN in any case.
    """
    return exact_bfloat16((numbers.to(tl.int32, bitcast=True) + 0x8000).to(tl.float32, bitcast=True))
