"""Triton's language, and the few names of Python that host code uses, on extracted values.

`tl.load` gives the memory of a tensor at an offset, an unknown function of it, where the mask holds, and `other`
elsewhere. Reductions give fresh numbers (see `extract.Reduction`). Of floats nothing is computed: an operation on them gives an
unknown number for each lane.
"""

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import z3
from attn_proofs import arithmetic
from attn_proofs.sources import Located
from attn_proofs.values import (
    RANGES,
    Opaque,
    Pointer,
    Record,
    Tensor,
    as_tensor,
    as_term,
    broadcast,
    mapped,
    memory,
    number,
    truth,
    unknown,
)

if TYPE_CHECKING:
    from attn_proofs.extract import Extraction

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
}
_DTYPES = {"int32": "int32", "int64": "int64", "uint32": "uint32"} | dict.fromkeys(
    ("float32", "float16", "bfloat16", "int8", "int16"), "float"
)
"""The dtype that stands for each dtype of Triton. Elements of a cache, floats or bytes, are "float": they are not computed."""
_BYTES = {"int8": 1, "int16": 2}


def concrete(op: ast.operator, left: Any, right: Any) -> Any:
    """An operation on Python's numbers."""
    return _OPERATORS[type(op)](left, right)


def concrete_comparison(op: ast.cmpop, left: Any, right: Any) -> bool:
    """A comparison of Python's values."""
    return _COMPARISONS[type(op)](left, right)


def comparison(op: ast.cmpop, left: Any, right: Any) -> Any:
    """A comparison with an extracted value, which is not None."""
    if isinstance(op, ast.Is | ast.IsNot) and (left is None or right is None):
        return isinstance(op, ast.IsNot)
    return arithmetic.compare(op, left, right)


def connective(is_and: bool, values: list[Any]) -> Any:
    """`and` and `or`; of Python's values they give the value that decides."""
    if not any(isinstance(value, Tensor) for value in values):
        for value in values[:-1]:
            if bool(value) != is_and:
                return value
        return values[-1]
    if any(isinstance(value, Tensor) and value.dtype != "bool" for value in values):  # Python's: the value that decides
        known = next((value for value in values if isinstance(value, Tensor) and (value.least or 0) > 0), None)
        if not is_and and known is values[0]:
            return known
        *early, result = values
        for value in reversed(early):
            result = arithmetic.where(number(truth(value), "bool"), *((result, value) if is_and else (value, result)))
        return result
    terms = [truth(value) for value in values]
    return number(z3.And(*terms) if is_and else z3.Or(*terms), "bool")


def unary(extraction: "Extraction", op: ast.unaryop, value: Any) -> Any:
    """`-x`, `not x` and `~x`."""
    if isinstance(op, ast.USub):
        return arithmetic.negative(extraction, value) if isinstance(value, Tensor) else -value
    if isinstance(op, ast.Not) and not (isinstance(value, Tensor) and value.shape):
        return number(z3.Not(truth(value)), "bool") if isinstance(value, Tensor) else not value
    if isinstance(op, ast.Invert) and isinstance(value, Tensor) and value.dtype == "bool":
        return mapped(value.shape, "bool", z3.Not, value)
    raise NotImplementedError


def attribute(extraction: "Extraction", holder: Any, name: str) -> Any:
    """`holder.name`."""
    if isinstance(holder, Opaque):
        dotted = f"{holder.name}.{name}"
        if dotted == "triton.knobs.runtime.interpret":
            return extraction.interprets
        return Opaque(dotted)
    if isinstance(holder, Record) and name in holder.fields:
        return holder.fields[name]
    if isinstance(holder, Record) and "." in holder.name:  # a property of a dataclass of the host
        module, _, owner = holder.name.rpartition(".")
        found = extraction.sources.find(module, owner)
        assert found is not None
        for item in found.node.body if isinstance(found.node, ast.ClassDef) else ():
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return extraction.execute(Located(module, item), (holder,), {})
    if isinstance(holder, Located) and isinstance(holder.node, ast.ClassDef):  # a member of an enumeration
        for item in holder.node.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id == name:
                return extraction.value(item.value)
    if isinstance(holder, int) and name == "to":  # a number that a launch leaves open, and a theorem does not
        return (as_tensor(holder), name)
    if isinstance(holder, str) and name == "lower":
        return holder.lower
    if isinstance(holder, dict) and name in ("items", "values"):
        return getattr(holder, name)
    if isinstance(holder, Tensor | Pointer) and name in ("dtype", "shape", "to", "element_ty"):
        if name == "shape" and isinstance(holder, Tensor):
            return holder.shape
        return (holder, name)
    if isinstance(holder, tuple) and name == "element_ty":
        return holder
    raise NotImplementedError


def subscript(holder: Any, index: ast.expr, value: Callable[[ast.expr], Any]) -> Any:
    """`holder[index]`: an item, or a tensor with more dimensions."""
    if not isinstance(holder, Tensor):
        return holder[value(index)]
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    shape, kept = [], []
    for part in parts:
        if isinstance(part, ast.Constant) and part.value is None:
            shape.append(1)
        elif isinstance(part, ast.Slice) and part.lower is part.upper is part.step is None:
            kept.append(len(shape))
            shape.append(holder.shape[len(kept) - 1])
        else:
            raise NotImplementedError
    if len(kept) != len(holder.shape):
        raise NotImplementedError
    return Tensor(tuple(shape), holder.dtype, lambda at: holder.at(*(at[axis] for axis in kept)))


def call(extraction: "Extraction", function: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """A call of a name of the language, of a method of a tensor, or of a name of Python."""
    if isinstance(function, tuple) and function[1] == "to":
        value, (dtype, *_) = function[0], arguments
        if isinstance(value, Pointer):  # launches do so where elements are of a byte
            return replace(value, dtype="float", step=dtype)
        return _to(extraction, value, dtype, bool(named.get("bitcast", False)))
    if not isinstance(function, Opaque):
        raise NotImplementedError
    name = _in_language(function.name)
    if name in _ELEMENTWISE:
        return arithmetic.opaque(name, broadcast(*(as_tensor(argument).shape for argument in arguments)))
    return _FUNCTIONS[name](extraction, *arguments, **named)


def _in_language(name: str) -> str:
    """A dotted name without the module of Triton's language. A project may import it by a module of its own, as `tl`."""
    return name.rpartition(".tl.")[2].removeprefix("triton.language.").removeprefix("triton.")


def _to(extraction: "Extraction", value: Tensor, dtype: Any, bitcast: bool) -> Tensor:
    name = dtype.name.rpartition(".")[2] if isinstance(dtype, Opaque) else None
    if name in _BYTES and value.dtype != "float":
        raise NotImplementedError  # a number of fewer bits is another number
    kind = _DTYPES[name] if name is not None else "float"
    return arithmetic.cast(extraction, value, kind, bitcast=bitcast)


def _load(extraction: "Extraction", pointer: Pointer, mask: Any = True, other: Any = None, volatile: bool = False) -> Tensor:
    offset, masks = as_tensor(pointer.offset), as_tensor(mask)
    sort = {"bool": z3.BoolSort(), "float": z3.RealSort()}.get(pointer.dtype, z3.IntSort())
    contents = memory(pointer.name, pointer.dtype)

    def held(at: Any) -> Any:
        value = contents(at)
        if pointer.dtype in RANGES:
            low, high = RANGES[pointer.dtype]
            extraction.assumptions.append(z3.And(low <= value, value <= high))
        return value

    shape = broadcast(offset.shape, masks.shape)
    if mask is True:
        value = mapped(shape, pointer.dtype, held, offset)
    else:
        missing = as_tensor(other)
        value = mapped(
            shape, pointer.dtype, lambda m, at, o: z3.If(_condition(m), held(at), o), masks, offset, _cast_other(missing, sort)
        )
    extraction.loads.append(_access(extraction, pointer, mask, value))
    return value


def _cast_other(value: Tensor, sort: Any) -> Tensor:
    if sort == z3.RealSort() and value.dtype != "float":
        return mapped(value.shape, "float", z3.ToReal, value)
    if sort == z3.BoolSort() and value.dtype != "bool":
        return mapped(value.shape, "bool", lambda x: x != 0, value)
    return value


def _condition(term: Any) -> Any:
    return term if z3.is_bool(term) else term != 0


def _descriptor(
    extraction: "Extraction", base: Pointer, shape: tuple[Any, ...], strides: tuple[Any, ...], box: tuple[int, ...]
) -> Record:
    """A tensor descriptor: its `load` gives a box from an index on, and zeros beyond the ends, where nothing is read."""
    first, sizes, steps = as_tensor(base.offset).term, *([as_tensor(each).term for each in part] for part in (shape, strides))

    def load(begin: tuple[Any, ...]) -> Tensor:
        begins = [as_tensor(each).term for each in begin]

        def places(index: Any) -> list[Any]:
            return [start + as_lane(i) for start, i in zip(begins, index, strict=True)]

        def address(index: Any) -> Any:
            return sum((extraction.times(i, step) for i, step in zip(places(index), steps, strict=True)), first)

        def inside(index: Any) -> Any:
            return z3.And(*(z3.And(i >= 0, i < size) for i, size in zip(places(index), sizes, strict=True)))

        pointer = replace(base, offset=Tensor(tuple(box), "int64", address))
        return _load(extraction, pointer, Tensor(tuple(box), "bool", inside), 0.0)

    return Record("descriptor", {"load": load})


def _store(extraction: "Extraction", pointer: Pointer, value: Any, mask: Any = True) -> None:
    extraction.stores.append(_access(extraction, pointer, mask, value))


def _access(extraction: "Extraction", pointer: Pointer, mask: Any, value: Any) -> Any:
    from attn_proofs.extract import Access

    return Access(pointer, mask, tuple(extraction.path), value, extraction.frame.name, extraction.line)


def _arange(_: "Extraction", start: int, end: int) -> Tensor:
    return Tensor((end - start,), "int32", lambda index: index[0] + start if start else as_lane(index[0]), start)


def as_lane(index: Any) -> Any:
    """A lane's number as a term."""
    return z3.IntVal(index) if isinstance(index, int) else index


def _cdiv(extraction: "Extraction", a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return -(-a // b)
    one_less = arithmetic.binary(extraction, ast.Sub(), b, 1) if isinstance(b, Tensor) else b - 1
    return arithmetic.binary(extraction, ast.FloorDiv(), arithmetic.binary(extraction, ast.Add(), a, one_less), b)


def _reduce(kind: str) -> Callable[..., Tensor]:
    def reduce(extraction: "Extraction", value: Tensor, axis: int) -> Tensor:
        from attn_proofs.extract import Reduction

        shape = value.shape if kind == "cumsum" else value.shape[:axis] + value.shape[axis + 1 :]
        result = unknown(f"tl.{kind}", shape, "int32" if value.dtype in ("bool", "int") else value.dtype)
        extraction.reductions.append(Reduction(kind, result, value, axis, extraction.frame.name))
        return result

    return reduce


def _gcd(extraction: "Extraction", *values: Tensor) -> Tensor:
    """A fresh number, of which a theorem uses what it needs: it divides each value, and what divides all values divides it."""
    from attn_proofs.extract import Reduction

    result = unknown("math.gcd", (), "int")
    operand = Tensor((len(values),), "int", lambda index: values[index[0]].term)
    extraction.reductions.append(Reduction("gcd", result, operand, 0, extraction.frame.name))
    return result


def _extremum(is_max: bool) -> Callable[..., Any]:
    def extremum(_: "Extraction", *values: Any) -> Any:
        values = values[0] if len(values) == 1 else values
        result = values[0]
        for value in values[1:]:
            if isinstance(result, Tensor) or isinstance(value, Tensor):
                result = arithmetic.extremum(is_max, result, value)
            else:
                result = max(result, value) if is_max else min(result, value)
        return result

    return extremum


def _full(_: "Extraction", shape: tuple[int, ...], value: Any, dtype: Opaque | None = None) -> Tensor:
    kind = "float" if dtype is None else _DTYPES[dtype.name.rpartition(".")[2]]
    term = z3.RealVal(value) if kind == "float" and value != float("-inf") else as_term(value)
    return Tensor(tuple(shape), kind, lambda index: term)


def _reshape(_: "Extraction", value: Tensor, shape: tuple[int, ...]) -> Tensor:
    def at(index: Any) -> Any:
        flat: Any = 0
        for i, size in zip(index, shape, strict=True):
            flat = flat * size + i
        parts = []
        for size in reversed(value.shape):
            parts.append(flat % size)
            flat = flat // size if isinstance(flat, int) else flat / size
        return value.at(*reversed(parts))

    assert math.prod(shape) == math.prod(value.shape)
    return Tensor(tuple(shape), value.dtype, at)


def _join(_: "Extraction", a: Tensor, b: Tensor) -> Tensor:
    return Tensor((*a.shape, 2), a.dtype, lambda index: z3.If(as_lane(index[-1]) == 0, a.at(*index[:-1]), b.at(*index[:-1])))


def _permute(_: "Extraction", value: Tensor, order: tuple[int, ...]) -> Tensor:
    shape = tuple(value.shape[axis] for axis in order)
    return Tensor(shape, value.dtype, lambda index: value.at(*(index[order.index(axis)] for axis in range(len(order)))))


def _dot(_: "Extraction", a: Tensor, b: Tensor, acc: Any = None, **options: Any) -> Tensor:
    return arithmetic.opaque("dot", (a.shape[0], b.shape[1]))


def _ranged(extraction: "Extraction", axis: int, what: int) -> Any:
    value = extraction.grid[axis][what]
    return number(value, "int32") if not isinstance(value, int | Tensor) else value


_ELEMENTWISE = {"exp", "exp2", "log", "log2", "abs", "fma", "div_rn", "math.ceil"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "load": _load,
    "store": _store,
    "make_tensor_descriptor": _descriptor,
    "arange": _arange,
    "program_id": lambda extraction, axis: _ranged(extraction, axis, 0),
    "num_programs": lambda extraction, axis: _ranged(extraction, axis, 1),
    "where": lambda _, condition, a, b: arithmetic.where(condition, a, b),
    "maximum": _extremum(True),
    "minimum": _extremum(False),
    "max": lambda extraction, *values, **named: _largest(True, extraction, values, **named),
    "min": lambda extraction, *values, **named: _largest(False, extraction, values, **named),
    "sum": _reduce("sum"),
    "cumsum": _reduce("cumsum"),
    "cdiv": _cdiv,
    "math.gcd": _gcd,
    "full": _full,
    "zeros": lambda extraction, shape, dtype: _full(extraction, shape, 0, dtype),
    "pointer_type": lambda _, element: _BYTES[element.name.rpartition(".")[2]],
    "zeros_like": lambda _, value: mapped(value.shape, value.dtype, lambda _: z3.RealVal(0), value),
    "reshape": _reshape,
    "permute": _permute,
    "join": _join,
    "trans": lambda extraction, value: _permute(extraction, value, (1, 0)),
    "broadcast_to": lambda _, value, shape: mapped(tuple(shape), value.dtype, lambda x: x, value),
    "dot": _dot,
    "debug_barrier": lambda _: None,
    "constexpr": lambda _, value: value,
    "float": lambda _, value: float(value) if isinstance(value, str | int | float) else arithmetic.opaque("float", ()),
    "int": lambda _, value: value if not isinstance(value, Tensor) else arithmetic.mapped((), "int", arithmetic.integer, value),
    "isinstance": lambda _, value, kind: kind.name == "int" and not (isinstance(value, Tensor) and value.dtype == "bool"),
    "any": lambda _, values: connective(False, list(values)),
    "all": lambda _, values: connective(True, list(values)),
    "len": lambda _, value: len(value),
}


def _largest(is_max: bool, extraction: "Extraction", values: tuple[Any, ...], **named: Any) -> Any:
    """`max` and `min`: Triton's, along an axis of a block, or Python's."""
    if isinstance(values[0], Tensor) and values[0].shape:
        return _reduce("max" if is_max else "min")(extraction, *values, **named)
    return _extremum(is_max)(extraction, *values, **named)
