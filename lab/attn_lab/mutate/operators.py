"""Mutation operators: small plausible slips, each a function from a node of the syntax tree to what may stand in its place.

An operator yields a `Change` for every slip that it can make at a node. A change replaces the node itself or a part of it. No
operator looks at words: `attn_lab.mutate.places` leaves out docstrings, annotations, messages and `__all__`.
"""

import ast
import copy
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Change(NamedTuple):
    """A node of a module's tree, and the node that takes its place. A statement is skipped by `pass`."""

    old: ast.expr | ast.stmt
    new: ast.expr | ast.stmt


Operator = Callable[[ast.AST], Iterator[Change]]

_EDGES = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OTHER_END = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}
_ONE_SIDED = ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow | ast.LShift | ast.RShift
_WHOLE = ast.FloorDiv | ast.Mod | ast.Mult
_INTEGER_CALLS = {"len", "int", "cdiv", "size", "stride", "next_power_of_2", "num_keys", "program_id", "storage_offset"}
_FLOATING = re.compile(r"float|exp|log|fma|div_rn|sqrt|scale|weight|\d\.\d|inf")
_NARROWER = {"float32": "float16", "float64": "float32", "int64": "int32", "int32": "int16", "uint32": "int32", "long": "int"}
_DTYPE = re.compile(r"(u?int|b?float)\d+\w*")


def edge(node: ast.AST) -> Iterator[Change]:
    """A comparison and its edge: `<` for `<=`, `==` for `!=`, `in` for `not in`."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield Change(node, _with(node, ops=[*node.ops[:i], _EDGES[type(op)](), *node.ops[i + 1 :]]))


def off_by_one(node: ast.AST) -> Iterator[Change]:
    """One more and one less than an integer expression. A sum counts once: one more than its term is one more than the sum."""
    if not isinstance(node, ast.BinOp | ast.Call) or not _is_integer(node):
        return
    if isinstance(node, ast.BinOp):
        applies = isinstance(node.op, _WHOLE) or (_is_sum(node) and not (_is_sum(node.left) or _is_sum(node.right)))
    else:
        applies = _name_of_call(node) in _INTEGER_CALLS
    if applies:
        yield from (Change(node, ast.BinOp(node, op, ast.Constant(1))) for op in (ast.Add(), ast.Sub()))


def min_max(node: ast.AST) -> Iterator[Change]:
    """The other end: `minimum` for `maximum`, `clamp(max=...)` for `clamp(min=...)`."""
    if not isinstance(node, ast.Call):
        return
    name = _name_of_call(node)
    if name in _OTHER_END:
        yield Change(node, _with(node, func=_renamed(node.func, _OTHER_END[name])))
    if name == "clamp" and len(node.keywords) == 1 and node.keywords[0].arg in _OTHER_END:
        (bound,) = node.keywords
        yield Change(node, _with(node, keywords=[ast.keyword(_OTHER_END[str(bound.arg)], bound.value)]))


def dropped_term(node: ast.AST) -> Iterator[Change]:
    """One term less of a mask or of a condition: `a` for `a & b`; and no mask at all for a load or a store."""
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            kept = [*node.values[:i], *node.values[i + 1 :]]
            yield Change(node, kept[0] if len(kept) == 1 else _with(node, values=kept))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield from (Change(node, term) for term in (node.left, node.right))
    if isinstance(node, ast.Call) and _name_of_call(node) in ("load", "store"):
        unmasked = [keyword for keyword in node.keywords if keyword.arg not in ("mask", "other")]
        if len(unmasked) < len(node.keywords):
            yield Change(node, _with(node, keywords=unmasked))


def swapped(node: ast.AST) -> Iterator[Change]:
    """The other way round: operands whose order matters, or two values of like names in one call, dict or tuple."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, _ONE_SIDED):
        yield Change(node, _with(node, left=node.right, right=node.left))
    if isinstance(node, ast.Call):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        for i, j in _alike(values):
            taken = _exchanged(values, i, j)
            keywords = [_with(old, value=new) for old, new in zip(node.keywords, taken[len(node.args) :], strict=True)]
            yield Change(node, _with(node, args=taken[: len(node.args)], keywords=keywords))
    if isinstance(node, ast.Dict):
        for i, j in _alike(node.values):
            yield Change(node, _with(node, values=_exchanged(node.values, i, j)))
    if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
        for i, j in _alike(node.elts):
            yield Change(node, _with(node, elts=_exchanged(node.elts, i, j)))


def constant(node: ast.AST) -> Iterator[Change]:
    """Another number: one more, one less, 0 or the double of a float, the other bool, and 0 for infinity."""
    if isinstance(node, ast.Call) and ast.unparse(node) == "float('-inf')":
        yield Change(node, ast.Constant(0.0))
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield Change(node, ast.Constant(not value))
    elif isinstance(value, int):
        yield Change(node, ast.Constant(value + 1))
        if value > 0:
            yield Change(node, ast.Constant(value - 1))
    elif isinstance(value, float):
        yield Change(node, ast.Constant(0.0 if value else 1.0))
        if value:
            yield Change(node, ast.Constant(value * 2))


def key_field(node: ast.AST) -> Iterator[Change]:
    """One field less of a key: of a tuple that a function returns as Hashable, or an argument of a call that makes a signature.

    A field more is no mutant: the key then tells calls apart that share their entry, which costs time and changes no result.
    """
    if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Hashable":
        for statement in ast.walk(node):
            if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
                fields = statement.value.elts
                for i in range(len(fields)):
                    yield Change(statement.value, _with(statement.value, elts=[*fields[:i], *fields[i + 1 :]]))
    if isinstance(node, ast.Call) and re.search(r"signature|key$", _name_of_call(node)) and len(node.args) > 1:
        for i in range(len(node.args)):
            yield Change(node, _with(node, args=[*node.args[:i], ast.Constant(None), *node.args[i + 1 :]]))


def and_or(node: ast.AST) -> Iterator[Change]:
    """`or` for `and`, `|` for `&`, and the other way round; the `|` of types stays."""
    if isinstance(node, ast.BoolOp):
        yield Change(node, _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or()))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr) and not _is_type(node.left):
        yield Change(node, _with(node, op=ast.BitAnd() if isinstance(node.op, ast.BitOr) else ast.BitOr()))


def skipped(node: ast.AST) -> Iterator[Change]:
    """A statement that does nothing. What binds a new name stays, because others read it; for an `if`, see `forced`."""
    rebinds = isinstance(node, ast.Assign) and all(_rebinds(target, node.value) for target in node.targets)
    acts = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    if rebinds or acts or isinstance(node, ast.AugAssign | ast.For | ast.Continue | ast.Break):
        assert isinstance(node, ast.stmt)
        yield Change(node, ast.Pass())


def cast(node: ast.AST) -> Iterator[Change]:
    """No cast, or a cast to a narrower dtype: `x` or `x.to(tl.float16)` for `x.to(tl.float32)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    operand, name = node.func.value, node.func.attr
    if name in ("float", "long", "int", "double") and not node.args:
        yield Change(node, operand)
    if name != "to" or not node.args:
        return
    dtype = node.args[0].attr if isinstance(node.args[0], ast.Attribute) else ""
    if _DTYPE.fullmatch(dtype) or dtype in ("dtype", "element_ty"):
        yield Change(node, operand)
    if dtype in _NARROWER:
        yield Change(node, _with(node, args=[_renamed(node.args[0], _NARROWER[dtype]), *node.args[1:]]))


def sign(node: ast.AST) -> Iterator[Change]:
    """No `not`, no `~`, no minus."""
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield Change(node, node.operand)


def forced(node: ast.AST) -> Iterator[Change]:
    """A condition that always holds, or never; and one side alone of `where`."""
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Constant):
        yield from (Change(node.test, ast.Constant(holds)) for holds in (False, True))
    if isinstance(node, ast.Call) and _name_of_call(node) == "where" and len(node.args) == 3:
        yield from (Change(node, side) for side in node.args[1:])


OPERATORS: dict[str, Operator] = {
    operator.__name__.replace("_", "-"): operator
    for operator in (
        *(edge, off_by_one, min_max, dropped_term, swapped, constant),
        *(key_field, and_or, skipped, cast, sign, forced),
    )
}
"""All operators, by the name that stands in a mutant's name."""


def _with(node, **fields):
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _name_of_call(node: ast.AST) -> str:
    """The last part of a called function's name; empty for all that is no call of a name."""
    func = node.func if isinstance(node, ast.Call) else None
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _renamed(node: ast.expr, name: str) -> ast.expr:
    return _with(node, attr=name) if isinstance(node, ast.Attribute) else ast.Name(name, ast.Load())


def _is_sum(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)


def _is_integer(node: ast.AST) -> bool:
    """True if an expression shows no sign of floating point, of texts or of sequences."""
    parts = list(ast.walk(node))
    is_other = any(isinstance(part, ast.JoinedStr | ast.Tuple | ast.List | ast.Dict) for part in parts)
    texts = any(isinstance(part, ast.Constant) and not isinstance(part.value, int) for part in parts)
    return not is_other and not texts and not _FLOATING.search(ast.unparse(node))


def _is_type(node: ast.expr) -> bool:
    name = ast.unparse(node).rpartition(".")[2]
    return (name[:1].isupper() and not name.isupper()) or name in ("int", "float", "bool", "str", "slice")


def _rebinds(target: ast.expr, value: ast.expr) -> bool:
    """True if a target has a value without the assignment: an attribute, an element, or a name that the value reads."""
    if isinstance(target, ast.Tuple):
        return all(_rebinds(each, value) for each in target.elts)
    read = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
    return isinstance(target, ast.Subscript | ast.Attribute) or (isinstance(target, ast.Name) and target.id in read)


def _alike(values: list[ast.expr]) -> Iterator[tuple[int, int]]:
    """Each value with the next one of a like name: the same words but for one, as in `stride_a` and `stride_b`, or but for the
    letter v, as in `head_size` and `v_head_size`."""
    words = [re.findall(r"[A-Za-z0-9]+|[^A-Za-z0-9_\s]", ast.unparse(value)) for value in values]
    is_value = [not isinstance(value, ast.Constant | ast.Starred | ast.JoinedStr) for value in values]
    for i, first in enumerate(words):
        for j in range(i + 1, len(words)):
            differ = [(one, other) for one, other in zip(first, words[j], strict=False) if one != other]
            alike = len(first) == len(words[j]) and len(differ) == 1 and (len(first) > 1 or max(map(len, differ[0])) == 1)
            if is_value[i] and is_value[j] and (alike or _is_of_v(first, words[j]) or _is_of_v(words[j], first)):
                yield i, j
                break


def _is_of_v(words: list[str], others: list[str]) -> bool:
    """True if words are the others and one "v" more."""
    return any(word == "v" and [*words[:i], *words[i + 1 :]] == others for i, word in enumerate(words))


def _exchanged(values: list[ast.expr], i: int, j: int) -> list[ast.expr]:
    taken = [*values]
    taken[i], taken[j] = taken[j], taken[i]
    return taken
