"""The three instructions around a division by Newton's method: v_div_scale, v_div_fmas, v_div_fixup.

Their pseudocode in "VOP3 Instructions" of AMD's Instinct MI300 ISA, section 12.11, is followed but for some places where a
division that LLVM expands would be wrong:
* v_div_scale_f32 asks whether 1 / S1 is a denormal float64, which it never is: the float32 is meant. If the quotient is a denormal,
  too, it scales S1 by 2 ** 64 there, which overflows: 2 ** -64 is meant.
* v_div_fmas_f32 multiplies by 2 ** 32 there. The RDNA4 ISA, section 16.12, multiplies by 2 ** 64 if the exponent of S2 is above 127
  and by 2 ** -64 otherwise, which undoes v_div_scale. The product is rounded once.
* v_div_fixup_f32 returns the sign's infinity if the quotient S0 is a NaN, as it is where a quotient overflows.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.extremes import quiet
from attn_amdgcn.instructions.float_arithmetic import TINY
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, vector, with_signs
from attn_amdgcn.instructions.fused import F32, fma32, fma32_scaled
from attn_amdgcn.operands import KINDS, reads_vector, writes_vector
from attn_amdgcn.waves import VCC, Waves

_NAN = np.array(0xFFC00000, np.uint32).view(F32)


def exponent(a: np.ndarray) -> np.ndarray:
    """The exponent's bits of a float32."""
    return (a.view(np.uint32) >> np.uint32(23) & np.uint32(0xFF)).astype(np.int32)


def is_denormal(a: np.ndarray) -> np.ndarray:
    return (np.abs(a) < TINY) & (a != 0)


@vector("v_div_scale_f32", "f32 mask = f32 f32 f32")
def div_scale(value, denominator, numerator):
    """The denominator or the numerator, whichever `value` is, scaled; and whether v_div_fmas has to scale the quotient."""
    value, denominator, numerator = np.broadcast_arrays(value, denominator, numerator)
    up, down = np.ldexp(value, 64), np.ldexp(value, -64)
    small_quotient, small_reciprocal = is_denormal(numerator / denominator), is_denormal(1 / denominator)
    large_quotient = exponent(numerator) - exponent(denominator) >= 96
    if_denominator, if_numerator = np.where(value == denominator, up, value), np.where(value == numerator, up, value)
    cases = [
        ((numerator == 0) | (denominator == 0), _NAN, False),
        (large_quotient, if_denominator, True),
        (is_denormal(denominator), up, False),
        (small_reciprocal & small_quotient, np.where(value == denominator, down, value), True),
        (small_reciprocal, down, False),
        (small_quotient, if_numerator, True),
        (exponent(numerator) <= 23, up, False),
    ]
    conditions = [condition for condition, _, _ in cases]
    scaled = np.select(conditions, [result for _, result, _ in cases], value)
    return scaled, np.select(conditions, [np.array(post) for _, _, post in cases], False)


@own_step("v_div_fmas_f32")
def div_fmas(instruction: Instruction, kernel: Kernel) -> Step:
    """S0 * S1 + S2, scaled in the lanes whose bit of VCC is set. VCC is not among the operands."""
    check_count(instruction, 4)
    check_modifiers(instruction)
    reads = [with_signs(operand, reads_vector(operand, KINDS["f32"], kernel), KINDS["f32"]) for operand in instruction.operands[1:]]
    write = writes_vector(instruction.operands[0], KINDS["f32"], kernel, keeps_half=False)

    def step(waves: Waves) -> None:
        a, b, c = (read(waves) for read in reads)
        result = fma32(a, b, c)
        scales = waves.mask(VCC)
        if scales.any():
            shift = np.where(exponent(c) > 127, 64, -64)
            result = np.where(scales, fma32_scaled(a, b, c, shift), result)
        write(waves, result)

    return step


@vector("v_div_fixup_f32", "f32 = f32 f32 f32", takes=("clamp",))
def div_fixup(quotient, denominator, numerator):
    negative = np.signbit(denominator) ^ np.signbit(numerator)
    sign = np.where(negative, F32(-1), F32(1))
    result = np.where(np.isnan(quotient), F32(np.inf), np.abs(quotient)) * sign
    distance = exponent(numerator) - exponent(denominator)
    if all((TINY <= np.abs(a)).all() and (np.abs(a) < np.inf).all() for a in (numerator, denominator)) and (distance >= -150).all():
        return result
    no_number = (denominator == 0) & (numerator == 0) | np.isinf(denominator) & np.isinf(numerator)
    conditions = [
        np.isnan(numerator),
        np.isnan(denominator),
        no_number,
        (denominator == 0) | np.isinf(numerator),
        np.isinf(denominator) | (numerator == 0),
        distance < -150,
    ]
    zero, infinity = F32(0) * sign, F32(np.inf) * sign
    return np.select(conditions, [quiet(numerator), quiet(denominator), _NAN, infinity, zero, zero], result)
