"""Functions put together from pieces of source, so that an instruction is one function and not a chain of functions.

Instructions of one form differ in registers and constants alone. So the source of a form is compiled once in a process, and
making the function of an instruction binds the names in that source to the instruction's own registers and constants. The same
source serves several instructions at once: its names are then bound to the registers and constants of all of them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Piece(NamedTuple):
    """An expression or a statement of Python.

    Attributes:
        text: with `{}` in the place of each name.
        names: objects that the function is bound to.
    """

    text: str
    names: tuple[Any, ...] = ()


class Row(NamedTuple):
    """The number of a register, or those of several: an index of the first axis of registers. Several instructions have an
    array of numbers."""

    of: int | tuple[int, ...] | tuple[tuple[int, ...], ...]


class SourceRow(NamedTuple):
    """The number of vector registers that are read. Its name includes the brackets, because numpy's `take` is faster."""

    of: int | tuple[int, ...] | tuple[tuple[int, ...], ...]


class Alone(NamedTuple):
    """A value that is read only by an instruction that runs alone. Several instructions use the value of the first one."""

    of: Any


def piece(text: str, *names: Any) -> Piece:
    """A piece of a text with `{}` in the place of each name: of an object, or of a piece that is part of this one."""
    if Piece not in map(type, names):
        return Piece(text, names)
    all_names: list[Any] = []
    texts = []
    for name in names:
        if type(name) is Piece:
            texts.append(name.text)
            all_names.extend(name.names)
        else:
            texts.append("{}")
            all_names.append(name)
    return Piece(text.format(*texts), tuple(all_names))


def call(function: Callable[..., Any], values: Sequence[Piece]) -> Piece:
    """A function of values."""
    return piece(_CALLS[len(values)], function, *values)


_CALLS = tuple(f"{{}}({', '.join(['{}'] * count)})" for count in range(6))


def function_of(*statements: Piece, parameters: str = "waves") -> Callable[..., Any]:
    """A function of some statements. It may name what it is bound to, its parameters, and numpy's copyto."""
    source, names = _joined(statements)
    return _function(source, names, list(map(_bound, names)), parameters)


def function_of_several(several: Sequence[Sequence[Piece]]) -> Callable[..., Any] | None:
    """The function of waves that does what the statements of several instructions do.

    All of them read before one of them writes. None if they differ in more than registers and constants.
    """
    sources, names = zip(*map(_joined, several), strict=True)
    if len({*sources}) > 1:
        return None
    bound = [_stacked(column) for column in zip(*names, strict=True)]
    return None if any(each is None for each in bound) else _function(sources[0], names[0], bound, "waves")


def value_of(expression: Piece) -> Callable[..., Any]:
    """The function of waves that returns an expression."""
    return function_of(piece("return {}", expression))


def _joined(statements: Sequence[Piece]) -> tuple[str, tuple[Any, ...]]:
    """The source of statements, and what it names."""
    return "\n".join([each.text for each in statements]), tuple([name for each in statements for name in each.names])


def _bound(name: Any) -> Any:
    """The value of a name in the function of one instruction."""
    if isinstance(name, Row | SourceRow):
        return name.of if isinstance(name.of, int) else _index(name.of)
    return name.of if isinstance(name, Alone) else name


def _stacked(names: Sequence[Any]) -> Any:
    """The value of a name in the function of several instructions; None if they have no common meaning."""
    first = names[0]
    if isinstance(first, Alone):
        return first.of
    if isinstance(first, Row | SourceRow):
        return _bound(first) if len({*names}) == 1 else _index([name.of for name in names])
    if all(name is first for name in names):
        return first
    if isinstance(first, np.ndarray):
        alike = all(name.shape == first.shape and name.dtype == first.dtype for name in names)
        return np.stack(names) if alike else None
    return first if all(type(name) is type(first) and name == first for name in names) else None


def _index(numbers: Sequence[Any]) -> Any:
    """An index of numbers, or of rows of them: a slice, if each is as far from the one before, and so no copy is made."""
    first = numbers[0]
    if not isinstance(first, int):
        return np.array(numbers)
    step = numbers[1] - first if len(numbers) > 1 else 1
    if step == 0 or any(number != first + i * step for i, number in enumerate(numbers)):
        return np.array(numbers)
    end = first + len(numbers) * step
    return slice(first, end if end >= 0 else None, step)


def _function(source: str, names: Sequence[Any], bound: Sequence[Any], parameters: str) -> Callable[..., Any]:
    """The function of a source whose names are bound to these objects."""
    texts = [
        f"of{i}" if type(name) is not SourceRow else f".take(of{i}, 0)" if isinstance(of, np.ndarray) else f"[of{i}]"
        for i, (name, of) in enumerate(zip(names, bound, strict=True))
    ]
    return _binder(source.format(*texts), len(texts), parameters)(*bound)


@cache
def _binder(source: str, count: int, parameters: str) -> Callable[..., Callable[..., Any]]:
    """Compiles a source. The result makes a function of the objects that the source names: of0, of1 and so on."""
    names, body = ", ".join([f"of{i}" for i in range(count)]), source.replace("\n", "\n        ")
    scope: dict[str, Any] = {"copyto": np.copyto}
    exec(f"def bind({names}):\n    def step({parameters}):\n        {body}\n    return step", scope)
    return scope["bind"]
