"""Reductions and scans of Triton's interpreter by the kernel's own function, in a tree, as in compiled code.

As it comes, the interpreter adds bit patterns of bfloat16, compares them in `argmax`, sums float16 in float32, raises where
`argmax` sees only NaN, and calls other functions element by element.

The first axis of a block is that of the programs that run together; Triton's axis 0 is the second, and its axis -1 the last.

The order in which elements meet is one that compiled code may take: neighbours first. Each result is rounded to its dtype.
NumPy reduces float32, float64 and integers where it has the function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attn_fuzz.errors import RefusedByTritonError
from attn_fuzz.interpreted.numbers import largest, smallest

_OF_NUMPY = ("fp32", "fp64", "int32", "int64", "uint32", "uint64")


def reduced(interpreter: Any) -> Callable[[Any, tuple[Any, ...]], Any]:
    """A replacement of `ReduceOps.apply_impl` of Triton's module `triton.runtime.interpreter`."""
    standard = interpreter.tl.standard
    by_numpy = {
        id(standard._elementwise_max): largest,
        id(standard._elementwise_min): smallest,
        id(standard._sum_combine): np.sum,
    }

    def apply(self: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        arrays, axis, reduced_axes = along(self.axis, [each.handle.data for each in inputs])
        function = by_numpy.get(id(self.combine_fn))
        if function is not None and inputs[0].dtype.name in _OF_NUMPY:
            results = [function(arrays[0], axis=axis)]
        else:
            results = _tree(interpreter, self.combine_fn, arrays, inputs, axis)
        if self.keep_dims:
            results = [np.expand_dims(result, reduced_axes) for result in results]
        return tuple(self.to_tensor(result, each.dtype) for result, each in zip(results, inputs, strict=True))

    return apply


def along(axis: Any, blocks: list[Any]) -> tuple[list[Any], int, tuple[int, ...]]:
    """Blocks with one axis to reduce, its number among all of theirs, and the numbers that the reduced axes had before.

    Args:
        axis: the axis as the kernel names it; None: all axes but that of the programs.
    """
    if (axis := unwrapped(axis)) is not None:
        found = numbered(axis, blocks[0].ndim - 1)
        return blocks, found, (found,)
    return [block.reshape(len(block), -1) for block in blocks], 1, tuple(range(1, blocks[0].ndim))


def numbered(axis: Any, rank: int) -> int:
    """The number of an axis of a kernel's block among all axes of the interpreter's.

    Raises:
        RefusedByTritonError: the kernel's block has no such axis.
    """
    axis = unwrapped(axis)
    if axis is None or not -rank <= axis < rank:
        raise RefusedByTritonError(f"axis {axis} of a block with {rank} axes")
    return axis % rank + 1


def unwrapped(number: Any) -> Any:
    """The number of a tl.constexpr, or any other number."""
    return getattr(number, "value", number)


def _tree(interpreter: Any, combine: Any, arrays: list[Any], inputs: tuple[Any, ...], axis: int) -> list[np.ndarray]:
    dtypes = [each.dtype for each in inputs]
    arrays = [np.moveaxis(array, axis, -1) for array in arrays]
    while arrays[0].shape[-1] > 1:
        left, right = ([array[..., side::2] for array in arrays] for side in (0, 1))
        arrays = _combined(interpreter, combine, left, right, dtypes)
    return [array[..., 0] for array in arrays]


def scanned(interpreter: Any) -> Callable[[Any, tuple[Any, ...]], Any]:
    """A replacement of `ScanOps.apply_impl`: in each step, prefixes of twice the length."""
    standard = interpreter.tl.standard
    by_numpy = {id(standard._sum_combine): np.cumsum, id(standard._prod_combine): np.cumprod}

    def apply(self: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        axis = numbered(self.axis, inputs[0].handle.data.ndim - 1)
        arrays = [np.moveaxis(each.handle.data, axis, -1) for each in inputs]
        if self.reverse:
            arrays = [array[..., ::-1] for array in arrays]
        function = by_numpy.get(id(self.combine_fn))
        if function is not None and inputs[0].dtype.name in _OF_NUMPY:
            arrays = [function(arrays[0], axis=-1)]
        else:
            arrays = _prefixes(interpreter, self.combine_fn, arrays, inputs)
        if self.reverse:
            arrays = [array[..., ::-1] for array in arrays]
        results = [np.ascontiguousarray(np.moveaxis(array, -1, axis)) for array in arrays]
        return tuple(self.to_tensor(result, each.dtype) for result, each in zip(results, inputs, strict=True))

    return apply


def _prefixes(interpreter: Any, combine: Any, arrays: list[Any], inputs: tuple[Any, ...]) -> list[np.ndarray]:
    dtypes = [each.dtype for each in inputs]
    place = np.arange(arrays[0].shape[-1])
    distance = 1
    while distance < len(place):
        before = [np.roll(array, distance, axis=-1) for array in arrays]  # a block's size stays a power of two
        longer = _combined(interpreter, combine, before, arrays, dtypes)
        arrays = [np.where(place >= distance, new, old) for new, old in zip(longer, arrays, strict=True)]
        distance *= 2
    return arrays


def _combined(interpreter: Any, combine: Any, left: list[Any], right: list[Any], dtypes: list[Any]) -> list[np.ndarray]:
    """The kernel's function of two blocks of each operand."""
    tl, handle = interpreter.tl, interpreter.TensorHandle

    def blocks(arrays: list[Any]) -> list[Any]:
        return [
            tl.tensor(handle(array, dtype.scalar), tl.block_type(dtype, list(array.shape[1:])))
            for array, dtype in zip(arrays, dtypes, strict=True)
        ]

    results = combine(*blocks(left), *blocks(right))
    results = results if isinstance(results, tuple) else (results,)
    if [result.dtype for result in results] != dtypes:
        raise RefusedByTritonError(f"a reduction of {dtypes}: its function returns {[result.dtype for result in results]}")
    return [result.handle.data for result in results]


def to_tensor(interpreter: Any) -> Callable[[Any, Any, Any], Any]:
    """A replacement of `ReduceScanOpInterface.to_tensor`: the tensor of a result whose first axis is that of programs."""
    tl, handle = interpreter.tl, interpreter.TensorHandle

    def to_tensor(self: Any, result: Any, dtype: Any) -> Any:
        stored = result.astype(interpreter._get_np_dtype(dtype))
        kind = tl.block_type(dtype, list(result.shape[1:])) if result.ndim > 1 else dtype
        return tl.tensor(handle(stored, dtype.scalar), kind)

    return to_tensor
