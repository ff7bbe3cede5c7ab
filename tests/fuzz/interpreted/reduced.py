"""The expected results of reductions and scans, by NumPy.

Triton's interpreter as it comes is no judge of them: in some it takes a negative axis for another one, and what is left of a
block of one element for a block.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import triton
import triton.language as tl


@triton.jit
def last_of_two(a, b):
    return b


COMBINED = {
    tl.standard._sum_combine: np.add,
    tl.standard._elementwise_max: np.maximum,
    tl.standard._xor_combine: np.bitwise_xor,
    last_of_two: None,
}
"""Functions of kernels, by which tl.reduce and tl.associative_scan combine two elements, and NumPy's."""


def _reduced(combine: np.ufunc | None, x: np.ndarray, axis: int | None = None, keep_dims: bool = False) -> np.ndarray:
    if combine is None:
        found = x.reshape(-1)[-1:].reshape([1] * x.ndim) if axis is None else np.take(x, [-1], axis)
    else:
        found = combine.reduce(x, axis, keepdims=True)
    return found if keep_dims else found.squeeze(axis)


def _scanned(combine: np.ufunc | None, x: np.ndarray, axis: int = 0, reverse: bool = False) -> np.ndarray:
    x = np.flip(x, axis) if reverse else x
    found = x if combine is None else combine.accumulate(x, axis)
    return np.flip(found, axis) if reverse else found


def _index(of_numpy: Callable[..., Any], x: np.ndarray, axis: int | None = None, keep_dims: bool = False) -> np.ndarray:
    if axis is None:
        raise TypeError("an index along all axes")
    return of_numpy(x, axis, keepdims=keep_dims)


def _extreme(combine: np.ufunc, index: Callable[..., Any]) -> Callable[..., list[np.ndarray]]:
    def extreme(x: np.ndarray, return_indices: bool = False, return_indices_tie_break_left: bool = True, **named: Any) -> Any:
        return [_reduced(combine, x, **named), *([_index(index, x, **named)] if return_indices else [])]

    return extreme


BY_NUMPY: dict[str, Callable[..., list[np.ndarray]]] = {
    "sum": lambda x, dtype=None, **named: [_reduced(np.add, x, **named)],
    "xor_sum": lambda x, **named: [_reduced(np.bitwise_xor, x, **named)],
    "reduce_or": lambda x, **named: [_reduced(np.bitwise_or, x, **named)],
    "max": _extreme(np.maximum, np.argmax),
    "min": _extreme(np.minimum, np.argmin),
    "argmax": lambda x, tie_break_left=True, **named: [_index(np.argmax, x, **named)],
    "argmin": lambda x, tie_break_left=True, **named: [_index(np.argmin, x, **named)],
    "reduce": lambda x, combine_fn, **named: [_reduced(COMBINED[combine_fn], x, **named)],
    "cumsum": lambda x, dtype=None, **named: [_scanned(np.add, x, **named)],
    "cumprod": lambda x, dtype=None, **named: [_scanned(np.multiply, x, **named)],
    "associative_scan": lambda x, combine_fn, **named: [_scanned(COMBINED[combine_fn], x, **named)],
}
"""By the name of a function: of one program's block and the other arguments by their names, the results.

Raises:
    Exception: compiled code has no result for them.
"""
