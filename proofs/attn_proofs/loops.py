"""Loops: the body is executed once, for an arbitrary iteration.

A variable that the body only adds a number to has a closed form. Another form is an expression of the next index, assigned
once in the body: before an iteration, the variable is the expression at the iteration's own index. That it is so before the
first iteration is proved. Any other variable that the body changes is arbitrary before the iteration, but for the invariant
that a theorem names for the function. From the iteration's number (from 0), the variables before this iteration, and the
variables before the loop, the invariant makes terms that hold. It is proved of the first iteration (`begins`) and of the
iteration after an arbitrary one (`continues`), and then assumed before an arbitrary iteration and after the loop.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import z3
from attn_proofs import arithmetic
from attn_proofs.values import Pointer, Tensor, Term, as_tensor, fresh_name, number, unknown

if TYPE_CHECKING:
    from attn_proofs.extract import Extraction


class Iteration(NamedTuple):
    """The variables that a loop changes, by name, at its iteration `count` and before the loop; and all variables before it."""

    count: Term
    now: dict[str, Any]
    before: dict[str, Any]
    outside: dict[str, Any]


Invariant = Callable[[Iteration], list[Term]]


@dataclass(frozen=True)
class Obligation:
    """A proof obligation of an invariant: its terms hold on a path."""

    name: str
    path: tuple[Term, ...]
    terms: tuple[Term, ...]
    first: tuple[Term, ...] = ()
    """Terms that say that the iteration is the first one: a run can show a counterexample with them."""


def execute(extraction: "Extraction", node: ast.For) -> None:
    """Execute a `for` loop over a range."""
    if not (isinstance(node.iter, ast.Call) and isinstance(node.target, (ast.Name, ast.Tuple))) or node.orelse:
        raise extraction.unsupported(node)
    function = extraction.value(node.iter.func)
    name = getattr(function, "name", "").split(".")[-1]
    arguments = [extraction.value(argument) for argument in node.iter.args]
    if name in ("static_range", "range") and all(isinstance(argument, int) for argument in arguments):
        for i in range(*arguments):
            extraction.assign(node.target, i)
            if not extraction.block(node.body):
                raise extraction.unsupported(node)
    elif name == "range" and isinstance(node.target, ast.Name):
        start, stop, step = arguments if len(arguments) == 3 else (*arguments, 1) if len(arguments) == 2 else (0, *arguments, 1)
        _arbitrary_iteration(extraction, node, start, stop, step)
    else:
        raise extraction.unsupported(node)


def _arbitrary_iteration(extraction: "Extraction", node: ast.For, start: Any, stop: Any, step: int) -> None:
    environment = extraction.frame.environment
    held = {name: environment[name] for name in _assigned(node) if name in environment}
    before = {name: value if isinstance(value, Pointer) else as_tensor(value) for name, value in held.items()}
    steps = {name: amount for name in before if (amount := _increment(node, name)) is not None}
    invariant = extraction.invariants.get(extraction.frame.name, lambda iteration: [])
    outside = dict(environment)
    count = z3.Int(fresh_name(f"iteration of {extraction.frame.name}"))
    first, end = as_tensor(start).term, as_tensor(stop).term
    index_type = as_tensor(stop).dtype
    ahead = {name: given for name in before if step == 1 and (given := _of_the_next_index(node, name)) is not None}
    told = [
        z3.Implies(first < end, term)
        for name, value in _told_before(extraction, node, ahead, number(first, index_type)).items()
        for term in _equal_lanes(extraction, value, before[name])
    ]
    _oblige(extraction, "begins", [*told, *invariant(Iteration(z3.IntVal(0), before, before, outside))])
    now = _at_iteration(before, steps, count)
    index = number(first + count * step, index_type)
    assumed = invariant(Iteration(count, now, before, outside))
    depth = len(extraction.path)
    environment.update(now)
    extraction.path += [count >= 0, index.term < end, *assumed]
    environment.update(_told_before(extraction, node, ahead, index))
    extraction.assign(node.target, index)
    returns = len(extraction.frame.returned)
    if not extraction.block(node.body) or len(extraction.frame.returned) > returns:  # a return out of a loop
        raise extraction.unsupported(node)
    after = {name: extraction.frame.environment[name] for name in before}
    at_first = (count == 0, *(part for name in before for part in _equal(now[name], before[name])))
    _oblige(extraction, "continues", invariant(Iteration(count + 1, after, before, outside)), at_first)
    del extraction.path[depth:]
    iterations = z3.If(end > first, (end - first + step - 1) / step, 0)
    at_end = _at_iteration(before, steps, iterations)
    extraction.assumptions += [
        z3.Implies(z3.And(*extraction.path), term) for term in invariant(Iteration(iterations, at_end, before, outside))
    ]
    extraction.frame.environment = {**outside, **at_end}
    for name, value in at_end.items():
        extraction.assign(ast.Name(id=name, ctx=ast.Store()), value)


def _oblige(extraction: "Extraction", name: str, terms: list[Term], first: tuple[Term, ...] = ()) -> None:
    if terms:
        where = f"the loop of {extraction.frame.name} {name}"
        extraction.obligations.append(Obligation(where, tuple(extraction.path), tuple(terms), first))


def _equal(value: Any, other: Any) -> list[Term]:
    """The two numbers are equal."""
    return [value.term == other.term] if isinstance(value, Tensor) and isinstance(other, Tensor) and not value.shape else []


def _assigned(node: ast.For) -> list[str]:
    """Names that the body assigns, in order."""
    return list(dict.fromkeys(_stores(node)))


def _stores(node: ast.For, name: str | None = None) -> list[str]:
    """Each place in the body that assigns a name, by that name; those of one name, if it is given."""
    return [
        part.id for statement in node.body for part in ast.walk(statement)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and name in (None, part.id)
    ]  # fmt: skip


def _increment(node: ast.For, name: str) -> int | None:
    """The number that the body adds to a name in each iteration; None if it adds none, or assigns the name in another way."""
    for statement in node.body:
        match statement:
            case ast.AugAssign(target=ast.Name(id=target), op=ast.Add(), value=ast.Constant(value=int(amount))):
                if target == name and len(_stores(node, name)) == 1:
                    return amount
    return None


def _of_the_next_index(node: ast.For, name: str) -> ast.expr | None:
    """The expression that the body assigns to a name once, of the next index and of names that the loop leaves; or None."""
    assert isinstance(node.target, ast.Name)
    given = [
        statement.value for statement in node.body
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [name]
    ]  # fmt: skip
    if (
        len(given) != 1
        or len(_stores(node, name)) != 1
        or f"{node.target.id} + 1" not in (ast.unparse(part) for part in ast.walk(given[0]))
    ):
        return None
    read = {part.id for part in ast.walk(given[0]) if isinstance(part, ast.Name)}
    return None if read & {*_assigned(node)} else given[0]


def _told_before(extraction: "Extraction", node: ast.For, ahead: dict[str, ast.expr], index: Tensor) -> dict[str, Any]:
    """The values of expressions of the next index in the iteration before an index: the program loads nothing for them."""
    assert isinstance(node.target, ast.Name)
    extraction.frame.environment[node.target.id] = number(index.term - 1, index.dtype)
    loaded = len(extraction.loads)
    told = {name: extraction.value(expression) for name, expression in ahead.items()}
    del extraction.loads[loaded:]
    return told


def _equal_lanes(extraction: "Extraction", value: Any, other: Any) -> list[Term]:
    """The two tensors of one shape are equal in any lane; the lanes compute nothing of the program."""
    one, two = as_tensor(value), as_tensor(other)
    lane = [z3.Int(fresh_name("lane")) for _ in one.shape]
    inside = [z3.And(index >= 0, index < size) for index, size in zip(lane, one.shape, strict=True)]
    noted = len(extraction.notes)
    equal = one.at(*lane) == two.at(*lane)
    del extraction.notes[noted:]
    return [z3.BoolVal(one.shape == two.shape), z3.Implies(z3.And(*inside), equal)]


def _at_iteration(before: dict[str, Any], steps: dict[str, int], count: Term) -> dict[str, Any]:
    """The variables at an iteration: arbitrary, except for those that have a closed form."""
    return {
        name: _stepped(value, count * steps[name]) if name in steps else arbitrary(name, value)
        for name, value in before.items()
    }


def _stepped(value: Any, amount: Term) -> Any:
    moved = number(amount, "int64")
    if isinstance(value, Pointer):
        offset = as_tensor(value.offset)
        return replace(value, offset=number(offset.term + amount, "int64") if not offset.shape else
                       arithmetic.binary(_SILENT, ast.Add(), offset, moved))  # fmt: skip
    return number(as_tensor(value).term + amount, as_tensor(value).dtype)


class _Silent:
    floors = False

    def quotient(self, a: Term, b: Term) -> Term:
        raise NotImplementedError

    def times(self, a: Term, b: Term) -> Term:
        raise NotImplementedError

    def here(self) -> None:
        return None

    def note(self, here: Any, dtype: str, term: Term) -> None:
        """An address is of 64 bits."""


_SILENT = _Silent()


def arbitrary(name: str, like: Any) -> Any:
    """A value of which nothing is known, shaped as another."""
    if isinstance(like, Pointer):
        return replace(like, offset=unknown(name, as_tensor(like.offset).shape, "int64"))
    value = as_tensor(like)
    return unknown(name, value.shape, "int32" if value.dtype == "int" else value.dtype)
