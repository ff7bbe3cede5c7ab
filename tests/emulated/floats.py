"""Edge values of floats, exact rounding by fractions, and runs of one instruction on every combination of values."""

import itertools
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from tests.emulated.lines import ran

FORMATS = {"bf16": (8, -126, 127), "f16": (11, -14, 15), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
"""Bits of the mantissa, and the least and the largest exponent of a normal number."""

_LETTERS = {"f16": "e", "f32": "f", "f64": "d"}
QUIET = {"bf16": 0x7FC0, "f16": 0x7E00, "f32": 0x7FC00000, "f64": 0x7FF8 << 48}
"""A quiet NaN."""
NUMBERS = [
    0.75,
    0.999,
    2.5,
    3.0,
    7.9,
    255.0,
    65519.0,
    65520.0,
    8388607.5,
    2147483520.0,
    4294967040.0,
    2.0**31,
    2.0**32,
    2.0**33,
]
NUMBERS += [
    1 + 2.0**-11,
    1 + 3 * 2.0**-11,
    2.0**-25,
    3 * 2.0**-25,
    2.0**-26,
    1 + 2.0**-24,
    1 + 3 * 2.0**-24,
    1e-46,
    1e-300,
    1e300,
]
"""Numbers about the limits of integers, and between neighbours in another format."""


def rounded(exact: Fraction, kind: str) -> float:
    """The nearest number of a format, or of two the one whose last bit is 0."""
    bits, least, most = FORMATS[kind]
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - bits + 1)
    nearest = round(magnitude / step) * step
    value = math.inf if nearest >= Fraction(2) ** (most + 1) else float(nearest)
    return math.copysign(value, 1 if exact > 0 else -1)


def number(bits: int, kind: str) -> float:
    if kind == "bf16":
        return number(bits << 16, "f32")
    letter = _LETTERS[kind]
    return struct.unpack(f"<{letter}", bits.to_bytes(struct.calcsize(letter), "little"))[0]


def bits_of(value: float, kind: str) -> int:
    """The bits of a number in the format, or of a NaN."""
    if math.isnan(value):
        return QUIET[kind]
    return bits_of(value, "f32") >> 16 if kind == "bf16" else int.from_bytes(struct.pack(f"<{_LETTERS[kind]}", value), "little")


def is_same(found: int, expected: float, kind: str) -> bool:
    """True if the bits are those of a number. For a NaN, they may be those of any quiet NaN."""
    return found & QUIET[kind] == QUIET[kind] if math.isnan(expected) else found == bits_of(expected, kind)


def edges(kind: str) -> list[int]:
    """Bits of zeros, denormals, normal numbers, infinities, quiet NaN and signaling ones, each with both signs."""
    mantissa, most = FORMATS[kind][0] - 1, FORMATS[kind][2]
    last, half, power = 1, 1 << mantissa - 1, 1 << mantissa
    one, infinity, far = most * power, (2 * most + 1) * power, FORMATS[kind][0] * power
    positive = [0, last, power - last, power, one - far, one - power, one - last, one, one + last, one + half, one + power]
    positive += [one + power + (0x921FB54442D18 >> 52 - mantissa), one + far + last, infinity - last, infinity]
    positive += [infinity + last, infinity + half, infinity + half + 5]
    positive += [bits_of(rounded(Fraction(value), kind), kind) for value in NUMBERS]
    sign = 2 * (most + 1) * power
    return [each + of for each in dict.fromkeys(positive) for of in (0, sign)]


f32, f16 = partial(number, kind="f32"), partial(number, kind="f16")
bits32, bits16 = partial(bits_of, kind="f32"), partial(bits_of, kind="f16")
EDGES32, EDGES16 = edges("f32"), edges("f16")


def product_sum(a: float, b: float, c: float, kind: str) -> float:
    """a * b + c, rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        product = (
            math.nan
            if math.isnan(a) or math.isnan(b) or {0, math.inf} == {abs(a), abs(b)} or (math.isinf(a) and b == 0)
            else a * b
        )
        return product + c
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:
        return math.copysign(0.0, a) * math.copysign(1.0, b) + math.copysign(0.0, c) if c == 0 and a * b == 0 else 0.0
    return rounded(total, kind)


def plain_sum(a: float, b: float, kind: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or a == b == 0:
        return a + b
    return rounded(Fraction(a) + Fraction(b), kind)


def product(a: float, b: float, kind: str) -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or 0 in (a, b):
        return a * b
    value = rounded(Fraction(a) * Fraction(b), kind)
    return math.copysign(value, math.copysign(1, a) * math.copysign(1, b))


def columns(*values: Sequence[int]) -> tuple[list[tuple[int, ...]], list[np.ndarray]]:
    """Every combination, and for each source [waves, 64] uint32 with the combinations in the lanes."""
    rows = list(itertools.product(*values))
    padded = rows + rows[:1] * (-len(rows) % 64)
    return rows, [np.array(column, np.uint64).astype(np.uint32).reshape(-1, 64) for column in zip(*padded, strict=True)]


def results(
    text: str, *values: Sequence[int], architecture: str = "gfx942", old: int = 0, row: int = 9
) -> list[tuple[tuple[int, ...], int]]:
    """The combinations of the values of v0, v1, v2, each with the bits that `text` leaves in v9."""
    rows, sources = columns(*values)
    if not architecture.startswith("gfx9"):
        sources = [source.reshape(-1, 32) for source in sources]
    after = ran(text, architecture, v={9: old, **dict(enumerate(sources))}, num_waves=len(sources[0]))
    return list(zip(rows, after.vector[row].ravel().tolist(), strict=False))
