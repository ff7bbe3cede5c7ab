"""Readers of the elements of A and B: they make floats of a lane's registers, whose bits stand in a row.

Integers of 8 and fewer bits are read as float32, too: their sums of up to 128 products are below 2**24, and so exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from attn_amdgcn.instructions.convert import bf16_to_f32


class ElementFormat(NamedTuple):
    """A format of elements.

    Attributes:
        bits: the number of bits of an element.
        values: from elements to floats. Elements of 8, 16 and 32 bits are unsigned integers of that width. Others are given as
            uint32 [..., words], contiguous, and become [..., words * 32 / bits]: the lowest bits are the first element.
        tiny: the least magnitude that is no denormal.
    """

    bits: int
    values: Callable[[np.ndarray], np.ndarray]
    tiny: float = 0.0


def small_floats(exponent_bits: int, mantissa_bits: int, bias: int, special: str = "none") -> np.ndarray:
    """The values of all floats of up to 8 bits with a sign.

    Args:
        special: "ieee" (the highest exponent holds infinities and NaN), "ocp" (all ones are NaN), "fnuz" (minus zero is NaN)
            or "none" (each number is finite).
    """
    bits = np.arange(1 << 1 + exponent_bits + mantissa_bits)
    mantissa = bits % (1 << mantissa_bits)
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    significand = np.where(exponent == 0, mantissa, mantissa + (1 << mantissa_bits))
    sign = np.where(bits >> exponent_bits + mantissa_bits, -1.0, 1.0)
    values = sign * significand * 2.0 ** (np.maximum(exponent, 1) - bias - mantissa_bits)
    highest = exponent == (1 << exponent_bits) - 1
    if special == "ieee":
        values = np.where(highest, np.where(mantissa == 0, sign * np.inf, np.nan), values)
    elif special == "ocp":
        values[highest & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    elif special == "fnuz":
        values[len(bits) // 2] = np.nan
    return values.astype(np.float32)


def _bytes(table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda codes: table.take(codes)


def _halves_of_bytes(table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    both = np.stack([table[np.arange(256) % 16], table[np.arange(256) // 16]], axis=1)

    def values(words: np.ndarray) -> np.ndarray:
        pairs = both.take(words.view(np.uint8), axis=0)
        return pairs.reshape(*pairs.shape[:-2], -1)

    return values


def _six_bits(table: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Four elements stand in three bytes."""

    def values(words: np.ndarray) -> np.ndarray:
        parts = words.view(np.uint8)
        threes = parts.reshape(*parts.shape[:-1], -1, 3).astype(np.uint32)
        joined = threes[..., 0] | threes[..., 1] << 8 | threes[..., 2] << 16
        found = table.take(joined[..., None] >> np.arange(0, 24, 6, dtype=np.uint32) & 63)
        return found.reshape(*found.shape[:-2], -1)

    return values


_CODES_OF_4_BITS = np.arange(16, dtype=np.float32)
FORMATS = {
    "f64": ElementFormat(64, lambda words: words.view(np.float64)),
    "f32": ElementFormat(32, lambda bits: bits.view(np.float32)),
    "f16": ElementFormat(16, lambda bits: bits.view(np.float16).astype(np.float32), 2.0**-14),
    "bf16": ElementFormat(16, bf16_to_f32, 2.0**-126),
    "fp8": ElementFormat(8, _bytes(small_floats(4, 3, 7, "ocp"))),
    "bf8": ElementFormat(8, _bytes(small_floats(5, 2, 15, "ieee"))),
    "fp8_fnuz": ElementFormat(8, _bytes(small_floats(4, 3, 8, "fnuz"))),
    "bf8_fnuz": ElementFormat(8, _bytes(small_floats(5, 2, 16, "fnuz"))),
    "fp6": ElementFormat(6, _six_bits(small_floats(2, 3, 1))),
    "bf6": ElementFormat(6, _six_bits(small_floats(3, 2, 3))),
    "fp4": ElementFormat(4, _halves_of_bytes(small_floats(2, 1, 1))),
    "i8": ElementFormat(8, lambda bits: bits.view(np.int8).astype(np.float32)),
    "u8": ElementFormat(8, lambda bits: bits.astype(np.float32)),
    "i4": ElementFormat(4, _halves_of_bytes(np.where(_CODES_OF_4_BITS < 8, _CODES_OF_4_BITS, _CODES_OF_4_BITS - 16))),
    "u4": ElementFormat(4, _halves_of_bytes(_CODES_OF_4_BITS)),
}
"""fp8 and bf8 are OCP's E4M3 and E5M2, and those of gfx942 are "fnuz". fp6, bf6 and fp4 are E2M3, E3M2 and E2M1 of OCP's
Microscaling Formats, section 5.3."""


def flushed(values: np.ndarray, tiny: float) -> np.ndarray:
    """Floats with denormals made zeros of their sign."""
    return values * (np.abs(values) >= tiny)
