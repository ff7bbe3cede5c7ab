"""The three instructions around a division by Newton's method: v_div_scale, v_div_fmas, v_div_fixup.

A division of float16 is computed in float32, and needs only the last one, as RDNA3's and CDNA3's ISA documents have it.

Their pseudocode in AMD's ISA documents (CDNA4, RDNA3.5 and RDNA4 agree) is followed but for some places where a division that
LLVM expands would be wrong. What stands here instead is this project's reading:
* v_div_scale_f32 asks whether 1 / S1 is a denormal float64, which it never is: the float32 is meant. If the quotient is a
  denormal, too, it scales S1 by 2 ** 64 there, which overflows: 2 ** -64 is meant. A quotient that rounds to 0 is taken as a
  denormal one, or else one of just 2 ** -150 would end as the least denormal.
* v_div_fmas_f32 multiplies by 2 ** 32 there, which undoes no scale of v_div_scale. Here it multiplies by 2 ** 64 if the
  exponent of S2 is above 127 and by 2 ** -64 otherwise, and the product is rounded once.
* v_div_fixup_f32 returns the sign's infinity if the quotient S0 is a NaN, as it is where a quotient overflows.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.extremes import quiet
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, signed_value, vector
from attn_amdgcn.instructions.fused import F16, F32, fma32, fma32_scaled
from attn_amdgcn.instructions.modes import TINY
from attn_amdgcn.operands import KINDS, writes_vector
from attn_amdgcn.pieces import value_of
from attn_amdgcn.waves import VCC, Waves

_NAN = np.array(0xFFC00000, np.uint32).view(F32)
_NAN16 = np.array(0xFE00, np.uint16).view(F16)


def exponent(a: np.ndarray) -> np.ndarray:
    """The exponent's bits of a float32."""
    return a.view(np.int32) >> np.int32(23) & np.int32(0xFF)


def is_denormal(a: np.ndarray) -> np.ndarray:
    return (np.abs(a) < TINY) & (a != 0)


def is_ordinary(numerator: np.ndarray, denominator: np.ndarray) -> bool:
    """True if no lane needs a scale or has a special quotient: all numbers and quotients are far from the ends of float32."""
    exponents = exponent(numerator), exponent(denominator)
    distance = exponents[0] - exponents[1]
    return all(_within(each, 24, 252) for each in exponents) and _within(distance, -95, 95)


def _within(a: np.ndarray, least: int, most: int) -> bool:
    return bool(np.minimum.reduce(a, axis=None) >= least and np.maximum.reduce(a, axis=None) <= most)


@vector("v_div_scale_f32", "f32 mask = f32 f32 f32")
def div_scale(value, denominator, numerator):
    """The denominator or the numerator, whichever `value` is, scaled; and whether v_div_fmas has to scale the quotient."""
    value, denominator, numerator = np.broadcast_arrays(value, denominator, numerator)
    if is_ordinary(numerator, denominator):
        return value, np.zeros(value.shape, bool)
    up, down = np.ldexp(value, 64), np.ldexp(value, -64)
    small_quotient, small_reciprocal = np.abs(numerator / denominator) < TINY, is_denormal(1 / denominator)
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
    scaled = _chosen([(condition, result) for condition, result, _ in cases], value)
    return scaled, _chosen([(condition, np.array(post)) for condition, _, post in cases], np.zeros(value.shape, bool))


def _chosen(cases: list[tuple[np.ndarray, np.ndarray]], otherwise: np.ndarray) -> np.ndarray:
    """In each lane the result of the first case that holds: np.select, which takes longer."""
    chosen = otherwise.copy()
    for condition, result in reversed(cases):
        np.copyto(chosen, result, where=condition)
    return chosen


@own_step("v_div_fmas_f32")
def div_fmas(instruction: Instruction, kernel: Kernel) -> Step:
    """S0 * S1 + S2, scaled in the lanes whose bit of VCC is set. VCC is not among the operands."""
    check_count(instruction, 4)
    check_modifiers(instruction)
    reads = [value_of(signed_value(operand, KINDS["f32"], kernel)) for operand in instruction.operands[1:]]
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


def _sign(denominator: np.ndarray, numerator: np.ndarray) -> np.ndarray:
    one = denominator.dtype.type(1)
    return np.where(np.signbit(denominator) ^ np.signbit(numerator), -one, one)


def _special(denominator: np.ndarray, numerator: np.ndarray, nan: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The quotients of NaN, infinities and zeros."""
    sign = _sign(denominator, numerator)
    return [
        (np.isnan(numerator), quiet(numerator)),
        (np.isnan(denominator), quiet(denominator)),
        ((denominator == 0) & (numerator == 0) | np.isinf(denominator) & np.isinf(numerator), nan),
        ((denominator == 0) | np.isinf(numerator), sign.dtype.type(np.inf) * sign),
        (np.isinf(denominator) | (numerator == 0), 0 * sign),
    ]


@vector("v_div_fixup_f32", "f32 = f32 f32 f32", takes=("clamp",))
def div_fixup(quotient, denominator, numerator):
    sign = _sign(denominator, numerator)
    result = np.where(np.isnan(quotient), F32(np.inf), np.abs(quotient)) * sign
    if is_ordinary(numerator, denominator):
        return result
    distance = exponent(numerator) - exponent(denominator)
    return _chosen([*_special(denominator, numerator, _NAN), (distance < -150, 0 * sign)], result)


@vector("v_div_fixup_f16", "f16 = f16 f16 f16", takes=("clamp", "op_sel"))
def div_fixup16(quotient, denominator, numerator):
    return _chosen(_special(denominator, numerator, _NAN16), np.abs(quotient) * _sign(denominator, numerator))
