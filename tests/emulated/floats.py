"""Edge values of floats, exact rounding by fractions, and runs of one instruction on every combination of values."""

import itertools
import math
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from tests.emulated.lines import ran

FORMATS = {"bf16": (8, -126, 127), "f16": (11, -14, 15), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
"""Bits of the mantissa, and the least and the largest exponent of a normal number."""

EDGES32 = [
    *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x33800000, 0x3F000000),
    *(0x3F800000, 0xBF800000, 0x3F800001, 0x3FC00000, 0x4B800001, 0xCB000001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000),
    *(0xFF800000, 0x7FC00001, 0xFFC00000, 0x7F800001, 0x40490FDB),
]
"""Bits: zeros, denormals, normal numbers, infinities, quiet NaN and a signaling one."""
EDGES16 = [
    *(0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x8400, 0x1400, 0x3800, 0x3C00, 0xBC00, 0x3C01, 0x3E00, 0x6401, 0xE801),
    *(0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01, 0xFE00, 0x7C01, 0x4248),
]


def rounded(exact: Fraction, name: str) -> float:
    """The nearest number of a format, or of two the one whose last bit is 0."""
    bits, least, most = FORMATS[name]
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - bits + 1)
    nearest = round(magnitude / step) * step
    value = math.inf if nearest >= Fraction(2) ** (most + 1) else float(nearest)
    return math.copysign(value, 1 if exact > 0 else -1)


def f32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits32(value: float) -> int:
    """Of a number that float32 has, or a NaN."""
    return 0x7FC00000 if math.isnan(value) else struct.unpack("<I", struct.pack("<f", value))[0]


def f16(bits: int) -> float:
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def bits16(value: float) -> int:
    return 0x7E00 if math.isnan(value) else 0xFC00 if value == -math.inf else struct.unpack("<H", struct.pack("<e", value))[0]


def product_sum(a: float, b: float, c: float, name: str) -> float:
    """a * b + c, rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        product = math.nan if math.isnan(a) or math.isnan(b) or {0, math.inf} == {abs(a), abs(b)} or (math.isinf(a) and b == 0) else a * b
        return product + c
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:
        return math.copysign(0.0, a) * math.copysign(1.0, b) + math.copysign(0.0, c) if c == 0 and a * b == 0 else 0.0
    return rounded(total, name)


def plain_sum(a: float, b: float, name: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or a == b == 0:
        return a + b
    return rounded(Fraction(a) + Fraction(b), name)


def product(a: float, b: float, name: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or 0 in (a, b):
        return a * b
    value = rounded(Fraction(a) * Fraction(b), name)
    return math.copysign(value, math.copysign(1, a) * math.copysign(1, b))


def columns(*values: Sequence[int]) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Every combination, and for each source [waves, 64] uint32 with the combinations in the lanes."""
    rows = list(itertools.product(*values))
    padded = rows + rows[:1] * (-len(rows) % 64)
    return rows, [np.array(column, np.uint64).astype(np.uint32).reshape(-1, 64) for column in zip(*padded, strict=True)]


def results(text: str, *values: Sequence[int], architecture: str = "gfx942", old: int = 0, row: int = 9) -> list[tuple[tuple[int, ...], int]]:
    """The combinations of the values of v0, v1, v2, each with the bits that `text` leaves in v9."""
    rows, sources = columns(*values)
    if not architecture.startswith("gfx9"):
        sources = [source.reshape(-1, 32) for source in sources]
    after = ran(text, architecture, v={9: old, **dict(enumerate(sources))}, num_waves=len(sources[0]))
    return list(zip(rows, after.vector[row].ravel().tolist(), strict=False))


def is_same32(found: int, expected: float) -> bool:
    """Whether the bits are those of a float32; of a NaN, whether they are those of any quiet NaN."""
    if math.isnan(expected):
        return found & 0x7FC00000 == 0x7FC00000
    return found == bits32(expected)


def is_same16(found: int, expected: float) -> bool:
    if math.isnan(expected):
        return found & 0x7E00 == 0x7E00
    return found == bits16(expected)
