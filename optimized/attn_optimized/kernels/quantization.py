"""Numbers as elements of one byte, and back.

FORMAT says how: "float" (not at all), "int8", "e4m3fn" or "e4m3fnuz" (the pointer is of that float8 type), "e4m3fn_bits" or
"e4m3fnuz_bits" (the pointer is uint8, where the compiler does not convert the type). e4m3fn (OCP 8-bit Floating Point, 2023)
has exponents biased by 7, NaN at 0x7F and 0xFF, and no infinity; e4m3fnuz (Noune et al., arXiv:2206.02915) a bias of 8, its
only NaN at 0x80, and neither infinity nor -0.
"""

import triton
import triton.language as tl

# Far from where float32 gets subnormal, and far below any key or value that matters.
_LEAST_SCALE = tl.constexpr(2.0**-100)


@triton.constexpr_function
def _is_bits(FORMAT):
    return FORMAT.endswith("_bits")


@triton.constexpr_function
def _is_fnuz(FORMAT):
    return "fnuz" in FORMAT


@triton.constexpr_function
def _largest(FORMAT):
    return {"int8": 127.0, "e4m3fn": 448.0, "e4m3fnuz": 240.0}[FORMAT.removesuffix("_bits")]


@triton.jit
def decode(stored, FORMAT: tl.constexpr, DTYPE: tl.constexpr):
    """Elements as they were loaded -> numbers of a floating type, which holds all of them exactly."""
    if _is_bits(FORMAT):
        bits = stored.to(tl.int8, bitcast=True).to(tl.int32)
        # exponent and mantissa stand where float32 has its lowest ones, so that subnormals are subnormal there too; of the
        # sign, which now fills all the bits above, the mask takes one
        number = ((bits << 20) & -0x78100000).to(tl.float32, bitcast=True)
        if _is_fnuz(FORMAT):
            number = tl.where(bits == -0x80, float("nan"), number * 2.0**119)
        else:
            number = tl.where((bits & 0x7F) == 0x7F, float("nan"), number * 2.0**120)
        decoded = number.to(DTYPE)
    elif FORMAT == "float":
        decoded = stored.to(DTYPE)
    else:
        # by way of float32: NVIDIA converts float8 to float16, and that to bfloat16 at a quarter of the usual rate
        decoded = stored.to(tl.float32).to(DTYPE)
    return decoded


@triton.jit
def encode(values, FORMAT: tl.constexpr):
    """Float32 values, divided by their scale -> elements to store: clamped, to nearest even; a NaN stays one, and is 0 in int8.

    In integers for every GPU: conversions of the compilers differ in the sign of NaN, in -0, and may round to float16 first.
    """
    if FORMAT == "float":
        encoded = values
    elif FORMAT == "int8":
        # float32 numbers of this size are whole, and their low bits count them
        rounded = tl.clamp(values, -127.0, 127.0) + 1.5 * 2.0**23
        encoded = tl.where(values == values, rounded.to(tl.int32, bitcast=True), 0).to(tl.int8)
    else:
        BIAS: tl.constexpr = 8 if _is_fnuz(FORMAT) else 7
        magnitude = tl.minimum(tl.abs(values), _largest(FORMAT))
        bits = magnitude.to(tl.int32, bitcast=True)
        # a normal number keeps 3 bits of its mantissa: a half of the last one is added, or a little less if that is even
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - ((127 - BIAS) << 3)
        # a smaller one counts subnormals, which are what these float32 numbers are spaced by
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
def token_scale(values, FORMAT: tl.constexpr):
    """The scale of each row of float32 values [rows, D]: its largest finite magnitude becomes the largest element.

    Of a row with a NaN that is NaN in int8, which has none itself.
    """
    magnitude = tl.abs(values)
    largest = tl.max(tl.where(magnitude < float("inf"), magnitude, 0.0), 1)
    scale = tl.maximum(tl.div_rn(largest, _largest(FORMAT)), _LEAST_SCALE)
    if FORMAT == "int8":
        has_nan = tl.max((values != values).to(tl.int32), 1) != 0
        scale = tl.where(has_nan, float("nan"), scale)
    return scale
