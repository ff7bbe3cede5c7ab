"""A product and a sum that are rounded once.

float64 holds the product of two float32 exactly, and rounds their sum with a third one; rounding to float32 then rounds a
second time. That changes the result only if the float64 lies halfway between two float32 and is itself rounded. Such sums are
rounded to odd: of the two float64 around the exact sum the one whose last bit is 1 is taken, which lies halfway only if the
exact sum does. (Boldo and Melquiond, "Emulation of a FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to
Odd", 2008.)
"""

from fractions import Fraction

import numpy as np

F16, F32, F64 = np.float16, np.float32, np.float64
_KEPT = np.int64(35)  # bits of a float64 in front of the 29 that a float32 has no room for
_ONE = np.uint32(1)
_HALFWAY = np.iinfo(np.int64).min
_TWICE_SMALLEST_NORMAL = 2 * 0x00800000


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, rounded once."""
    product, wide = a.astype(F64) * b.astype(F64), c.astype(F64)  # faster than arithmetic of mixed widths
    total = product + wide
    result = total.astype(F32)
    return _odd(product, wide).astype(F32) if _may_be_halfway(total, result) else result


def fma32_scaled(a: np.ndarray, b: np.ndarray, c: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """(a * b + c) * 2 ** exponent of float32, rounded once. The exponent is at most 64 from 0."""
    return np.ldexp(_odd(np.multiply(a, b, dtype=F64), c.astype(F64)), exponent).astype(F32)


def fma32_to_odd(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c, as a float32 rounded to odd: rounding it to a bfloat16 is rounding the exact sum."""
    return _narrowed(_odd(np.multiply(a, b, dtype=F64), c.astype(F64)))


def dot2_to_odd(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    """a * b + c * d + e of bfloat16 that are held in float32, as a float32 rounded to odd."""
    first, lost = _sum(np.multiply(a, b, dtype=F64), np.multiply(c, d, dtype=F64))
    total, lost_then = _sum(first, e.astype(F64))
    rest = _odd(lost, lost_then)
    return _narrowed(np.where(np.isfinite(total) & (rest != 0), _odd(total, rest), total))


def _narrowed(total: np.ndarray) -> np.ndarray:
    """float64 as float32, rounded to odd."""
    nearest = total.astype(F32)
    inexact, is_even = nearest != total, nearest.view(np.uint32) & 1 == 0
    other = np.nextafter(nearest, np.copysign(F32(np.inf), (total - nearest).astype(F32)))
    return np.where(inexact & is_even & np.isfinite(nearest), other, nearest)


def fma16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float16, rounded once.

    The product has 22 bits and is exact. If its sum with c does not fit the 53 bits of a float64, then either the product is
    beyond the largest float16 by far, or it is so small that the sum lies close to c, which is a float16 and not halfway.
    """
    return (np.multiply(a, b, dtype=F64) + c).astype(F16)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float64, rounded once: lane by lane in fractions, which is slow."""
    a, b, c = np.broadcast_arrays(a, b, c)
    result = a * b + c
    places = np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c))
    for place in places:
        exact = Fraction(float(a.flat[place])) * Fraction(float(b.flat[place])) + Fraction(float(c.flat[place]))
        if exact:
            try:
                result.flat[place] = exact.numerator / exact.denominator
            except OverflowError:
                result.flat[place] = np.inf if exact > 0 else -np.inf
    return result


def _may_be_halfway(total: np.ndarray, result: np.ndarray) -> bool:
    """True if a float64 lies halfway between two normal float32, or its float32 is the least normal one or a denormal, not 0.

    An exact sum that rounds to the float32 0 has few bits: float64 holds it.
    """
    dropped = total.view(np.int64) << _KEPT
    if np.minimum.reduce(dropped, axis=None) == _HALFWAY:
        return True
    magnitude = result.view(np.uint32) << _ONE
    magnitude -= _ONE  # 0 becomes the largest
    return bool(np.minimum.reduce(magnitude, axis=None) < _TWICE_SMALLEST_NORMAL)


def _odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two float64, rounded to odd."""
    total, error = _sum(a, b)
    if not np.count_nonzero(error):
        return total
    is_even = total.view(np.int64) & 1 == 0
    other = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & is_even & np.isfinite(total), other, total)


def _sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum of two float64, and what it lacks of the exact sum; the latter is exact where the sum is finite."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)
