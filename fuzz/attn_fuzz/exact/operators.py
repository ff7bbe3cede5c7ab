"""torch's operators on floats, computed on elements, by name without `aten::` and a trailing underscore.

A function takes the operator's arguments by the names of its schema. Tensors and numbers are given as elements; dims, flags
and dtypes are given as they are. `result` is torch's own result, for operators that say which elements they have chosen.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attn_fuzz.exact import algebra, elements
from attn_fuzz.exact.elements import Elements, lacking

ONE = elements.of_floats(np.array(1.0))
Carried = Callable[[Any], Elements]


def _axes(a: Any, rank: int) -> list[int]:
    """The dims that an operator reduces, counted from 0: all of them if it names none."""
    dims = getattr(a, "dim", None)
    given = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return sorted(dim % max(rank, 1) for dim in given)


def _reduced(operation: Callable[[Elements, int], Elements]) -> Carried:
    """An operator that reduces dims one after the other."""

    def reduced(a: Any) -> Elements:
        block, rank = a.self, a.self.ndim
        for axis in reversed(_axes(a, rank)) if rank else ():
            block = operation(block, axis)
            if getattr(a, "keepdim", False):
                block = block.moved(lambda part, axis=axis: np.expand_dims(part, axis))
        return block

    return reduced


def _chosen_or_nan(order_of: Callable[..., np.ndarray]) -> Callable[[Elements, int], Elements]:
    """The largest or the smallest along an axis. Unlike in a kernel, NaN wins."""

    def chosen(x: Elements, axis: int) -> Elements:
        index = np.expand_dims(order_of(x.order, axis), axis)
        return x.moved(lambda part: np.take_along_axis(part, index, axis).squeeze(axis))

    return chosen


_largest_or_nan, _smallest_or_nan = _chosen_or_nan(np.argmax), _chosen_or_nan(np.argmin)


def _mean(a: Any) -> Elements:
    total = _reduced(algebra.sum_of)(a)
    return algebra.divide(total, elements.of_floats(np.array(float(a.self.size // max(total.size, 1)))))


def _log_sum_exp(x: Elements, axis: int) -> Elements:
    """log(sum(exp(x))). The maximum keeps the order finite, and cancels."""
    if not x.shape[axis]:
        return elements.of_floats(np.full(np.delete(x.shape, axis), -np.inf))
    most = _kept(_largest_or_nan(x, axis), axis)
    finite = elements.selected(np.isfinite(most.order), most, elements.of_floats(np.zeros(1)))
    total = algebra.sum_of(algebra.exp(algebra.subtract(x, finite)), axis)
    return algebra.add(finite.moved(lambda part: part.squeeze(axis)), algebra.log(total))


def _softmax(a: Any) -> Elements:
    axis = a.dim % max(a.self.ndim, 1)
    power = algebra.exp(algebra.subtract(a.self, _kept(_largest_or_nan(a.self, axis), axis)))
    return algebra.divide(power, _kept(algebra.sum_of(power, axis), axis))


def _kept(block: Elements, axis: int) -> Elements:
    return block.moved(lambda part: np.expand_dims(part, axis))


def _indexed(a: Any) -> Elements:
    """Values that torch has chosen along a dim. It says which by their indices."""
    places = a.result[1].numpy()
    if not a.self.ndim:
        return a.self
    dim = a.dim % a.self.ndim
    index = places if getattr(a, "keepdim", True) else np.expand_dims(places, dim)
    found = a.self.moved(lambda part: np.take_along_axis(part, index, dim))
    return found if index is places else found.moved(lambda part: part.squeeze(dim))


def _extreme(pick: Callable[[Elements, int], Elements], of_two: Carried) -> Carried:
    """`max` and `min`: of a whole tensor, along a dim, and of two tensors."""

    def extreme(a: Any) -> Elements:
        if hasattr(a, "other"):
            return of_two(a)
        return _indexed(a) if isinstance(a.result, tuple) else _reduced(pick)(a)

    return extreme


def _maximum(a: Any) -> Elements:
    return elements.selected(~(a.self.order < a.other.order) & ~np.isnan(a.other.order), a.self, a.other)


def _minimum(a: Any) -> Elements:
    return elements.selected(~(a.self.order > a.other.order) & ~np.isnan(a.other.order), a.self, a.other)


def _clamped(a: Any) -> Elements:
    """NaN stays NaN."""
    block = a.self
    if (least := getattr(a, "min", None)) is not None:
        block = elements.selected(block.order < least.order, least, block)
    if (most := getattr(a, "max", None)) is not None:
        block = elements.selected(block.order > most.order, most, block)
    return block


def _finite(a: Any) -> Elements:
    """`nan_to_num`. An infinity that is not named becomes the largest number of the dtype, which torch knows."""
    block, numbers = a.self, a.result.double().numpy()
    for is_it, named in ((np.isnan, a.nan), (np.isposinf, a.posinf), (np.isneginf, a.neginf)):
        where = is_it(a.self.order)
        if where.any():
            number = np.array(numbers[where].flat[0] if named is None else named)
            block = elements.selected(where, elements.of_floats(number), block)
    return block


def _power(a: Any) -> Elements:
    """A square, a reciprocal, and powers of two."""
    base, exponent = a.self, a.exponent
    if exponent.size == 1 and float(exponent.order.flat[0]) in (-1.0, 1.0, 2.0):
        number = float(exponent.order.flat[0])
        return algebra.divide(ONE, base) if number < 0 else base if number == 1 else algebra.multiply(base, base)
    if (base.order == 2.0).all() and elements.as_floats(base) is not None:
        return _powers_of_two(exponent)
    return lacking(Elements(np.power(base.order, exponent.order)), "a power")


def _powers_of_two(exponent: Elements) -> Elements:
    numbers = elements.as_floats(exponent)
    if numbers is not None and (numbers == np.rint(numbers)).all():
        return elements.of_floats(np.exp2(numbers))
    return algebra.exp2(exponent)


def _quotient(a: Any) -> Elements:
    found = algebra.divide(a.self, a.other)
    return found if getattr(a, "rounding_mode", None) is None else lacking(Elements(found.order), "a rounded quotient")


def _scaled(x: Elements, factor: Elements) -> Elements:
    return x if factor.size == 1 and factor.order.flat[0] == 1 else algebra.multiply(x, factor)


def _with_product(one: str, other: str) -> Carried:
    """beta * self + alpha * one @ other."""
    return lambda a: algebra.add(_scaled(a.self, a.beta), _scaled(algebra.dot(getattr(a, one), getattr(a, other)), a.alpha))


def _column(x: Elements) -> Elements:
    return x.moved(lambda part: part[:, None])


CARRIED: dict[str, Carried] = {
    "_to_copy": lambda a: a.self,
    "nextafter": lambda a: a.self,  # it moves a number by a rounding
    "add": lambda a: algebra.add(a.self, _scaled(a.other, a.alpha)),
    "sub": lambda a: algebra.subtract(a.self, _scaled(a.other, a.alpha)),
    "rsub": lambda a: algebra.subtract(a.other, _scaled(a.self, a.alpha)),
    "mul": lambda a: algebra.multiply(a.self, a.other),
    "div": _quotient,
    "neg": lambda a: algebra.negative(a.self),
    "abs": lambda a: algebra.absolute(a.self),
    "reciprocal": lambda a: algebra.divide(ONE, a.self),
    "pow": _power,
    "ldexp": lambda a: algebra.multiply(a.self, _powers_of_two(a.other)),
    "addcmul": lambda a: algebra.add(a.self, _scaled(algebra.multiply(a.tensor1, a.tensor2), a.value)),
    "exp": lambda a: algebra.exp(a.self),
    "exp2": lambda a: algebra.exp2(a.self),
    "log": lambda a: algebra.log(a.self),
    "log2": lambda a: algebra.log2(a.self),
    "tanh": lambda a: algebra.tanh(a.self),
    "logaddexp": lambda a: algebra.log(algebra.add(algebra.exp(a.self), algebra.exp(a.other))),
    "logaddexp2": lambda a: algebra.log2(algebra.add(algebra.exp2(a.self), algebra.exp2(a.other))),
    "logsumexp": _reduced(_log_sum_exp),
    "_softmax": _softmax,
    "_log_softmax": lambda a: algebra.log(_softmax(a)),
    "sum": _reduced(algebra.sum_of),
    "mean": _mean,
    "amax": _reduced(_largest_or_nan),
    "amin": _reduced(_smallest_or_nan),
    "max": _extreme(_largest_or_nan, _maximum),
    "min": _extreme(_smallest_or_nan, _minimum),
    "sort": _indexed,
    "topk": _indexed,
    "maximum": _maximum,
    "minimum": _minimum,
    "fmax": lambda a: algebra.larger(a.self, a.other),
    "fmin": lambda a: algebra.smaller(a.self, a.other),
    "clamp": _clamped,
    "clamp_min": _clamped,
    "clamp_max": _clamped,
    "nan_to_num": _finite,
    "mm": lambda a: algebra.dot(a.self, a.mat2),
    "bmm": lambda a: algebra.dot(a.self, a.mat2),
    "mv": lambda a: algebra.dot(a.self, _column(a.vec))[:, 0],
    "dot": lambda a: algebra.sum_of(algebra.multiply(a.self, a.tensor), 0),
    "addmm": _with_product("mat1", "mat2"),
    "baddbmm": _with_product("batch1", "batch2"),
}

MOVES = frozenset(
    {
        *("clone", "copy", "cat", "stack", "index", "index_put", "index_select", "index_copy", "index_fill", "gather"),
        *("scatter", "where", "masked_fill", "masked_select", "masked_scatter", "repeat", "roll", "flip", "tril", "triu"),
        *("constant_pad_nd", "fill", "zero", "take", "slice_scatter", "select_scatter", "diag_embed"),
    }
)
"""Operators that move floats and compute none. Their own code says which float goes where."""

UNKNOWN = frozenset(
    {
        *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize", "set"),
        *("full", "full_like", "new_full", "scalar_tensor", "lift_fresh", "_unsafe_view"),
    }
)
"""Operators whose floats are those that memory held before, or numbers of Python: see `attn_fuzz.exact.memory`."""

FRESH = frozenset(
    {
        *("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "eye", "arange", "linspace"),
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
    }
)
"""Operators that make floats of nothing."""

DECIDES = frozenset({"argmax", "argmin", "argsort", "count_nonzero", "nonzero", "searchsorted", "bucketize", "sort", "topk"})
"""Operators that give integers by comparing floats."""
