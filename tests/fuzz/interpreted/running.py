"""One function on blocks of numbers, under the interpreter, and what to compare its result with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from tests.fuzz.interpreted.dtypes import agree, dtype_of, numbers, unsigned


@triton.jit
def body_kernel(inputs, output, BODY: tl.constexpr):
    BODY(inputs, output)


def call(function: Callable[..., Any], operands: Sequence[tuple[str, np.ndarray]], result: str) -> np.ndarray:
    """The numbers that a function makes of blocks of numbers, which go through memory as bits.

    Args:
        operands: of each its dtype and its bit patterns, of the shape of the block.
        result: the dtype that the function is to return.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(bits)) for _, bits in operands]
    shapes: list[list[int]] = []
    output = torch.zeros(1 << 20, dtype=torch.uint8).view(getattr(torch, unsigned(result).name))

    def body(pointers: Any, out: Any) -> None:
        blocks = [_loaded(each, name, bits.shape) for each, (name, bits) in zip(pointers, operands, strict=True)]
        found = function(*blocks)
        assert found.dtype.name == result, f"returned {found.dtype.name}, expected {result}"
        shapes.append([int(size) for size in found.shape])
        bits = found.to(tl.uint8) if result == "int1" else found.to(dtype_of(unsigned(result).name), bitcast=True)
        if found.shape:
            tl.store(out + tl.arange(0, found.numel.value), tl.reshape(bits, [found.numel.value]))
        else:
            tl.store(out, bits)

    body_kernel[(1,)](tuple(tensors), output, BODY=body)
    [shape] = shapes
    return numbers(output.numpy()[: int(np.prod(shape))].reshape(shape).copy(), result)


def _loaded(pointer: Any, name: str, shape: tuple[int, ...]) -> Any:
    bits = tl.reshape(tl.load(pointer + tl.arange(0, int(np.prod(shape)))), list(shape))
    return bits != 0 if name == "int1" else bits.to(dtype_of(name), bitcast=True)


def check(what: str, got: np.ndarray, expected: np.ndarray, name: str, *given: np.ndarray, where: Any = True) -> None:
    """Raise an AssertionError that names the first element that differs, and the operands that it was made of."""
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    wrong = np.argwhere(~agree(got, expected, name) & where)
    if len(wrong):
        at = tuple(wrong[0])
        of = ", ".join(str(each[at]) for each in given)
        raise AssertionError(f"{what} of ({of}): {got[at]}, expected {expected[at]}, and {len(wrong) - 1} more")


def close(what: str, got: np.ndarray, expected: np.ndarray, relative: float, *given: np.ndarray) -> None:
    """The same for functions that GPUs approximate."""
    with np.errstate(all="ignore"):
        near = np.abs(got - expected) <= relative * np.abs(expected) + 1e-37
    near |= (got == expected) | (np.isnan(got) & np.isnan(expected))
    check(what, np.where(near, expected, got), expected, "fp64", *given)


def refused(what: str, function: Callable[[], Any]) -> None:
    """Raise an AssertionError unless a function raises."""
    try:
        function()
    except Exception:
        return
    raise AssertionError(f"{what} gave numbers, and compiled code has none")
