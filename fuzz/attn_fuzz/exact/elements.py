"""Blocks of elements, which take the place of a kernel's floats in exact mode.

An element has up to four parts. A part that a block does not have is None for the whole block:

    order       float64, the number about as the kernel computes it. Maxima and comparisons go by it. So do infinities and NaN.
    value       the number modulo `fields.VALUES`: sums, products and quotients are exact
    exponent    the number modulo `fields.EXPONENTS`, of which `exp2` makes a value
    logarithm   (c, r): the element is exponent + c * log2(r), c modulo EXPONENTS and r modulo VALUES. None: c is 0

A result of `exp2` has a value and no exponent. A result of `log2` has a logarithm and no value. An operation does not guess a
part that a block lacks: its result lacks the part, too, and says why in `lacks`. If that result is an output, or the argument
of `exp2`, the reason becomes the message.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from attn_fuzz.exact import fields
from attn_fuzz.exact.fields import EXPONENTS, VALUES
from attn_fuzz.exact.refusal import NotCarriedError


@dataclass(frozen=True, eq=False)
class Elements:
    """A block of elements. Like an array of NumPy it has a shape and functions that move, for Triton's interpreter.

    Attributes:
        order, value, exponent, logarithm: the parts, all of one shape. See the module.
        lacks: the reason why a part is None; empty if each part is there, or only those are None that `exp2` or `log2` cannot
            have.
        stored: the bits to store in memory, if a named function of the kernel has made them; else None.
    """

    order: np.ndarray
    value: np.ndarray | None = None
    exponent: np.ndarray | None = None
    logarithm: tuple[np.ndarray, np.ndarray] | None = None
    lacks: str = ""
    stored: np.ndarray | None = None

    itemsize = 0  # it fits any dtype

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(object)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.order.shape

    @property
    def ndim(self) -> int:
        return self.order.ndim

    @property
    def size(self) -> int:
        return self.order.size

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> "Elements":
        """The block with a function applied to each part that moves numbers and computes none."""

        def of(part: np.ndarray | None) -> np.ndarray | None:
            return None if part is None else move(part)

        logarithm = None if self.logarithm is None else (move(self.logarithm[0]), move(self.logarithm[1]))
        return Elements(move(self.order), of(self.value), of(self.exponent), logarithm, self.lacks, of(self.stored))

    def reshape(self, *shape: Any) -> "Elements":
        return self.moved(lambda part: part.reshape(*shape))

    def ravel(self) -> "Elements":
        return self.moved(np.ravel)

    flatten = ravel

    def transpose(self, *axes: Any) -> "Elements":
        return self.moved(lambda part: part.transpose(*axes))

    def broadcast(self, shape: tuple[int, ...]) -> "Elements":
        return self.moved(lambda part: np.broadcast_to(part, shape))

    def copy(self) -> "Elements":
        return self.moved(np.copy)

    def astype(self, dtype: Any) -> "Elements":
        return self

    def __getitem__(self, index: Any) -> "Elements":
        return self.moved(lambda part: part[index])

    def __len__(self) -> int:
        return len(self.order)

    def __bool__(self) -> bool:
        return bool(self.order)

    def __array__(self, *arguments: Any, **named: Any) -> np.ndarray:
        raise NotCarriedError("elements as an array of NumPy")

    def __array_ufunc__(self, function: Any, method: str, *arguments: Any, **named: Any) -> Any:
        raise NotCarriedError(f"numpy.{function.__name__}")

    def __array_function__(self, function: Any, types: Any, arguments: Any, named: Any) -> Any:
        if function in _OF_ONE and isinstance(arguments[0], Elements):
            return arguments[0].moved(lambda part: function(part, *arguments[1:], **named))
        if function in _OF_MANY and all(isinstance(each, Elements) for each in arguments[0]):
            return joined(arguments[0], lambda parts: function(parts, *arguments[1:], **named))
        raise NotCarriedError(f"numpy.{function.__name__}")


_OF_ONE = {np.broadcast_to, np.expand_dims, np.reshape, np.transpose, np.moveaxis, np.swapaxes, np.squeeze, np.ravel, np.roll}
_OF_ONE |= {np.take_along_axis, np.ascontiguousarray, np.flip, np.copy}
_OF_MANY = {np.concatenate, np.stack}


def of_floats(numbers: np.ndarray) -> Elements:
    """The elements of floats of NumPy."""
    order = np.asarray(numbers, np.float64)
    return Elements(order, fields.of_floats(order, VALUES), fields.of_floats(order, EXPONENTS))


def of_integers(numbers: np.ndarray) -> Elements:
    return Elements(numbers.astype(np.float64), fields.of_integers(numbers, VALUES), fields.of_integers(numbers, EXPONENTS))


def as_floats(x: Elements) -> np.ndarray | None:
    """The float64 numbers that elements stand for; None unless each stands for one. A computed element does so only by
    chance."""
    if x.value is None or x.exponent is None or x.logarithm is not None:
        return None
    own = of_floats(x.order)
    assert own.value is not None
    assert own.exponent is not None
    return x.order if bool(((own.value == x.value) & (own.exponent == x.exponent)).all()) else None


def lacking(x: Elements, why: str) -> Elements:
    """The same elements, of which only the order is kept."""
    return Elements(x.order, lacks=x.lacks or why)


def joined(blocks: Sequence[Elements], join: Callable[[list[np.ndarray]], np.ndarray]) -> Elements:
    """One block made of several by a function that moves numbers. It has the parts that all blocks have."""

    def of(parts: list[Any]) -> np.ndarray | None:
        return None if any(part is None for part in parts) else join(parts)

    logarithm = None
    if any(block.logarithm is not None for block in blocks):
        both = [logarithm_of(block) for block in blocks]
        logarithm = join([c for c, _ in both]), join([r for _, r in both])
    return Elements(
        join([block.order for block in blocks]),
        of([block.value for block in blocks]),
        of([block.exponent for block in blocks]),
        logarithm,
        next((block.lacks for block in blocks if block.lacks), ""),
        of([block.stored for block in blocks]),
    )


def assembled(size: int, parts: Sequence[tuple[np.ndarray, Elements]]) -> Elements:
    """A block [size] made of blocks [n], each with its n indices. Every index belongs to one block."""

    def place(arrays: list[np.ndarray]) -> np.ndarray:
        found = np.zeros(size, arrays[0].dtype)
        for (here, _), array in zip(parts, arrays, strict=True):
            found[here] = array
        return found

    return joined([block for _, block in parts], place)


def selected(takes_first: np.ndarray, x: Elements, y: Elements) -> Elements:
    """x where `takes_first`, else y."""
    shape = np.broadcast_shapes(takes_first.shape, x.shape, y.shape)
    if takes_first.all():
        return x.broadcast(shape)
    if not takes_first.any():
        return y.broadcast(shape)
    return joined([x, y], lambda parts: np.where(takes_first, *parts))


def logarithm_of(x: Elements) -> tuple[np.ndarray, np.ndarray]:
    """x.logarithm, or 0 * log2(1)."""
    if x.logarithm is not None:
        return x.logarithm
    return np.zeros(x.shape, np.uint64), np.ones(x.shape, np.uint64)


def without_logarithm(x: Elements) -> Elements:
    """The block without a logarithm that is 0 everywhere."""
    if x.logarithm is None or x.logarithm[0].any():
        return x
    return replace(x, logarithm=None)
