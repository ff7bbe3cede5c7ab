"""Functions put together from pieces of source: what carries out an instruction is one function, and no chain of them.

Instructions of one form differ in registers and constants alone. So the source of a form is compiled once in a process, and
making the function of an instruction binds the names in that source to the instruction's own registers and constants.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Piece(NamedTuple):
    """An expression or a statement of Python.

    Attributes:
        text: with `{}` in the place of each name.
        names: what stands there: other pieces, and objects that the function is bound to.
    """

    text: str
    names: tuple[Any, ...] = ()


def piece(text: str, *names: Any) -> Piece:
    return Piece(text, names)


def call(function: Callable[..., Any], values: Sequence[Piece]) -> Piece:
    """A function of values."""
    return Piece(f"{{}}({', '.join(['{}'] * len(values))})", (function, *values))


def function_of(*statements: Piece, parameters: str = "waves") -> Callable[..., Any]:
    """A function of some statements. It may name what it is bound to, its parameters, and numpy's copyto."""
    objects: list[Any] = []
    source = "\n".join(_written(statement, objects) for statement in statements)
    return _binder(source, len(objects), parameters)(*objects)


def value_of(expression: Piece) -> Callable[..., Any]:
    """The function of waves that returns an expression."""
    return function_of(piece("return {}", expression))


def _written(source: Piece, objects: list[Any]) -> str:
    names = []
    for name in source.names:
        if isinstance(name, Piece):
            names.append(_written(name, objects))
        else:
            names.append(f"of{len(objects)}")
            objects.append(name)
    return source.text.format(*names)


@cache
def _binder(source: str, count: int, parameters: str) -> Callable[..., Callable[..., Any]]:
    """What makes a function of a source, once it gets the objects that the source names."""
    bound = ", ".join(f"of{i}" for i in range(count))
    body = source.replace("\n", "\n        ")
    scope: dict[str, Any] = {"copyto": np.copyto}
    exec(f"def bind({bound}):\n    def step({parameters}):\n        {body}\n    return step", scope)
    return scope["bind"]
