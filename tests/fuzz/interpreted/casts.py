"""Every cast between Triton's dtypes, against torch, exact arithmetic, and a search among all numbers of narrow formats."""

import math

import numpy as np
import torch

from tests.fuzz.interpreted.dtypes import FLOAT8, FLOATS, INTEGERS, NAMES, TORCH, dtype_of, nearest, numbers, patterns, width
from tests.fuzz.interpreted.running import call, check, refused

PAIRS = [(source, target) for source in NAMES for target in NAMES if source != target]


def cast(source: str, target: str) -> None:
    """All numbers of a source of up to 16 bits, and 65,536 of a wider one."""
    if reason := refusal(source, target):
        refused(f"{source} to {target} ({reason})", lambda: _got(source, target, patterns(source)))
        return
    bits = patterns(source)
    given = numbers(bits, source)
    any_sign = (target == "fp8e4b15") & np.isnan(given.astype(np.float64))  # which is that of the NaN's bits
    right = expected(given, source, target)
    check(f"{source} to {target}", _got(source, target, bits), right, target, given, where=~any_sign)


def toward_zero(source: str, target: str) -> None:
    """The casts to which a kernel may give fp_downcast_rounding="rtz"."""
    bits = patterns(source)
    given = numbers(bits, source)
    got = call(lambda x: x.to(dtype_of(target), fp_downcast_rounding="rtz"), [(source, bits)], target)
    check(f"{source} to {target}, rtz", got, nearest(given, target, toward_zero=True), target, given)


TOWARD_ZERO = [
    (source, target)
    for source in ("fp16", "bf16", "fp32", "fp64")
    for target in FLOATS
    if width(target) < min(32, width(source)) and target != "fp8e4b15"
]


def refusal(source: str, target: str) -> str:
    """The reason why no backend compiles a cast; empty if one does, or could."""
    if (source in FLOAT8 and target in INTEGERS) or (source in INTEGERS and target in FLOAT8):
        return "Triton casts float8 to and from floats alone"
    if target == "fp8e4b15" and source not in ("fp16", "fp32"):
        return "Triton casts to fp8e4b15 from fp16 and fp32 alone"
    return ""


def expected(given: np.ndarray, source: str, target: str) -> np.ndarray:
    if target == "int1":
        return given != 0
    if target in INTEGERS:
        return _to_integer(given, source, target)
    if target == "fp8e4b15":
        return _to_e4b15(given)
    if width(target) >= 32:
        return given.astype(f"float{width(target)}").astype(np.float64)
    if source in INTEGERS and target == "bf16":
        return torch.from_numpy(given.copy()).to(TORCH[target]).double().numpy()
    return nearest(given.astype(np.float64), target)


def _got(source: str, target: str, bits: np.ndarray) -> np.ndarray:
    return call(lambda x: x.to(dtype_of(target)), [(source, bits)], target)


def _to_integer(given: np.ndarray, source: str, target: str) -> np.ndarray:
    """Modulo 2^bits from integers. From floats toward zero; out of range as instructions of GPUs have it."""
    size, signed = width(target), target in NAMES[:4]
    if source in INTEGERS:
        return (given.astype(np.uint64) & np.uint64((1 << size) - 1)).astype(f"uint{size}").view(target)
    wide = max(size, 32)
    low, high = (-(1 << (wide - 1)), (1 << (wide - 1)) - 1) if signed or size < 32 else (0, (1 << wide) - 1)

    def bounded(number: float) -> int:
        if math.isnan(number):
            return 0
        return (high if number > 0 else low) if math.isinf(number) else min(max(int(number), low), high)

    usual = np.abs(given) < 2.0**31
    found = np.trunc(np.where(usual, given, 0)).astype(np.int64)
    if not low:
        found = np.maximum(found, 0)
    found = found.astype(np.uint64)
    found[~usual] = [bounded(number) % (1 << 64) for number in given[~usual].tolist()]
    return (found & np.uint64((1 << size) - 1)).astype(f"uint{size}").view(target)


def _to_e4b15(given: np.ndarray) -> np.ndarray:
    """The cast by way of float16: toward zero, then to nearest with ties away from zero, at most 1.75, as is NaN."""
    half = np.minimum(np.nan_to_num(np.abs(nearest(given, "fp16", toward_zero=True)), nan=2), 1.75)
    every = np.unique(np.abs(numbers(np.arange(256).astype(np.uint8), "fp8e4b15")))
    above = np.clip(np.searchsorted(every, half), 1, len(every) - 1)
    low, high = every[above - 1], every[above]
    return np.copysign(np.where(high - half <= half - low, high, low), given)
