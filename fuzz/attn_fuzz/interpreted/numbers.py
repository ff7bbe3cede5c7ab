"""Numbers of Triton's dtypes as its interpreter stores them, and every cast between two of them.

The interpreter stores bfloat16 as uint16 and float8 as uint8: NumPy has neither. A cast gives what compiled code gives:

    to a float      the nearest number, ties to even. Float8 saturates and bfloat16 does not, as the GPUs' instructions. From an
                    integer to bfloat16 by way of float32, as PyTorch and AMD's instructions do (PTX rounds once).
                    Toward zero, where a kernel asks for "rtz".
    to an integer   toward zero. LLVM leaves numbers out of range undefined. GPUs' instructions define them, and so does a cast
                    here: NaN is 0, 32 and 64 bits saturate, and fewer bits are the low bits of the 32.
    to fp8e4b15     from float16 and float32, as `triton/language/extra/cuda/utils.py` does it in PTX: by way of float16 toward
                    zero, ties away from zero, at most 1.75. NVIDIA's backend casts nothing else to it. AMD's has no fp8e4b15.

Between float8 and float64, and between two formats of float8, no backend casts. They are casts here nevertheless.
"""

import numpy as np
import torch
from attn_fuzz.errors import LimitError, RefusedByTritonError

_INTERPRETS_E4M3FNUZ = (3, 9)
"""The first Triton whose interpreter is known to have gfx942's float8. Triton 3.6 lacks it."""
STORED = {
    "int1": np.dtype(np.bool_),
    **{f"int{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
    "bf16": np.dtype(np.uint16),
    **dict.fromkeys(("fp8e4nv", "fp8e4b8", "fp8e5", "fp8e5b16", "fp8e4b15"), np.dtype(np.uint8)),
}
"""The NumPy dtype in which the interpreter stores each of Triton's dtypes, by name."""

_FLOAT8 = {
    "fp8e4nv": (torch.float8_e4m3fn, 448.0),
    "fp8e4b8": (torch.float8_e4m3fnuz, 240.0),
    "fp8e5": (torch.float8_e5m2, 57344.0),
    "fp8e5b16": (torch.float8_e5m2fnuz, 57344.0),
}
"""PyTorch's dtype of a float8, and its largest finite number."""
_QUIET_NAN = np.uint16(0x7FC0)
_E4B15_LARGEST = np.uint16(0x3F00)
"""1.75 as the bits of float16."""


def missing_e4m3fnuz() -> str | None:
    """The reason why Triton's interpreter cannot take gfx942's float8, or None if it can."""
    import triton

    release = triton.__version__
    if tuple(int(part) for part in release.split(".")[:2]) < _INTERPRETS_E4M3FNUZ:
        return f"the interpreter of triton {release} lacks gfx942's float8_e4m3fnuz: pip install 'triton>=3.9'"
    return None


def cast(data: np.ndarray, source: str, target: str, *, toward_zero: bool = False) -> np.ndarray:
    """Stored numbers of one dtype, cast to another.

    Raises:
        RefusedByTritonError: a cast that Triton does not compile.
        LimitError: the dtype is not known here.
    """
    to = STORED.get(target)
    if to is None:
        raise _unknown(target)
    if target == "fp8e4b15":
        return _to_e4b15(data, source)
    numbers = decoded(data, source)
    if (source.startswith("fp8") and "int" in target) or ("int" in source and target.startswith("fp8")):
        raise RefusedByTritonError(f"a cast from {source} to {target}: Triton casts float8 to and from floats alone")
    if numbers.dtype.kind != "f" or not toward_zero:
        return _rounded(numbers, target)
    nearest = _rounded(numbers, target)
    bits = nearest.view(f"uint{8 * to.itemsize}")
    too_large = np.abs(decoded(nearest, target)) > np.abs(numbers)
    smaller = bits - bits.dtype.type(1)
    if target in ("fp8e4b8", "fp8e5b16"):
        smaller[smaller == 0x80] = 0  # which is their NaN, not -0
    return np.where(too_large, smaller, bits).view(to)


def decoded(data: np.ndarray, name: str) -> np.ndarray:
    """The numbers of a dtype in a dtype of NumPy that holds them exactly: float32 for bfloat16 and float8, else as they are."""
    if name == "bf16":
        return np.left_shift(data, 16, dtype=np.uint32).view(np.float32)
    if name in _FLOAT8:
        bits = torch.from_numpy(np.array(data, ndmin=1)).view(_FLOAT8[name][0])
        found = bits.float().numpy().reshape(data.shape)
        found[np.isnan(found)] = np.nan  # PyTorch's is signaling
        return found
    if name == "fp8e4b15":
        bits = data.astype(np.uint16)
        return ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(np.float16).astype(np.float32)
    if name not in STORED:
        raise _unknown(name)
    return data


def larger(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The larger of two numbers, or the one that is not NaN. C's fmax, and NumPy's, give NaN where one is a signaling NaN."""
    found = np.maximum(x, y)
    return found if not np.isnan(found).any() else np.fmax(_quiet(x), _quiet(y))


def smaller(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The smaller of two numbers, or the one that is not NaN."""
    found = np.minimum(x, y)
    return found if not np.isnan(found).any() else np.fmin(_quiet(x), _quiet(y))


def largest(numbers: np.ndarray, axis: int) -> np.ndarray:
    """The largest along an axis; NaN where all are NaN."""
    found = np.maximum.reduce(numbers, axis=axis)
    return found if not np.isnan(found).any() else np.fmax.reduce(_quiet(numbers), axis=axis)


def smallest(numbers: np.ndarray, axis: int) -> np.ndarray:
    """The smallest along an axis; NaN where all are NaN."""
    found = np.minimum.reduce(numbers, axis=axis)
    return found if not np.isnan(found).any() else np.fmin.reduce(_quiet(numbers), axis=axis)


def _quiet(numbers: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers)


def rounded_to_odd(sums: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Float64 sums that were rounded to nearest, rounded to odd: a second rounding to fewer bits is then right.

    Args:
        errors: exact results minus `sums`, or numbers of the same signs.
    """
    is_even = (sums.view(np.int64) & 1) == 0
    inexact = (errors != 0) & np.isfinite(sums) & np.isfinite(errors)
    neighbours = np.nextafter(sums, np.where(errors > 0, np.inf, -np.inf))
    return np.where(inexact & is_even, neighbours, sums)


def _rounded(numbers: np.ndarray, target: str) -> np.ndarray:
    to = STORED[target]
    if target == "bf16":
        return _to_bfloat16(_to_float32(numbers))
    if target in _FLOAT8:
        return _to_float8(numbers, *_FLOAT8[target])
    if to.kind == "b":
        return numbers != 0
    if numbers.dtype.kind == "f" and to.kind in "iu":
        return _to_integer(numbers, to)
    return numbers.astype(to)


def _to_integer(numbers: np.ndarray, to: np.dtype) -> np.ndarray:
    wide = np.dtype(np.int32) if to.itemsize < 4 else to
    low, high = np.iinfo(wide).min, np.iinfo(wide).max
    numbers = np.trunc(numbers.astype(np.float64))
    # a float64 holds neither 2^63 - 1 nor 2^64 - 1
    in_range = np.where((numbers >= low) & (numbers < float(high) + (wide.itemsize < 8)), numbers, 0).astype(wide)
    limits = np.where(numbers > 0, wide.type(high), wide.type(low))
    beyond = (numbers < low) | (numbers >= float(high))
    return np.where(beyond, limits, in_range).astype(to)


def _to_float32(numbers: np.ndarray) -> np.ndarray:
    """Numbers in float32. Float64 is rounded such that a second rounding to fewer bits is right, integers to nearest."""
    if numbers.dtype != np.float64:
        return numbers.astype(np.float32)
    nearest = numbers.astype(np.float32)
    error = numbers - nearest
    odd = (nearest.view(np.int32) & 1) != 0
    inexact = (error != 0) & np.isfinite(error) & ~odd
    return np.where(inexact, np.nextafter(nearest, np.where(error > 0, np.inf, -np.inf).astype(np.float32)), nearest)


def _to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    bits = numbers.view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nearest = rounded.astype(np.uint16)
    is_nan = numbers != numbers
    return np.where(is_nan, _QUIET_NAN, nearest) if is_nan.any() else nearest


def _to_float8(numbers: np.ndarray, dtype: torch.dtype, largest: float) -> np.ndarray:
    bounded = np.where(np.isnan(numbers), numbers, np.clip(numbers, -largest, largest))
    narrow = torch.from_numpy(np.atleast_1d(_to_float32(bounded))).to(dtype)
    return narrow.view(torch.uint8).numpy().reshape(numbers.shape)


def _to_e4b15(data: np.ndarray, source: str) -> np.ndarray:
    if source not in ("fp16", "fp32"):
        raise RefusedByTritonError(f"a cast from {source} to fp8e4b15: Triton compiles casts from fp16 and fp32 alone")
    half = cast(data, source, "fp16", toward_zero=True) if source == "fp32" else data
    bits = half.view(np.uint16)
    magnitude = np.minimum(bits & np.uint16(0x7FFF), _E4B15_LARGEST)
    return ((bits & np.uint16(0x8000)) >> 8 | (magnitude * np.uint16(2) + np.uint16(0x80)) >> 8).astype(np.uint8)


def _unknown(name: str) -> LimitError:
    return LimitError(f"Triton's dtype {name} is not known to attn_fuzz.interpreted.numbers")
