"""Values of an extracted program: numbers that the solver knows by a term, and tensors whose term depends on a lane.

A number is a mathematical integer, and each operation that a GPU does in fixed width leaves a note (`Note`): the term that must
fit its type. The theorems on widths prove these notes. So a statement about integers holds of the machine where they are
proved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import z3

RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint32": (0, 2**32 - 1)}
"""The numbers that a type of fixed width holds. `int` is Python's, without bounds; of `float` nothing is known but its
order."""
_RANK = {"bool": 0, "int": 1, "int32": 2, "uint32": 3, "int64": 4, "float": 5}
NEGATIVE_INFINITY, POSITIVE_INFINITY = z3.Real("-inf"), z3.Real("inf")
Term = Any
Index = tuple[Any, ...]
_fresh = iter(range(10**9))


def fresh_name(name: str) -> str:
    """A name that no other term has."""
    return f"{name}!{next(_fresh)}"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A number (shape ()) or a block of numbers, by its term at an index. An index is one integer or term per dimension."""

    shape: tuple[int, ...]
    dtype: str
    term_at: Callable[[Index], Term]
    least: int | None = None
    """no element is less, as far as it is known without the solver"""
    _known: dict[Any, Term] = field(default_factory=dict, repr=False)

    def at(self, *index: Any) -> Term:
        """The term of one element; a scalar has the same at any index."""
        index = index[len(index) - len(self.shape) :] if self.shape else ()
        index = tuple(0 if size == 1 else i for i, size in zip(index, self.shape, strict=True))
        key = tuple(i if isinstance(i, int) else ("term", i.get_id()) for i in index)
        if key not in self._known:
            self._known[key] = (index, self.term_at(index))  # the index is kept: an id is reused once its term is gone
        return self._known[key][1]

    @property
    def term(self) -> Term:
        """The term of a number."""
        assert self.shape == ()
        return self.at()


@dataclass(frozen=True, eq=False)
class Pointer:
    """An address: a number of elements (a Tensor or int) after the first one of a named tensor. What is read or written there,
    and what one is added for, are `step` elements."""

    name: str
    dtype: str
    offset: Any
    step: int = 1


@dataclass(frozen=True, eq=False)
class Record:
    """A NamedTuple or dataclass."""

    name: str
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Opaque:
    """A name of the language or of Python: `tl.where`, `max`."""

    name: str


@dataclass(frozen=True)
class Note:
    """A term that a GPU holds in a type of fixed width, and the conditions under which the program comes there."""

    dtype: str
    term: Term
    path: tuple[Term, ...]
    place: str
    line: int


def number(term: Term, dtype: str = "int", least: int | None = None) -> Tensor:
    """A number by its term."""
    return Tensor((), dtype, lambda _: term, least)


def symbol(name: str, dtype: str = "int", least: int | None = None) -> Tensor:
    """A number of which nothing is known, but that it is not less than `least`, which is to be assumed of its term."""
    return number(z3.Bool(name) if dtype == "bool" else z3.Real(name) if dtype == "float" else z3.Int(name), dtype, least)


def unknown(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor of which nothing is known: a function of its index."""
    sort = {"bool": z3.BoolSort(), "float": z3.RealSort()}.get(dtype, z3.IntSort())
    if not shape:
        return number(z3.Const(fresh_name(name), sort), dtype)
    function = z3.Function(fresh_name(name), *[z3.IntSort()] * len(shape), sort)
    return Tensor(shape, dtype, lambda index: function(*index))


def integers(names: str) -> tuple[Term, ...]:
    """Unknown integers, by their names with spaces between them."""
    return tuple(map(z3.Int, names.split()))


def memory(name: str, dtype: str = "int64") -> Callable[[Term], Term]:
    """A tensor as a function of the offset."""
    sort = {"bool": z3.BoolSort(), "float": z3.RealSort()}.get(dtype, z3.IntSort())
    return z3.Function(f"memory of {name}", z3.IntSort(), sort)


def as_term(value: Any) -> Term:
    """The term of a Python number."""
    if isinstance(value, bool):
        return z3.BoolVal(value)
    if isinstance(value, int):
        return z3.IntVal(value)
    infinities = {float("-inf"): NEGATIVE_INFINITY, float("inf"): POSITIVE_INFINITY}
    return infinities[value] if value in infinities else z3.RealVal(value)


def as_tensor(value: Any) -> Tensor:
    """A Python number as a scalar; a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    dtype = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    return number(as_term(value), dtype, value if dtype == "int" else None)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an operation on tensors of these shapes."""
    result: list[int] = []
    for sizes in zip(*([1] * (max(map(len, shapes)) - len(shape)) + list(shape) for shape in shapes), strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            raise ValueError(f"shapes {shapes} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def promoted(a: str, b: str) -> str:
    """The dtype of an operation on two: a Python number takes the other's."""
    return a if _RANK[a] >= _RANK[b] else b


def truth(value: Any) -> Term:
    """A number as a condition."""
    if isinstance(value, Tensor):
        return value.term if value.dtype == "bool" else value.term != 0
    return z3.BoolVal(bool(value))


def mapped(
    shape: tuple[int, ...], dtype: str, function: Callable[..., Term], *operands: Tensor, least: int | None = None
) -> Tensor:
    """A tensor whose element is a function of those of its operands."""
    result = Tensor(shape, dtype, lambda index: function(*(operand.at(*index) for operand in operands)), least)
    if not shape:
        result.at()  # at once: notes of numbers are those of the path where they are computed
    return result
