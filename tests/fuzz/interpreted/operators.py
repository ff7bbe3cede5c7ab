"""Operators and elementwise functions of Triton's language in every dtype, against torch and exact arithmetic."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from tests.fuzz.interpreted.dtypes import (
    FLOAT8,
    INTEGERS,
    IS_36,
    LANES,
    NAMES,
    STANDARD,
    TORCH,
    dtype_of,
    nearest,
    numbers,
    pairs,
    patterns,
    unsigned,
    width,
)
from tests.fuzz.interpreted.running import call, check, close, refused

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
ARITHMETIC = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def binary(method: str) -> Callable[[], None]:
    """An operator of two blocks: all pairs of 8 bits, 65,536 pairs of more; or the reflected one, of some of them."""
    plain = method.strip("_")
    reflected = plain not in ("rshift",) and plain.startswith("r")
    name = plain[1:] if reflected else plain

    def check_all() -> None:
        for dtype in NAMES:
            first, second = (each[: LANES // 16] if reflected else each for each in pairs(dtype))
            x, y = numbers(first, dtype), numbers(second, dtype)
            operands = [(dtype, second), (dtype, first)] if reflected else [(dtype, first), (dtype, second)]
            found = _binary(name, dtype, x, y)
            if found is None:
                refused(f"{method} of {dtype}", lambda operands=operands, dtype=dtype: _apply(method, operands, dtype))
                continue
            expected, result, where = found
            check(f"{method} of {dtype}", _apply(method, operands, result), expected, result, x, y, where=where)

    return check_all


def _apply(method: str, operands: Any, result: str) -> np.ndarray:
    return call(lambda x, y: getattr(x, method)(y), operands, result)


def _binary(name: str, dtype: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str, Any] | None:
    """The result of x and y, its dtype, and where it is defined; None if compiled code has none."""
    with np.errstate(all="ignore"):
        if name in ("truediv", "mod") and dtype not in INTEGERS and not (IS_36 and dtype in FLOAT8):
            result = "fp64" if dtype == "fp64" else "fp32"
            exact = np.fmod(x, y) if name == "mod" else (x.astype(f"float{width(result)}") / y.astype(f"float{width(result)}"))
            return exact.astype(np.float64), result, True
        if dtype in FLOAT8:
            return None
        if name in COMPARISONS:
            return getattr(operator, name)(x, y), "int1", True
        return _of_integers(name, dtype, x, y) if dtype in INTEGERS else _of_floats(name, dtype, x, y)


def _of_floats(name: str, dtype: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str, Any] | None:
    if name not in ARITHMETIC:
        return None
    a, b = (torch.from_numpy(each).to(TORCH[dtype]) for each in (x, y))
    return ARITHMETIC[name](a, b).double().numpy(), dtype, True


def _of_integers(name: str, dtype: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str, Any]:
    size = 1 if dtype == "int1" else width(dtype)
    if name in BITWISE:
        return BITWISE[name](x, y), dtype, True
    if name == "truediv":
        return (x.astype(np.float32) / y.astype(np.float32)).astype(np.float64), "fp32", True
    if name in ("lshift", "rshift"):
        inside = (y.astype(np.int64) >= 0) & (y.astype(np.float64) < size)
        shift = np.where(inside, y, 0).astype(np.int64).tolist()
        exact = [a << s if name == "lshift" else a >> s for a, s in zip(x.tolist(), shift, strict=True)]
        return _wrapped(exact, dtype), dtype, inside
    if name in ("floordiv", "mod"):
        defined = (y != 0) & ~((x.astype(np.float64) == -(2.0 ** (size - 1))) & (y.astype(np.float64) == -1))
        exact = [_divided(name, int(a), int(b)) if ok else 0 for a, b, ok in zip(x, y, defined, strict=True)]
        return _wrapped(exact, dtype), dtype, defined
    modulo = ARITHMETIC[name](x.astype(np.uint64), y.astype(np.uint64)) & np.uint64((1 << size) - 1)
    return numbers(modulo.astype(unsigned(dtype)), dtype), dtype, True


def _divided(name: str, x: int, y: int) -> int:
    """C's division: the quotient is truncated, and the remainder has the sign of x."""
    quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
    return quotient if name == "floordiv" else x - quotient * y


def _wrapped(exact: list[int], dtype: str) -> np.ndarray:
    size = 1 if dtype == "int1" else width(dtype)
    return numbers(np.array([number % (1 << size) for number in exact], dtype=unsigned(dtype)), dtype)


def negated() -> None:
    for dtype in NAMES:
        bits = patterns(dtype)
        given = numbers(bits, dtype)
        if dtype in FLOAT8:
            refused(f"- of {dtype}", lambda dtype=dtype, bits=bits: call(operator.neg, [(dtype, bits)], dtype))
            continue
        got = call(operator.neg, [(dtype, bits)], dtype)
        if dtype in INTEGERS:
            check(f"- of {dtype}", got, _wrapped([-int(number) for number in given], dtype), dtype, given)
        else:  # Triton 3.6 subtracts from 0, so the sign of 0 is another
            check(f"- of {dtype}", got, -given, dtype, given, where=given != 0)


def inverted() -> None:
    for dtype in INTEGERS:
        bits = patterns(dtype)
        given = numbers(bits, dtype)
        check(f"~ of {dtype}", call(operator.invert, [(dtype, bits)], dtype), ~given, dtype, given)


def logical() -> None:
    """`and`, `or` and `not` of blocks, as words and as methods."""
    for which, expected in enumerate((np.logical_and, np.logical_or, lambda x, y: ~x & y)):
        first, second = pairs("int1")
        operands = [("int1", first), ("int1", second)]
        got = call(lambda x, y, which=which: words(x, y, which), operands, "int1")
        check(f"word {which}", got, expected(first != 0, second != 0), "int1", first, second)
    for method in ("logical_and", "logical_or"):
        got = _apply(method, operands, "int1")
        check(method, got, getattr(np, method)(first != 0, second != 0), "int1", first, second)
    refused("if of a block", lambda: call(branch, operands[:1], "int1"))


@triton.jit
def words(x, y, WHICH: tl.constexpr):
    if WHICH == 0:
        both = x and y  # Triton 3.6 rewrites what is assigned by another way
        return both  # noqa: RET504
    if WHICH == 1:
        return x or y
    return not x and y


@triton.jit
def branch(x):
    if x:
        return x
    return not x


def absolute() -> None:
    for dtype in NAMES:
        bits = patterns(dtype)
        given = numbers(bits, dtype)
        if dtype in INTEGERS:
            expected = _wrapped([abs(int(number)) for number in given], dtype)
        else:  # compiled code clears the sign bit, which makes the NaN of FNUZ formats 0
            expected = numbers(bits & unsigned(dtype).type((1 << (width(dtype) - 1)) - 1), dtype)
        check(f"abs of {dtype}", call(tl.abs, [(dtype, bits)], dtype), expected, dtype, given)


def smaller_and_larger(name: str) -> Callable[[], None]:
    """tl.minimum and tl.maximum: a NaN loses, or wins with PropagateNan.ALL."""

    def check_all() -> None:
        function, of_numbers = getattr(tl, name), np.minimum if name == "minimum" else np.maximum
        for dtype in NAMES:
            first, second = pairs(dtype)
            x, y = numbers(first, dtype), numbers(second, dtype)
            for nan in (tl.PropagateNan.NONE, tl.PropagateNan.ALL):
                # Triton 3.6 takes bfloat16 to float32 first
                result = "fp32" if dtype == "bf16" and IS_36 else dtype

                def got(dtype=dtype, first=first, second=second, nan=nan, result=result) -> np.ndarray:
                    return call(
                        lambda left, right: function(left, right, propagate_nan=nan), [(dtype, first), (dtype, second)], result
                    )

                if dtype in FLOAT8:
                    refused(f"{name} of {dtype}", got)
                    continue
                expected = of_numbers(x, y) if nan == tl.PropagateNan.ALL else np.where(np.isnan(x), y, of_numbers(x, y))
                expected = np.where(np.isnan(y) & (nan == tl.PropagateNan.NONE), x, expected)
                same_zero = (x != 0) | (y != 0)  # LLVM leaves open which of 0 and -0 it is
                check(f"{name} of {dtype}, {nan}", got(), expected.astype(x.dtype), dtype, x, y, where=same_zero)

    return check_all


def clamped() -> None:
    for dtype in STANDARD:
        bits = patterns(dtype)
        given = numbers(bits, dtype)
        result = "fp32" if dtype == "bf16" and IS_36 else dtype
        bounds = [np.full(LANES, _bits_of(bound, dtype), unsigned(dtype)) for bound in (-1.5, 2.0)]
        operands = [(dtype, each) for each in (bits, *bounds)]
        for nan in (tl.PropagateNan.NONE, tl.PropagateNan.ALL):
            got = call(lambda x, low, high, nan=nan: tl.clamp(x, low, high, propagate_nan=nan), operands, result)
            unknown = -1.5 if nan == tl.PropagateNan.NONE else np.nan
            expected = np.where(np.isnan(given), unknown, np.clip(given, -1.5, 2.0))
            check(f"clamp of {dtype}, {nan}", got, expected, result, given)


def _bits_of(number: float, dtype: str) -> int:
    return torch.tensor([number], dtype=TORCH[dtype]).view(getattr(torch, unsigned(dtype).name)).item()


def chosen() -> None:
    """tl.where keeps bits."""
    for dtype in NAMES:
        first, second = pairs(dtype)
        flag = (np.arange(LANES) % 3 == 0).astype(np.uint8)
        got = call(tl.where, [("int1", flag), (dtype, first), (dtype, second)], dtype)
        expected = numbers(np.where(flag, first, second), dtype)
        check(f"where of {dtype}", got, expected, dtype, flag, numbers(first, dtype), numbers(second, dtype))


def of_one_number(name: str, exact: Callable[[np.ndarray], np.ndarray], relative: float) -> Callable[[], None]:
    """A function of float32 and float64, which Triton refuses in other dtypes."""

    def check_all() -> None:
        function = getattr(tl.math, name)
        for dtype in NAMES:
            bits = patterns(dtype)
            given = numbers(bits, dtype)
            if dtype not in ("fp32", "fp64") or (name == "sqrt_rn" and dtype == "fp64"):
                refused(f"{name} of {dtype}", lambda dtype=dtype, bits=bits: call(function, [(dtype, bits)], dtype))
                continue
            got = call(function, [(dtype, bits)], dtype)
            with np.errstate(all="ignore"):
                expected = exact(given)
                if dtype == "fp32":
                    expected = expected.astype(np.float32).astype(np.float64)
            close(f"{name} of {dtype}", got, expected, relative if dtype == "fp32" else 1e-13, given)

    return check_all


def divided(name: str) -> Callable[[], None]:
    def check_all() -> None:
        function = getattr(tl.math, name)
        for dtype in ("fp32",) if name == "div_rn" else ("fp32", "fp64"):
            first, second = pairs(dtype)
            x, y = (numbers(each, dtype) for each in (first, second))
            with np.errstate(all="ignore"):
                expected = (x.astype(f"float{width(dtype)}") / y.astype(f"float{width(dtype)}")).astype(np.float64)
            check(name, call(function, [(dtype, first), (dtype, second)], dtype), expected, dtype, x, y)

    return check_all


def fused() -> None:
    """tl.fma rounds once. Among the operands are products that lie next to halfway points of their dtype."""
    for dtype in NAMES:
        first, second = (each[:256].copy() for each in pairs(dtype))
        third = np.random.default_rng(5).permutation(first)
        operands = [(dtype, each.copy()) for each in (first, second, third)]
        if dtype in ("fp16", "bf16", "fp32"):
            _halfway_products(dtype, operands)
        if dtype in FLOAT8 or dtype in INTEGERS:
            refused(f"fma of {dtype}", lambda operands=operands, dtype=dtype: call(tl.fma, operands, dtype))
            continue
        if dtype == "fp64" and IS_36:
            refused("fma of fp64 in Triton 3.6", lambda operands=operands: call(tl.fma, operands, "fp64"))
            continue
        given = [numbers(bits, dtype) for _, bits in operands]
        finite = np.isfinite(given[0]) & np.isfinite(given[1]) & np.isfinite(given[2])
        expected = np.array([_fma(*each, dtype) if ok else 0.0 for *each, ok in zip(*given, finite, strict=True)])
        check(f"fma of {dtype}", call(tl.fma, operands, dtype), expected, dtype, *given, where=finite & (expected != 0))


def _halfway_products(dtype: str, operands: list[tuple[str, np.ndarray]]) -> None:
    kept = {"fp16": 10, "bf16": 7, "fp32": 23}[dtype]
    one = 1 + 2.0 ** -(kept // 2 + 1)
    lanes = 2 * kept
    tiny = [2.0**-kept * 2.0**-n for n in range(lanes)]
    for (_, bits), values in zip(operands, ([one] * lanes, [one] * lanes, tiny), strict=True):
        wide = np.array(values, dtype=np.float32)
        bits[:lanes] = (wide.view(np.uint32) >> 16) if dtype == "bf16" else wide.astype(f"float{width(dtype)}").view(bits.dtype)


def _fma(x: float, y: float, z: float, dtype: str) -> float:
    """The exact result rounded once, from a float64 that is rounded to odd."""
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    try:
        value = float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
    if dtype == "fp64":
        return value
    if Fraction(value) != exact and int(np.float64(value).view(np.int64)) % 2 == 0:
        value = math.nextafter(value, math.inf if exact > Fraction(value) else -math.inf)
    if dtype == "bf16":
        return float(nearest(np.array([value]), "bf16")[0])
    with np.errstate(over="ignore"):
        return float(np.float64(value).astype(f"float{width(dtype)}"))


def high_bits() -> None:
    """tl.umulhi, which takes all integers as unsigned."""
    for dtype in INTEGERS:
        first, second = pairs(dtype)
        operands = [(dtype, first), (dtype, second)]
        if dtype not in ("int32", "uint32", "int64", "uint64"):
            refused(f"umulhi of {dtype}", lambda operands=operands, dtype=dtype: call(tl.umulhi, operands, dtype))
            continue
        exact = [int(a) * int(b) >> width(dtype) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        check(f"umulhi of {dtype}", call(tl.umulhi, operands, dtype), _wrapped(exact, dtype), dtype, first, second)


def constants() -> None:
    """tl.full, and constants as operands."""
    for dtype in NAMES:
        value = (dtype == "int1") or (1 if dtype in INTEGERS else 1.5)
        dtype_of_block = dtype_of(dtype)

        def full(dtype_of_block=dtype_of_block, value=value, dtype=dtype) -> np.ndarray:
            return call(lambda: tl.full([16], value, dtype_of_block), [], dtype)

        if dtype in FLOAT8 and IS_36:
            refused(f"full of {dtype}, of which Triton 3.6 has no constant but 0", full)
            continue
        got = full()
        check(f"full of {dtype}", got, np.full(16, value).astype(got.dtype), dtype)
        if dtype in FLOAT8:
            continue
        bits = patterns(dtype)
        given = numbers(bits, dtype)
        got = call(lambda x, v=value: x + v, [(dtype, bits)], dtype)
        other = np.full(len(given), value).astype(given.dtype)
        found = _binary("add", dtype, given, other)
        assert found is not None
        check(f"{dtype} plus a constant", got, found[0], dtype, given)


def compared_then_cast() -> None:
    """Comparisons return int1, and casts take it."""
    for dtype in [name for name in NAMES if name not in FLOAT8]:
        first, second = pairs(dtype)
        x, y = numbers(first, dtype), numbers(second, dtype)
        for target in ("bf16", "fp32", "int32"):
            got = call(lambda x, y, t=target: (x > y).to(dtype_of(t)), [(dtype, first), (dtype, second)], target)
            check(f"{dtype} > {dtype} as {target}", got, (x > y).astype(got.dtype), target, x, y)
