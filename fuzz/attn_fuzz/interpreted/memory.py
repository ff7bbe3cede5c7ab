"""Loads and stores of Triton's interpreter by NumPy, which gathers lanes several times as fast as Triton.

All memory of the process is one array of NumPy for each dtype. An address is an index of that array, if it is a multiple of the
dtype's size. Triton's own functions serve other addresses, and end the process at an address that no process has. As there, a
lane that the mask leaves out accesses no memory.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from attn_fuzz.errors import RefusedByTritonError

_FIRST, _LAST = 1 << 12, 1 << 48
"""The range of addresses that a process may have."""


def methods(interpreter: Any) -> dict[str, Callable[..., Any]]:
    """The methods of the builder by name, for Triton's module `triton.runtime.interpreter`."""
    handle, triton = interpreter.TensorHandle, interpreter._interpreter

    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if (name := mask.dtype.scalar.name) != "int1":
            raise RefusedByTritonError(f"a load with a mask of {name}: Triton compiles masks of int1")
        kind = pointers.get_element_ty()
        stored = np.dtype(interpreter._get_np_dtype(kind))
        others = np.zeros(pointers.data.shape, stored) if other is None else other.data
        return handle(_load(triton, pointers.data, mask.data, others, stored), kind)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> None:
        _store(triton, pointers.data, value.data, mask.data)

    return {"create_masked_load": create_masked_load, "create_masked_store": create_masked_store}


def _load(triton: Any, pointers: np.ndarray, mask: np.ndarray, others: np.ndarray, dtype: np.dtype) -> np.ndarray:
    masked = not mask.all()
    if masked:
        if not mask.any():
            return np.array(others)
        # a lane that is left out reads what the first of the others reads
        read = np.where(mask, pointers, pointers[np.unravel_index(mask.argmax(), mask.shape)])
    else:
        read = pointers
    lanes = _lanes(read, dtype)
    if lanes is None:
        return triton.load(pointers, mask, others, dtype)
    try:
        found = _memory(dtype).take(lanes)
    except IndexError:
        return triton.load(pointers, mask, others, dtype)
    return np.where(mask, found, others) if masked else found


def _store(triton: Any, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
    lanes = _lanes(pointers, values.dtype)
    if lanes is None:
        return triton.store(pointers, values, mask)
    written = slice(None) if mask.all() else mask.ravel()
    try:
        _memory(values.dtype)[lanes.ravel()[written]] = values.ravel()[written]
    except IndexError:  # before any element is written
        triton.store(pointers, values, mask)


def _lanes(pointers: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Indices of `_memory`, or None if an address is no multiple of the dtype's size."""
    if int(np.bitwise_or.reduce(pointers, axis=None)) % dtype.itemsize:
        return None
    return ((pointers - np.uint64(_FIRST)) >> np.uint64(dtype.itemsize.bit_length() - 1)).view(np.int64)


@functools.cache
def _memory(dtype: np.dtype) -> np.ndarray:
    described = {
        "version": 3,
        "data": (_FIRST, False),
        "typestr": dtype.str,
        "shape": ((_LAST - _FIRST) // dtype.itemsize,),
    }
    return np.asarray(SimpleNamespace(__array_interface__=described))
