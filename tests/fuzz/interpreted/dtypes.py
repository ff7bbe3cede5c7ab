"""Triton's dtypes for checks of the interpreter: bit patterns to compute with, and their numbers without the interpreter."""

import functools

import numpy as np
import torch
import triton
import triton.language as tl

IS_36 = triton.__version__.startswith("3.6")
SIGNED, UNSIGNED, FLOATS = tl.dtype.SINT_TYPES, tl.dtype.UINT_TYPES, tl.dtype.FP_TYPES
INTEGERS = SIGNED + UNSIGNED
NAMES = INTEGERS + FLOATS
FLOAT8 = [name for name in FLOATS if name.startswith("fp8")]
STANDARD = tl.dtype.STANDARD_FP_TYPES
LANES = 1 << 16

TORCH = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5": torch.float8_e5m2,
    "fp8e5b16": torch.float8_e5m2fnuz,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
"""PyTorch's dtypes of floats. It has no fp8e4b15, which is float16 with 4 bits less."""


_DTYPES = {member.name: member for member in vars(tl).values() if isinstance(member, tl.dtype)}


def dtype_of(name: str) -> tl.dtype:
    return _DTYPES[name]


def width(name: str) -> int:
    """Bits of a dtype in memory."""
    return max(8, dtype_of(name).primitive_bitwidth)


def unsigned(name: str) -> np.dtype:
    return np.dtype(f"uint{width(name)}")


def numbers(bits: np.ndarray, name: str) -> np.ndarray:
    """The numbers of bit patterns, exactly: float64 of floats, bool of int1, and NumPy's dtype of other integers."""
    if name == "int1":
        return bits.astype(bool)
    if name in INTEGERS:
        return bits.view(name)
    if name == "fp8e4b15":
        sign, exponent, mantissa = bits >> 7, (bits >> 3 & 15).astype(int), (bits & 7).astype(float)
        size = np.where(exponent == 0, mantissa / 8 * 2.0**-14, (1 + mantissa / 8) * 2.0 ** (exponent - 15))
        return np.where(sign == 1, -size, size)
    if width(name) >= 32:
        found = bits.view(f"float{width(name)}").astype(np.float64)
        return np.where(np.isnan(found), np.nan, found)  # NumPy takes signaling NaN for a number in some places
    return torch.from_numpy(bits.copy()).view(TORCH[name]).double().numpy()


def patterns(name: str, seed: int = 0) -> np.ndarray:
    """65,536 bit patterns: of up to 16 bits all, over and over; of more edges, usual numbers, and any patterns."""
    bits = unsigned(name)
    if name == "int1":
        return (np.arange(LANES) % 2).astype(bits)
    if bits.itemsize <= 2:
        return np.arange(LANES).astype(bits)
    chance = np.random.default_rng(seed)
    found = chance.integers(0, np.iinfo(bits).max, LANES, dtype=bits, endpoint=True)
    if name in FLOATS:
        usual = chance.normal(0, 1, LANES // 2) * 2.0 ** chance.integers(-40, 40, LANES // 2)
        found[: LANES // 2] = usual.astype(f"float{width(name)}").view(bits)
    edges = _edges(name)
    found[: len(edges)] = edges
    return found


def _edges(name: str) -> np.ndarray:
    """Powers of two and halves between them, limits of all narrower dtypes, each with the patterns around it."""
    bits = unsigned(name)
    if name in INTEGERS:
        powers = [1 << n for n in range(width(name))]
        around = [power + step for power in [0, *powers] for step in (-2, -1, 0, 1, 2)]
        around += [3 * power + step for power in powers for step in (-1, 0, 1)]
        return np.array([number % (1 << width(name)) for number in around], dtype=bits)
    kind = f"float{width(name)}"
    halfway = [
        (1 + (2 * odd + 1) * 2.0 ** -(kept + 1)) * 2.0**power
        for kept in (2, 3, 7, 10)
        for odd in (0, 1)
        for power in (-17, -16, -15, -14, -10, -9, -8, -7, -6, 0, 1, 15)
    ]
    limits = [0, 0.5, 1.5, 2.5, *halfway, *(2.0**power for power in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64, 127))]
    limits += [240, 248, 448, 464, 57344, 61440, 65504, 65520, 3.3895e38, 3.4e38, 1.75, 1.8125, 1.875, np.inf, np.nan]
    sized = np.array(limits).astype(kind)
    signed = np.concatenate([sized, -sized]).view(bits)
    return np.concatenate([signed + bits.type(step % (1 << width(name))) for step in (-1, 0, 1)])


def pairs(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """65,536 pairs: all of 8 bits; else each pattern with another, chosen by chance, and the edges with each other."""
    bits = patterns(name, seed)
    if width(name) == 8:
        other = np.arange(LANES) >> dtype_of(name).primitive_bitwidth
        return bits, (other % 2 if name == "int1" else other).astype(np.uint8)
    other = np.random.default_rng(seed + 1).permutation(bits)
    special = _special(name)
    left, right = (each.ravel() for each in np.meshgrid(special, special))
    at = np.random.default_rng(seed).choice(LANES // 4, len(left), replace=False)
    # of 16 bits these lanes' own patterns are still met as `other`
    bits[at], other[at] = left, right
    return bits, other


def _special(name: str) -> np.ndarray:
    if name in INTEGERS:
        limits = [0, 1, 2, 3, 7, -1, -2, -3, -7, 1 << (width(name) - 1), (1 << (width(name) - 1)) - 1]
        return np.array([limit % (1 << width(name)) for limit in limits], dtype=unsigned(name))
    top = np.array([0, 1, -1, 1.5, -2, 3, 65504, -65504, np.inf, -np.inf, np.nan, -0.0])
    if name == "bf16":
        return (top.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return top.astype(f"float{width(name)}").view(unsigned(name))


@functools.cache
def _ladder(name: str) -> np.ndarray:
    """0 and all positive numbers of a format, and the one that would come after the largest, whose pattern is even."""
    every = numbers(np.arange(1 << width(name)).astype(unsigned(name)), name)
    positive = np.unique(every[np.isfinite(every) & (every >= 0)])
    return np.append(positive, 2 * positive[-1] - positive[-2])


def nearest(values: np.ndarray, name: str, *, toward_zero: bool = False) -> np.ndarray:
    """Float64 numbers rounded to a float of up to 16 bits, by search among all of its numbers. Float8 saturates."""
    ladder = _ladder(name)
    largest = ladder[-2]
    size = np.abs(values)
    below = np.clip(np.searchsorted(ladder, size, side="right") - 1, 0, len(ladder) - 2)
    low, high = ladder[below], ladder[below + 1]
    up = (size - low > high - size) | ((size - low == high - size) & (below % 2 == 1))
    rounded = np.where(up & (not toward_zero) & (size < ladder[-1]), high, low)
    overflows = (rounded == ladder[-1]) | (size >= ladder[-1])
    past = largest if name in FLOAT8 or toward_zero else np.inf
    rounded = np.where(overflows, past, rounded)
    rounded = np.where(np.isinf(size) & (name not in FLOAT8), np.inf, rounded)
    return np.where(np.isnan(values), np.nan, np.copysign(rounded, values))


def agree(got: np.ndarray, expected: np.ndarray, name: str) -> np.ndarray:
    """True where two arrays of numbers are the same: NaN is NaN, and 0 is not -0, which the FNUZ formats do not have."""
    if name not in FLOATS:
        return got == expected
    same_sign = (np.signbit(got) == np.signbit(expected)) | (got != 0) | (name in ("fp8e4b8", "fp8e5b16"))
    return ((got == expected) & same_sign) | (np.isnan(got) & np.isnan(expected))
