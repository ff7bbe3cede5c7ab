"""Triton's arithmetic in mathematical integers: the results of operators on terms, and the type that each term must fit.

`//` and `%` of a kernel truncate toward zero, as the GPU's division does; those of host code floor, as Python's do. `&`
and `|` are logical on conditions; `&` with a number of low bits is a remainder. `>>` floors. A sum, difference or product of
fixed width leaves a note, and so do `<<` and a cast to a narrower type: the term is the mathematical one, and it is that of the
machine if it fits. A bitcast to uint32 wraps, as it does on the machine.
"""

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import z3
from attn_proofs.values import RANGES, Pointer, Tensor, as_tensor, broadcast, fresh_name, mapped, promoted

_COMPARISONS = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}
_SUMS: dict[type, Callable[..., Any]] = {
    ast.Add: lambda context, a, b: a + b,
    ast.Sub: lambda context, a, b: a - b,
    ast.Mult: lambda context, a, b: context.times(a, b),
}


class Context(Protocol):
    """The program's state that an operation needs."""

    floors: bool

    def quotient(self, a: Any, b: Any) -> Any: ...

    def times(self, a: Any, b: Any) -> Any: ...

    def here(self) -> Any: ...

    def note(self, here: Any, dtype: str, term: Any) -> None: ...


def binary(context: Context, operator: ast.operator, left: Any, right: Any) -> Any:
    """`left operator right`, of which one is a tensor or a pointer.

    Raises:
        NotImplementedError: an operator that is not understood.
    """
    if isinstance(left, Pointer) and isinstance(operator, ast.Sub):
        return binary(context, ast.Add(), left, negative(context, as_tensor(right)))
    if isinstance(left, Pointer):
        assert isinstance(operator, ast.Add)
        moved = right if left.step == 1 else mapped(as_tensor(right).shape, "int64", lambda x: x * left.step, as_tensor(right))
        return replace(left, offset=moved if _is_zero(left.offset) else _add_offset(left.offset, moved))
    if isinstance(right, Pointer):
        return binary(context, operator, right, left)
    a, b = as_tensor(left), as_tensor(right)
    shape, dtype = broadcast(a.shape, b.shape), promoted(a.dtype, b.dtype)
    if dtype == "float":
        return opaque(type(operator).__name__, shape)
    kind, here = type(operator), context.here()
    if kind in _SUMS:
        return mapped(
            shape, dtype, lambda x, y: _noted(context, here, dtype, _SUMS[kind](context, integer(x), integer(y))), a, b
        )
    if kind in (ast.FloorDiv, ast.Mod):
        floors = context.floors or (a.least is not None and a.least >= 0)
        part = _quotient if kind is ast.FloorDiv else _remainder
        return mapped(
            shape, dtype, lambda x, y: part(context, x, y, floors), a, b, least=0 if floors and not context.floors else None
        )
    if kind is ast.RShift and isinstance(right, int):
        return mapped(shape, dtype, lambda x: x / 2**right, a)
    if kind is ast.LShift and isinstance(right, int):
        return mapped(shape, dtype, lambda x: _noted(context, here, dtype, integer(x) * 2**right), a)
    if kind is ast.BitAnd and isinstance(right, int) and right & (right + 1) == 0:  # the lowest bits
        return mapped(shape, dtype, lambda x: x % (right + 1), a, least=0)
    if kind in (ast.BitAnd, ast.BitOr) and dtype == "bool":
        return mapped(shape, dtype, z3.And if kind is ast.BitAnd else z3.Or, a, b)
    raise NotImplementedError


def compare(operator: ast.cmpop, left: Any, right: Any) -> Tensor:
    """`left operator right` as a condition.

    Raises:
        NotImplementedError: an operator that is not understood.
    """
    if type(operator) not in _COMPARISONS:
        raise NotImplementedError
    a, b = as_tensor(left), as_tensor(right)
    return mapped(broadcast(a.shape, b.shape), "bool", _COMPARISONS[type(operator)], a, b)


def cast(context: Context, value: Tensor, dtype: str, *, bitcast: bool = False) -> Tensor:
    """`value.to(dtype)`."""
    if dtype == value.dtype:
        return value
    if bitcast:
        if (value.dtype, dtype) != ("int32", "uint32"):
            raise NotImplementedError
        return mapped(value.shape, dtype, lambda x: z3.If(x < 0, x + 2**32, x), value, least=0)
    if "float" in (dtype, value.dtype):
        return opaque("cast", value.shape)
    if value.dtype == "bool":
        return mapped(value.shape, dtype, lambda x: z3.If(x, z3.IntVal(1), z3.IntVal(0)), value)
    here = context.here()
    return mapped(value.shape, dtype, lambda x: _noted(context, here, dtype, x), value, least=value.least)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """`tl.where`."""
    c, a, b = as_tensor(condition), as_tensor(a), as_tensor(b)
    dtype = promoted(a.dtype, b.dtype)
    if dtype == "float" and "float" not in (a.dtype, b.dtype):
        raise NotImplementedError
    pick = (lambda t: z3.ToReal(t) if dtype == "float" and z3.is_int(t) else t) if dtype != "bool" else (lambda t: t)
    return mapped(
        broadcast(c.shape, a.shape, b.shape),
        dtype,
        lambda x, y, z: z3.If(x if z3.is_bool(x) else x != 0, pick(y), pick(z)),
        c, a, b,
    )  # fmt: skip


def extremum(is_max: bool, left: Any, right: Any) -> Any:
    """`tl.maximum` and `tl.minimum`."""
    a, b = as_tensor(left), as_tensor(right)
    dtype, shape = promoted(a.dtype, b.dtype), broadcast(a.shape, b.shape)
    if dtype == "float":
        return opaque("extremum", shape)
    least = max((known for known in (a.least, b.least) if known is not None), default=None) if is_max else None
    if is_max and isinstance(right, int) and a.least is not None and a.least >= right:
        return a
    return mapped(shape, dtype, lambda x, y: z3.If(x >= y, x, y) if is_max else z3.If(x <= y, x, y), a, b, least=least)


def negative(context: Context, value: Tensor) -> Tensor:
    """`-value`."""
    if value.dtype == "float":
        return opaque("negative", value.shape)
    here = context.here()
    return mapped(value.shape, value.dtype, lambda x: _noted(context, here, value.dtype, -integer(x)), value)


def opaque(name: str, shape: tuple[int, ...]) -> Tensor:
    """An unknown float, which is a number for each index."""
    if not shape:
        term = z3.Real(fresh_name(name))
        return Tensor((), "float", lambda _: term)
    function = z3.Function(fresh_name(name), *[z3.IntSort()] * len(shape), z3.RealSort())
    return Tensor(shape, "float", lambda index: function(*index))


def integer(term: Any) -> Any:
    """A condition as 1 or 0; another term as it is."""
    return z3.If(term, z3.IntVal(1), z3.IntVal(0)) if z3.is_bool(term) else term


def _is_zero(offset: Any) -> bool:
    return isinstance(offset, int) and offset == 0


def _add_offset(a: Any, b: Any) -> Tensor:
    """The sum of two offsets. An address is of 64 bits, and is noted where it is read or written."""
    a, b = as_tensor(a), as_tensor(b)
    return mapped(broadcast(a.shape, b.shape), "int64", lambda x, y: x + y, a, b)


def _noted(context: Context, here: Any, dtype: str, term: Any) -> Any:
    if dtype in RANGES:
        context.note(here, dtype, term)
    return term


def _quotient(context: Context, a: Any, b: Any, floors: bool) -> Any:
    """a // b for b > 0, which every theorem that divides assumes or shows."""
    if floors or _is_natural(a):
        return context.quotient(a, b)
    return z3.If(a >= 0, context.quotient(a, b), -context.quotient(-a, b))


def _remainder(context: Context, a: Any, b: Any, floors: bool) -> Any:
    if z3.is_int_value(b):
        return a % b if floors or _is_natural(a) else z3.If(a >= 0, a % b, -((-a) % b))
    return a - context.times(_quotient(context, a, b, floors), b)


def _is_natural(term: Any) -> bool:
    return z3.is_int_value(term) and term.as_long() >= 0
