"""Functions of whole blocks in every dtype: reductions, scans, shapes, memory and matrix products."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from tests.fuzz.interpreted.dtypes import (
    FLOAT8,
    INTEGERS,
    IS_36,
    NAMES,
    TORCH,
    UNSIGNED,
    dtype_of,
    numbers,
    patterns,
    unsigned,
    width,
)
from tests.fuzz.interpreted.running import call, check, close, refused

ROWS, COLUMNS = 1024, 64
SMALL = (-3, -2, -1, 0, 1, 2, 3, 4)
ARITHMETIC = [name for name in NAMES if name not in FLOAT8]


def small(name: str, shape: tuple[int, ...], values: tuple[float, ...] = SMALL, seed: int = 3) -> np.ndarray:
    """Bits of small numbers, whose sums and products every dtype has: sums are exact in any order."""
    chosen = np.random.default_rng(seed).choice(values, shape)
    if name == "int1":
        return (chosen > 0).astype(np.uint8)
    if name in INTEGERS:
        return chosen.astype(np.int64).astype(unsigned(name))
    if name == "fp8e4b15":
        sizes = np.array([0, 13, 14, 15, 15], dtype=np.uint8) << 3  # 0, 1/4, 1/2, 1, 1
        return np.where(chosen < 0, 128, 0).astype(np.uint8) | sizes[np.minimum(np.abs(chosen), 4).astype(int)]
    return torch.from_numpy(chosen.astype(np.float64)).to(TORCH[name]).view(getattr(torch, unsigned(name).name)).numpy()


def every_row(name: str) -> np.ndarray:
    """All numbers of a dtype in rows by chance, so that a row has negative ones and NaN."""
    return np.random.default_rng(11).permutation(patterns(name)).reshape(ROWS, COLUMNS)


def promoted(name: str, *, sums: bool) -> str:
    """The dtype in which tl.sum, or tl.max and tl.min, compute."""
    if name in INTEGERS and dtype_of(name).int_bitwidth < 32:
        return "uint32" if sums and name in UNSIGNED else "int32"
    if sums:
        return name
    return "fp32" if name not in INTEGERS and width(name) < 32 else name


def largest(name: str) -> Callable[[], None]:
    """tl.max and tl.min without indices: a NaN loses."""

    def check_all() -> None:
        function, of_numpy = getattr(tl, name), np.fmax if name == "max" else np.fmin
        for dtype in NAMES:
            bits = every_row(dtype)
            given, result = numbers(bits, dtype), promoted(dtype, sums=False)
            got = call(lambda x: function(x, 1), [(dtype, bits)], result)
            expected = of_numpy.reduce(given, axis=1)
            check(f"{name} of {dtype}", got, expected.astype(got.dtype), result, where=expected != 0)
            got = call(lambda x: function(x, axis=None, keep_dims=True), [(dtype, bits)], result)
            check(f"{name} of {dtype}, all", got, of_numpy.reduce(given, axis=None).reshape(1, 1).astype(got.dtype), result)

    return check_all


def largest_with_index(name: str) -> Callable[[], None]:
    """tl.argmax, tl.argmin and the indices of tl.max, tl.min: the first of equal numbers; what NaN gives is left open."""

    def check_all() -> None:
        for dtype in ARITHMETIC:
            bits = every_row(dtype)
            given = numbers(bits, dtype)
            ordinary = np.where(np.isnan(given), np.zeros_like(given), given)
            bits = np.where(np.isnan(given), bits.dtype.type(0), bits)
            got = call(lambda x: getattr(tl, f"arg{name}")(x, 1), [(dtype, bits)], "int32")
            check(f"arg{name} of {dtype}", got, getattr(np, f"arg{name}")(ordinary, axis=1).astype(np.int32), "int32")
            value = "fp32" if dtype == "bf16" and IS_36 else dtype
            got = call(lambda x: getattr(tl, name)(x, 0, return_indices=True)[0], [(dtype, bits)], value)
            expected = getattr(np, name)(ordinary, axis=0).astype(got.dtype)
            check(f"{name} of {dtype} with indices", got, expected, value, where=expected != 0)
        call(lambda x: tl.argmax(x, 0), [("fp32", np.full(4, 0x7FC00000, np.uint32))], "int32")  # of NaN alone: no exception

    return check_all


def summed() -> None:
    for dtype in NAMES:
        bits = small(dtype, (32, COLUMNS))
        given, result = numbers(bits, dtype), promoted(dtype, sums=True)
        if dtype in FLOAT8:
            refused(f"sum of {dtype}", lambda dtype=dtype, bits=bits: call(lambda x: tl.sum(x, 1), [(dtype, bits)], dtype))
            continue
        for axis in (0, 1):
            got = call(lambda x, axis=axis: tl.sum(x, axis), [(dtype, bits)], result)
            check(f"sum of {dtype}", got, given.sum(axis).astype(got.dtype), result)
        got = call(lambda x: tl.sum(x, 1, dtype=tl.float32), [(dtype, bits)], "fp32")
        close(f"sum of {dtype} as float32", got, given.astype(np.float64).sum(1), 1e-6)


def rounded_sums() -> None:
    """Sums of 16 bits are rounded to 16 bits: 256 and 1, 255 times, is not 511 in bfloat16."""
    for dtype, large in (("bf16", 256.0), ("fp16", 2048.0)):
        result = promoted(dtype, sums=True)
        bits = small(dtype, (4, 512), values=(1,))
        bits[:, 0] = small(dtype, (1,), values=(large,))[0]
        got = call(lambda x: tl.sum(x, 1), [(dtype, bits)], result)
        exact = numbers(bits, dtype).sum(1)
        close(f"sum of {dtype}", got, exact, 9 * 2.0**-8 if dtype == "bf16" else 9 * 2.0**-11)


def scanned(name: str) -> Callable[[], None]:
    def check_all() -> None:
        of_numpy = getattr(np, name)
        for dtype in NAMES:
            bits = small(dtype, (32, 16), values=(1, 2) if name == "cumprod" else (-3, -1, 0, 1, 2))
            result = promoted(dtype, sums=True)
            if IS_36 and (name == "cumprod" or dtype == "bf16"):
                result = "fp32" if dtype == "bf16" else dtype
            for reverse in (False, True):

                def got(dtype=dtype, bits=bits, reverse=reverse, result=result) -> np.ndarray:
                    return call(lambda x: getattr(tl, name)(x, 1, reverse=reverse), [(dtype, bits)], result)

                if dtype in FLOAT8:
                    refused(f"{name} of {dtype}", got)
                    continue
                given = numbers(bits, dtype)
                given = given[:, ::-1] if reverse else given
                expected = of_numpy(given, axis=1, dtype=np.float64 if dtype not in INTEGERS else np.int64)
                expected = expected[:, ::-1] if reverse else expected
                check(f"{name} of {dtype}", got(), expected.astype(got().dtype), result)

    return check_all


@triton.jit
def _affine(a, b, c, d):
    return a * c, b * c + d


@triton.jit
def _last(a, b):
    return b


def own_function() -> None:
    """tl.reduce and tl.associative_scan by a kernel's own functions, of one and of two operands, which do not commute."""
    for dtype in ARITHMETIC:
        a, b = small(dtype, (8, 8), values=(1, -1), seed=1), small(dtype, (8, 8), values=(0, 1, -1), seed=2)
        operands = [(dtype, a), (dtype, b)]
        first, second = (_as_signed(each, dtype) for each in (a, b))
        prefixes = np.zeros_like(second)
        for column in range(8):
            before = prefixes[:, column - 1] if column else 0
            prefixes[:, column] = before * first[:, column] + second[:, column]
        if dtype in INTEGERS:
            prefixes = numbers(prefixes.astype(np.int64).astype(unsigned(dtype)) & unsigned(dtype).type(_ones(dtype)), dtype)
        got = call(lambda x, y: tl.reduce((x, y), 1, _affine)[1], operands, dtype)
        check(f"reduce of {dtype}", got, prefixes[:, -1].astype(got.dtype), dtype)
        got = call(lambda x, y: tl.associative_scan((x, y), 1, _affine)[1], operands, dtype)
        check(f"associative_scan of {dtype}", got, prefixes.astype(got.dtype), dtype)
        got = call(lambda x, y: tl.reduce(x, 0, _last), operands, dtype)
        check(f"reduce of {dtype}, the last", got, numbers(a, dtype)[-1], dtype)


def _ones(name: str) -> int:
    return (1 << dtype_of(name).primitive_bitwidth) - 1


def _as_signed(bits: np.ndarray, name: str) -> np.ndarray:
    """Numbers in float64, of integers those that are next to 0 modulo 2^bits."""
    return (bits.view(f"int{width(name)}") if name in INTEGERS else numbers(bits, name)).astype(np.float64)


def bits_together(name: str) -> Callable[[], None]:
    def check_all() -> None:
        of_numpy = np.bitwise_xor if name == "xor_sum" else np.bitwise_or
        for dtype in NAMES:
            bits = every_row(dtype)

            def got(dtype=dtype, bits=bits) -> np.ndarray:
                return call(lambda x: getattr(tl, name)(x, 1), [(dtype, bits)], dtype)

            if dtype not in INTEGERS:
                refused(f"{name} of {dtype}", got)
                continue
            check(f"{name} of {dtype}", got(), of_numpy.reduce(numbers(bits, dtype), axis=1), dtype)

    return check_all


def sorted_blocks() -> None:
    """tl.sort and tl.topk, in every dtype that can be compared."""
    for dtype in [name for name in ARITHMETIC if name != "int1"]:
        bits = every_row(dtype)[:16]
        bits = np.where(np.isnan(numbers(bits, dtype)), bits.dtype.type(0), bits)
        given = np.sort(numbers(bits, dtype), axis=1)
        check(f"sort of {dtype}", call(tl.sort, [(dtype, bits)], dtype), given, dtype, where=given != 0)
        # the last steps of topk reduce by tl.max, which widens 16 bits and 8
        result = promoted(dtype, sums=False)
        top = given[:, ::-1][:, :4]
        got = call(lambda x: tl.topk(x, 4), [(dtype, bits)], result)
        check(f"topk of {dtype}", got, top.astype(got.dtype), result, where=top != 0)


def moved(
    name: str, function: Callable[..., Any], expected: Callable[..., np.ndarray], operands: int = 1
) -> Callable[[], None]:
    """A function that moves elements, and changes no bit of any dtype."""

    def check_all() -> None:
        for dtype in NAMES:
            given = [np.roll(patterns(dtype)[:1024], n).reshape(32, 32) for n in range(operands)]
            got = call(function, [(dtype, bits) for bits in given], dtype)
            check(f"{name} of {dtype}", got, numbers(np.ascontiguousarray(expected(*given)), dtype), dtype)

    return check_all


def gathered() -> None:
    index = np.random.default_rng(2).integers(0, 64, (32, 64)).astype(np.uint32)
    for dtype in NAMES:
        bits = patterns(dtype)[:2048].reshape(32, 64)
        got = call(lambda x, i: tl.gather(x, i, 1), [(dtype, bits), ("int32", index)], dtype)
        check(f"gather of {dtype}", got, numbers(np.take_along_axis(bits, index.astype(np.int64), 1), dtype), dtype)


def counted() -> None:
    """tl.histogram drops what lies outside, on either side."""
    for dtype in ("int32", "uint32"):
        bits = patterns(dtype)[:4096]
        given = numbers(bits, dtype)
        flag = (np.arange(4096) % 2).astype(np.uint8)
        expected = np.array([int(((given == n) & (flag == 1)).sum()) for n in range(16)], dtype=np.int32)
        got = call(lambda x, keep: tl.histogram(x, 16, mask=keep), [(dtype, bits), ("int1", flag)], "int32")
        check(f"histogram of {dtype}", got, expected, "int32")


def multiplied() -> None:
    """tl.dot of each dtype that it takes, with and without an accumulator."""
    for dtype in NAMES:
        a, b = small(dtype, (2, 16, 32), seed=1), small(dtype, (2, 32, 16), seed=2)
        result = {"int8": "int32", "fp64": "fp64"}.get(dtype, "fp32")

        def got(dtype=dtype, a=a, b=b, result=result) -> np.ndarray:
            return call(lambda x, y: tl.dot(x, y, input_precision="ieee"), [(dtype, a), (dtype, b)], result)

        if dtype in INTEGERS and dtype != "int8":
            refused(f"dot of {dtype}", got)
            continue
        left, right = (numbers(each, dtype).astype(np.float64) for each in (a, b))
        check(f"dot of {dtype}", got(), (left @ right).astype(got().dtype), result)
        if dtype in ("fp16", *FLOAT8):
            acc = small("fp16", (2, 16, 16), seed=3)
            operands = [(dtype, a), (dtype, b), ("fp16", acc)]
            found = call(lambda x, y, z: tl.dot(x, y, z, out_dtype=tl.float16), operands, "fp16")
            check(f"dot of {dtype} on float16", found, left @ right + numbers(acc, "fp16"), "fp16")
    every = np.arange(256).astype(np.uint8).reshape(16, 16)
    one = small("fp16", (16, 16), values=(0,))
    np.fill_diagonal(one, 0x3C00)
    for dtype in FLOAT8:  # by the identity: all numbers of the dtype, without NaN and infinity
        given = numbers(every, dtype)
        bits = np.where(np.isfinite(given), every, np.uint8(0))
        got = call(lambda x, y: tl.dot(x.to(tl.float16), y, input_precision="ieee"), [(dtype, bits), ("fp16", one)], "fp32")
        check(f"dot of {dtype} with ones", got, numbers(bits, dtype) + 0.0, "fp32", where=got != 0)


def scaled() -> None:
    """tl.dot_scaled of each format, with scales that are powers of two."""
    scale = np.random.default_rng(4).integers(120, 135, (16, 2)).astype(np.uint8)
    for dtype, kind in {"fp8e4nv": "e4m3", "fp8e5": "e5m2", "bf16": "bf16", "fp16": "fp16"}.items():
        a, b = small(dtype, (16, 64), seed=1), small("fp8e4nv", (64, 16), seed=2)
        factor = np.repeat(2.0 ** (scale.astype(float) - 127), 32, axis=1)

        def product(x: Any, y: Any, s: Any, kind: str = kind) -> Any:
            return tl.dot_scaled(x, s, kind, y, None, "e4m3")

        def got(dtype=dtype, a=a, b=b, product=product) -> np.ndarray:
            return call(product, [(dtype, a), ("fp8e4nv", b), ("uint8", scale)], "fp32")

        if IS_36:
            refused("dot_scaled in Triton 3.6", got)
            continue
        expected = (numbers(a, dtype) * factor) @ numbers(b, "fp8e4nv")
        check(f"dot_scaled of {dtype}", got(), expected, "fp32")
        if dtype == "bf16":  # beyond float16
            large = small(dtype, (16, 64), values=(2.0**100, -(2.0**99)))
            got = call(product, [(dtype, large), ("fp8e4nv", b), ("uint8", scale)], "fp32")
            close("dot_scaled of large bf16", got, (numbers(large, dtype) * factor) @ numbers(b, "fp8e4nv"), 1e-5)


def made_once() -> None:
    """Of one name there is one type, whichever way it is asked for: same element, shape and number of elements."""
    for element, shape in itertools.product((tl.float32, tl.bfloat16, tl.pointer_type(tl.float32)), ([4], [4, 8], [8, 4])):
        first, again = tl.block_type(element, shape), tl.block_type(element, [tl.constexpr(size) for size in shape])
        assert first == again
        assert [int(size) for size in again.shape] == shape
        assert (again.element_ty, again.numel) == (element, math.prod(shape))
        held = tl.tensor(None, again)
        assert (held.dtype, [size.value for size in held.shape], held.numel.value) == (element, shape, math.prod(shape))
