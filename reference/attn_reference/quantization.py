"""Quantized numbers from first principles: two kinds of float8, int8, and the scales that bring a value into their range.

A float8 e4m3 number has a sign, four bits of exponent and three of mantissa: it is `n * 2**(e - 3)` with n in 8..15, or n in
0..7 at the smallest exponent (subnormals). Codes count up with the magnitude: `8 * (e - smallest) + n`.

    type            largest   smallest e   NaN               zero
    float8_e4m3fn   448       -6           0x7F and 0xFF     of either sign   (Micikevicius et al., arXiv:2209.05433; OCP OFP8)
    float8_e4m3fnuz 240       -7           0x80              0x00 only        (Noune et al., arXiv:2206.02915; AMD's gfx942)
    int8            127                    none                               (-128 is not used: the range is symmetric)

The stored number is `value / scale`, one correctly rounded float32 division, clamped to [-largest, largest] and rounded to the
nearest number of the type, ties to the even code. So infinities saturate. NaN stays NaN, as 0x7F or 0x80. The number that is
read back is `stored * scale`. Every bit of this is defined, and a fast implementation is compared byte by byte.
"""

from typing import NamedTuple

import torch
from attn_contract import QUANTIZED_DTYPES, ContractError
from attn_contract.arguments import check_tensor, shown
from attn_contract.latent_format import E8M0_BIAS, E8M0_NAN

from attn_reference.rounding import rounded

NUMBER_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MIN_SCALE = 2.0**-100
"""The least scale per token and head: a row of zeros needs some scale to be divided by."""
MIN_E8M0_EXPONENT = -100
"""The exponent of the least ue8m0 scale that is written, which is MIN_SCALE."""
MANTISSA_BITS = 3
SIGN_BIT = 0x80


class Float8(NamedTuple):
    """One kind of e4m3."""

    largest: float
    smallest_exponent: int
    nan: tuple[int, ...]
    """The codes that are NaN; the first is the one that is written."""
    has_negative_zero: bool


FLOAT8 = {
    torch.float8_e4m3fn: Float8(largest=448.0, smallest_exponent=-6, nan=(0x7F, 0xFF), has_negative_zero=True),
    torch.float8_e4m3fnuz: Float8(largest=240.0, smallest_exponent=-7, nan=(0x80,), has_negative_zero=False),
}
INT8_LARGEST = 127.0


def quantize(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values / scale` in a type of 8 bits.

    Args:
        values: float64, float32, float16 or bfloat16, of any shape. float64 is rounded to float32 first.
        scale: float32, broadcasts to values. Where it is NaN so is the result; int8, which has no NaN, stores 0.
        dtype: torch.float8_e4m3fn, torch.float8_e4m3fnuz or torch.int8.

    Returns:
        Of values' shape, in dtype.

    Raises:
        ContractError: an argument is of another type, or scale does not broadcast to values.
    """
    check_tensor("values", values)
    check_number_dtype("values", values.dtype)
    _check_scale(scale, values)
    _check_quantized_dtype("dtype", dtype)
    quotient = values.float() / scale
    if dtype == torch.int8:
        return quotient.clamp(-INT8_LARGEST, INT8_LARGEST).round().nan_to_num(nan=0).to(torch.int8)
    return _encode(quotient, FLOAT8[dtype]).view(dtype)


def dequantize(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`stored * scale`, rounded once.

    Args:
        stored: float8_e4m3fn, float8_e4m3fnuz or int8, of any shape.
        scale: float32, broadcasts to stored.
        dtype: the dtype of the result: float64, which holds every such product exactly, float32, float16 or bfloat16.

    Returns:
        Of stored's shape, in dtype.

    Raises:
        ContractError: an argument is of another type, or scale does not broadcast to stored.
    """
    check_tensor("stored", stored)
    _check_quantized_dtype("stored", stored.dtype)
    _check_scale(scale, stored)
    check_number_dtype("dtype", dtype)
    if stored.dtype == torch.int8:
        numbers = stored.double()
    else:
        every_code = torch.arange(256, dtype=torch.uint8, device=stored.device)
        numbers = _decode(every_code, FLOAT8[stored.dtype])[stored.view(torch.uint8).int()]
    return rounded(numbers * scale.double(), dtype)


def row_scales(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale of each row: `max(largest magnitude / largest of dtype, 2**-100)`. A row is one token's K or V in one head.

    Only finite magnitudes count: an infinity would take the bits of all others, and saturates instead. A row that holds a NaN
    gets the scale NaN in int8, which has no NaN of its own, and reads as NaN throughout.

    Args:
        rows: [..., D] float64, float32, float16 or bfloat16. float64 is rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e4m3fnuz or torch.int8, to which the rows are to be quantized.

    Returns:
        [..., 1] float32.

    Raises:
        ContractError: an argument is of another type, or rows has no dims.
    """
    _check_quantized_dtype("dtype", dtype)
    largest = _largest(rows)
    bound = INT8_LARGEST if dtype == torch.int8 else FLOAT8[dtype].largest
    # divided by a tensor: on a GPU torch multiplies by the reciprocal of a Python number, which rounds twice
    scales = (largest / torch.full_like(largest, bound)).clamp(min=MIN_SCALE)
    if dtype == torch.int8:
        scales = scales.masked_fill(rows.float().isnan().any(dim=-1, keepdim=True), torch.nan)
    return scales


def _largest(rows: torch.Tensor) -> torch.Tensor:
    """[..., 1] float32: the largest finite magnitude of each row."""
    check_tensor("rows", rows)
    check_number_dtype("rows", rows.dtype)
    if rows.dim() == 0 or rows.shape[-1] == 0:
        raise ContractError("rows", f"shape {tuple(rows.shape)}", "[..., D], D at least 1")
    rows = rows.float()
    return torch.where(rows.isfinite(), rows.abs(), 0).amax(dim=-1, keepdim=True)


def group_scales(rows: torch.Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of each group of dims of a latent cache: `row_scales`, or if they are ue8m0 `e8m0_scales`.

    Args:
        rows, dtype: as those take them; a row is a group.
        scale_dtype: torch.float32, or torch.float8_e8m0fnu.

    Returns:
        [..., 1] as they are stored, float32 or uint8, and [..., 1] float32.

    Raises:
        ContractError: as those, or another scale_dtype.
    """
    if scale_dtype == torch.float32:
        scales = row_scales(rows, dtype)
        return scales, scales
    if scale_dtype != torch.float8_e8m0fnu:
        raise ContractError("scale_dtype", shown(scale_dtype), "torch.float32 or torch.float8_e8m0fnu")
    codes = e8m0_scales(rows, dtype)
    return codes, e8m0_numbers(codes)


def e8m0_scales(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The ue8m0 scale of each row: the least power of two by which the row fits the type, and at least 2**-100.

    It is the least one at or above `largest magnitude / largest of dtype`, so that no finite value saturates. (The conversion
    of OCP Microscaling Formats 1.0, section 6.3, takes the greatest one at or below `largest magnitude / 256`, as 256 is the
    largest power of two of e4m3fn. Where the largest magnitude over it is above 448, it is half of this scale, and values
    saturate.) As in `row_scales`, only finite magnitudes count. A row's own values may be read back larger by up to a
    sixteenth, and a magnitude just below 2**128 as infinity in float32 and bfloat16.

    Args:
        rows: [..., D] float64, float32, float16 or bfloat16. float64 is rounded to float32 first.
        dtype: torch.float8_e4m3fn or torch.float8_e4m3fnuz, to which the rows are to be quantized.

    Returns:
        [..., 1] uint8: b is the scale 2**(b - 127), see `e8m0_numbers`.

    Raises:
        ContractError: an argument is of another type, or rows has no dims.
    """
    if dtype not in FLOAT8:
        raise ContractError("dtype", shown(dtype), f"one of {', '.join(map(str, FLOAT8))}")
    largest = _largest(rows)
    # in float64 no quotient of a float32 by the bound rounds to a power of two that it is not
    mantissa, exponent = torch.frexp(largest.double() / FLOAT8[dtype].largest)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)  # a power of two itself, as frexp's mantissa is below 1
    exponent = torch.where(largest == 0, MIN_E8M0_EXPONENT, exponent).clamp(min=MIN_E8M0_EXPONENT)
    return (exponent + E8M0_BIAS).to(torch.uint8)


def e8m0_numbers(codes: torch.Tensor) -> torch.Tensor:
    """The scales, float32, of ue8m0 bytes: `2**(b - 127)`, exactly, and NaN for the byte 255.

    Raises:
        ContractError: codes is no tensor of uint8.
    """
    check_tensor("codes", codes)
    if codes.dtype != torch.uint8:
        raise ContractError("codes", codes.dtype, "torch.uint8")
    numbers = torch.ldexp(torch.ones_like(codes, dtype=torch.float64), codes.int() - E8M0_BIAS)
    return torch.where(codes == E8M0_NAN, torch.nan, numbers).float()


def check_number_dtype(argument: str, dtype: torch.dtype) -> None:
    """Check a dtype of numbers that are not quantized, and may be an argument or a result."""
    if dtype not in NUMBER_DTYPES:
        raise ContractError(argument, shown(dtype), "torch.float64, float32, float16 or bfloat16")


def _check_quantized_dtype(argument: str, dtype: torch.dtype) -> None:
    if dtype not in QUANTIZED_DTYPES:
        raise ContractError(argument, shown(dtype), f"one of {', '.join(map(str, QUANTIZED_DTYPES))}")


def _check_scale(scale: torch.Tensor, numbers: torch.Tensor) -> None:
    check_tensor("scale", scale)
    if scale.dtype != torch.float32:
        raise ContractError("scale", scale.dtype, "torch.float32")
    if scale.device != numbers.device:
        raise ContractError("scale", f"a tensor on {scale.device}", f"{numbers.device}, where the numbers are")
    sizes = zip(reversed(scale.shape), reversed(numbers.shape), strict=False)
    if scale.dim() > numbers.dim() or any(size not in (1, expected) for size, expected in sizes):
        raise ContractError("scale", f"shape {tuple(scale.shape)}", f"a shape that broadcasts to {tuple(numbers.shape)}")


def _encode(numbers: torch.Tensor, kind: Float8) -> torch.Tensor:
    """The codes, uint8, of float32 numbers."""
    magnitude = numbers.abs().clamp(max=kind.largest)
    # frexp's mantissa lies in [0.5, 1), so its exponent is one above e
    exponent = torch.frexp(magnitude.clamp(min=2.0**kind.smallest_exponent)).exponent - 1
    # n counts the spacing of numbers at this exponent; torch.round takes ties to the even n
    n = torch.round(torch.ldexp(magnitude, MANTISSA_BITS - exponent)).nan_to_num(nan=0).int()
    # where n was rounded up to 16, this is the code of 8 at the next exponent
    code = (exponent - kind.smallest_exponent) * 2**MANTISSA_BITS + n
    is_negative = numbers.signbit()
    if not kind.has_negative_zero:
        is_negative &= code > 0
    return torch.where(numbers.isnan(), kind.nan[0], code + is_negative * SIGN_BIT).to(torch.uint8)


def _decode(codes: torch.Tensor, kind: Float8) -> torch.Tensor:
    """The numbers, float64, of uint8 codes."""
    code = codes.int() % SIGN_BIT
    is_negative = codes >= SIGN_BIT
    steps, n = code // 2**MANTISSA_BITS, code % 2**MANTISSA_BITS
    # the lowest eight codes are the subnormals, which share the smallest exponent with the next eight
    n = torch.where(steps > 0, n + 2**MANTISSA_BITS, n)
    exponent = kind.smallest_exponent + (steps - 1).clamp(min=0)
    magnitude = torch.ldexp(n.double(), exponent - MANTISSA_BITS)
    is_nan = torch.isin(codes, codes.new_tensor(kind.nan))
    return torch.where(is_nan, torch.nan, torch.where(is_negative, -magnitude, magnitude))
