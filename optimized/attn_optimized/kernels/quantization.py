"""Numbers as elements of one byte, and back.

FORMAT is the type of the elements: "float" (numbers are stored as they are), "int8", "e4m3fn" or "e4m3fnuz" (the pointer has
this float8 type), "e4m3fn_bits" or "e4m3fnuz_bits" (the pointer is uint8, because the compiler does not convert the float8
type), "e4m3fn_byte" (the pointer is uint8, because the compiler does not use the instruction that gfx12 has for the type).
e4m3fn (OCP 8-bit Floating Point, 2023) has exponents biased by 7, NaN at 0x7F and 0xFF, and no infinity. e4m3fnuz (Noune et
al., arXiv:2206.02915) has exponents biased by 8, its only NaN at 0x80, and neither infinity nor -0.
"""

import triton
import triton.language as tl

from attn_optimized.kernels.bfloat16 import exact_bfloat16
from attn_optimized.kernels.compiled_once import INTERPRETED

# Far above the subnormal numbers of float32, and far below the scale of any key or value that matters.
_MIN_SCALE = tl.constexpr(2.0**-100)
_MIN_E8M0 = tl.constexpr(27)  # 2**(27 - 127), the same


@triton.constexpr_function
def _is_bits(FORMAT):
    return FORMAT.endswith(("_bits", "_byte"))


@triton.constexpr_function
def _is_fnuz(FORMAT):
    return "fnuz" in FORMAT


@triton.constexpr_function
def _largest(FORMAT):
    return {"int8": 127.0, "e4m3fn": 448.0, "e4m3fnuz": 240.0}[FORMAT.partition("_")[0]]


@triton.jit
def decode(stored, FORMAT: tl.constexpr, DTYPE: tl.constexpr, IN_INTEGERS: tl.constexpr):
    """Elements as they were loaded -> numbers of the floating type DTYPE, which holds each of them exactly.

    Args:
        IN_INTEGERS: whether bfloat16 is made by `exact_bfloat16`.
    """
    if FORMAT == "float":
        decoded = stored.to(DTYPE)
    else:
        # by way of float32: NVIDIA converts float8 to float16, and float16 to bfloat16 at a quarter of the usual rate
        if FORMAT == "e4m3fn_byte" and not INTERPRETED:
            number = tl.inline_asm_elementwise(
                "v_cvt_f32_fp8_e32 $0, $1", "=v,v", args=[stored.to(tl.int32)], dtype=tl.float32, is_pure=True, pack=1
            )
        elif _is_bits(FORMAT):
            number = _number_of_bits(stored, FORMAT)
        else:
            number = stored.to(tl.float32)
        decoded = exact_bfloat16(number) if IN_INTEGERS and tl.bfloat16 == DTYPE else number.to(DTYPE)
    return decoded


@triton.jit
def _number_of_bits(stored, FORMAT: tl.constexpr):
    """Float32 numbers of elements of float8 that are uint8.

    Exponent and mantissa move to the lowest bits of float32's exponent and the highest bits of its mantissa, so that subnormal
    elements become subnormal numbers. A power of two corrects the exponent's bias.
    """
    bits = stored.to(tl.int8, bitcast=True).to(tl.int32)
    # the sign was extended into all the bits above, and the mask keeps one of them
    number = ((bits << 20) & -0x78100000).to(tl.float32, bitcast=True)
    if _is_fnuz(FORMAT):
        number = tl.where(bits == -0x80, float("nan"), number * 2.0**119)
    else:
        number *= 2.0**120
        # NaN has the magnitude that would be 480; the number before it is 448
        number = tl.where(tl.abs(number) > 464.0, float("nan"), number)
    return number


@triton.jit
def decode_pairs(pairs, STORED: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Two elements of type STORED in each int16 -> the first of each pair and the second, as `decode` gives them.

    It is for NVIDIA, whose PTX converts two neighbouring bytes at once. In a dot's register, which holds two pairs, a
    permutation brings the two first elements together and the two second ones. Triton 3.6 makes six to eight instructions of
    the shifts below, which the interpreter runs, since it has no PTX.
    """
    if FORMAT == "e4m3fn" and not INTERPRETED:
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b16 firsts, seconds;
            .reg .b32 ordered;
            prmt.b32 ordered, $2, 0, 0x3120;
            mov.b32 {firsts, seconds}, ordered;
            cvt.rn.f16x2.e4m3x2 $0, firsts;
            cvt.rn.f16x2.e4m3x2 $1, seconds;
            }""",
            constraints="=r,=r,r",
            args=[pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
        # by way of float32: see `decode`
        first, second = first.to(tl.float32).to(DTYPE), second.to(tl.float32).to(DTYPE)
    else:
        first, second = pairs.to(tl.int8).to(STORED, bitcast=True), (pairs >> 8).to(tl.int8).to(STORED, bitcast=True)
        first, second = decode(first, FORMAT, DTYPE, False), decode(second, FORMAT, DTYPE, False)
    return first, second


@triton.jit
def encode(values, FORMAT: tl.constexpr):
    """Float32 values, divided by their scale -> elements to store: clamped, rounded to nearest even. A NaN becomes 0 in int8.

    The arithmetic is of integers, on every GPU: the compilers' own conversions differ in the sign of a NaN and in -0, and some
    round to float16 first.
    """
    if FORMAT == "float":
        encoded = values
    elif FORMAT == "int8":
        # neighbouring float32 numbers of this size are 1 apart, so that adding rounds to an integer, which the low bits hold
        rounded = tl.clamp(values, -127.0, 127.0) + 1.5 * 2.0**23
        encoded = tl.where(values == values, rounded.to(tl.int32, bitcast=True), 0).to(tl.int8)
    else:
        BIAS: tl.constexpr = 8 if _is_fnuz(FORMAT) else 7
        magnitude = tl.minimum(tl.abs(values), _largest(FORMAT))
        bits = magnitude.to(tl.int32, bitcast=True)
        # a normal number keeps 3 bits of its mantissa: half of the last bit is added, or a little less if the last bit is 0
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - BIAS) << 3)
        # a smaller number is rounded to a multiple of the least subnormal: neighbouring float32 numbers here are this far apart
        subnormal = (magnitude + 2.0 ** (21 - BIAS)).to(tl.int32, bitcast=True) & 0xF
        code = tl.where(magnitude < 2.0 ** (1 - BIAS), subnormal, normal)
        sign = (values.to(tl.int32, bitcast=True) >> 24) & 0x80
        if _is_fnuz(FORMAT):
            code = tl.where(values == values, tl.where(code == 0, 0, code | sign), 0x80)
        else:
            code = tl.where(values == values, code | sign, 0x7F)
        encoded = code.to(tl.uint8)
        if FORMAT == "e4m3fn":
            encoded = encoded.to(tl.float8e4nv, bitcast=True)
        elif FORMAT == "e4m3fnuz":
            encoded = encoded.to(tl.float8e4b8, bitcast=True)
    return encoded


@triton.jit
def group_scale(values, E8M0: tl.constexpr, FORMAT: tl.constexpr):
    """The scale [rows] of each row of float32 values [rows, D]: its ue8m0 code, int32, if E8M0, else a float32 number."""
    return e8m0_code(values, FORMAT) if E8M0 else token_scale(values, FORMAT)


@triton.jit
def scale_number(scale):
    """The number of each scale, float32: integers are ue8m0 codes."""
    return scale if scale.dtype == tl.float32 else e8m0_number(scale)


@triton.jit
def token_scale(values, FORMAT: tl.constexpr):
    """The scale [rows] of each row of float32 values [rows, D]: the row's largest finite magnitude becomes the largest element.

    In int8, which has no NaN, a row that holds a NaN gets a scale of NaN.
    """
    magnitude = tl.abs(values)
    largest = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), 1)
    scale = tl.maximum(tl.div_rn(largest, _largest(FORMAT)), _MIN_SCALE)
    if FORMAT == "int8":
        has_nan = tl.max((values != values).to(tl.int32), 1) != 0
        scale = tl.where(has_nan, float("nan"), scale)
    return scale


@triton.jit
def e8m0_code(values, FORMAT: tl.constexpr):
    """The ue8m0 scale [rows], int32, of each row of float32 values [rows, D]: the code b is 2**(b - 127).

    It is the least power of two that is at least the row's largest finite magnitude over the largest element, and _MIN_SCALE.
    """
    magnitude = tl.abs(values)
    largest = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), 1)
    # The largest element is 1.75 * 2^8 or, in e4m3fnuz, 1.875 * 2^7. A mantissa above its own asks for one more in the
    # exponent, which the sum carries into it; a subnormal magnitude has the exponent 0 and gets the least scale.
    ABOVE: tl.constexpr = 0x0FFFFF if _is_fnuz(FORMAT) else 0x1FFFFF
    EXPONENT: tl.constexpr = 7 if _is_fnuz(FORMAT) else 8
    code = ((largest.to(tl.int32, bitcast=True) + ABOVE) >> 23) - EXPONENT
    return tl.maximum(code, _MIN_E8M0)


@triton.jit
def e8m0_number(code):
    """The number of each ue8m0 code, float32: the code is the exponent, but for 0, a subnormal number, and 255, NaN."""
    bits = code.to(tl.int32) << 23
    bits = tl.where(bits == 0, 0x400000, tl.where(bits == 0x7F800000, 0x7FC00000, bits))
    return bits.to(tl.float32, bitcast=True)
