"""Symbolic execution of a kernel's syntax tree, or of a pure function of the host: from source to terms of the solver.

What is known when a kernel is compiled is computed: a `tl.constexpr`, an `if` on one, a loop of `tl.static_range`. An
`if` on a number of the launch is followed both ways. Called functions are executed in place. The body of a loop is
executed once, for an arbitrary iteration: variables that it changes are arbitrary before it, except as an invariant says, which
is then to be proved of the first iteration and of the next.

The result is what the program loads and stores, each with the conditions under which it does, and what its variables held.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import z3
from attn_proofs import arithmetic, language, loops
from attn_proofs.errors import UnsupportedConstructError
from attn_proofs.products import Products
from attn_proofs.sources import Located, Sources, path_of
from attn_proofs.values import Note, Opaque, Pointer, Record, Tensor, Term, as_tensor, truth

Environment = dict[str, Any]
_QUANTIZATION = "attn_optimized.kernels.quantization"
FORMATS: dict[tuple[str, str], Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    (_QUANTIZATION, "decode"): lambda shape: shape,
    (_QUANTIZATION, "encode"): lambda shape: shape,
    (_QUANTIZATION, "token_scale"): lambda shape: shape[:1],
}
"""Functions on the bits of floats: they are not executed, and their results are unknown floats of a shape that follows
from the first argument's."""
_CONCRETE = (bool, int, float, str, type(None))


class Access(NamedTuple):
    """A load or a store: the address, the mask (True: all lanes), the conditions of the program there, and the loaded value."""

    pointer: Pointer
    mask: Any
    path: tuple[Term, ...]
    value: Any
    place: str
    line: int

    def at(self, *lane: Term) -> tuple[Term, Term]:
        """The offset of a lane, and whether it is accessed."""
        mask = z3.BoolVal(True) if self.mask is True else as_tensor(self.mask).at(*lane)
        return as_tensor(self.pointer.offset).at(*lane), mask


class Local(NamedTuple):
    """The value that a variable of a function was given, and the conditions of the assignment."""

    value: Any
    path: tuple[Term, ...]
    line: int


class Reduction(NamedTuple):
    """`tl.max`, `tl.min` or `tl.sum` along an axis: the result is a fresh number, of which a theorem uses facts. So are the
    results of `tl.cumsum`, one for each lane."""

    kind: str
    result: Tensor
    operand: Tensor
    axis: int
    place: str


@dataclass
class Frame:
    """A function that is being executed."""

    located: Located
    environment: Environment
    returned: list[tuple[tuple[Term, ...], Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        assert isinstance(self.located.node, ast.FunctionDef)
        return self.located.node.name


@dataclass
class Extraction:
    """An execution and its results.

    Args:
        sources: the modules.
        interprets: the value of `knobs.runtime.interpret`: some constants are smaller under Triton's interpreter.
        invariants: by the name of a function with a loop, terms that hold before each iteration: see `loops.py`.
        arbitrary: by function and variable, a value that takes the place of the one that is assigned. A statement about an
            arbitrary value holds of the assigned one, too, and is often shorter.
        given: replacements of functions, by dotted names. A statement about any result holds of the function's own, too.
        grid: the program's index and number in each dimension of the grid.
    """

    sources: Sources = field(default_factory=Sources)
    interprets: bool = False
    invariants: dict[str, loops.Invariant] = field(default_factory=dict)
    arbitrary: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    given: dict[str, Callable[..., Any]] = field(default_factory=dict)
    grid: tuple[tuple[Any, Any], ...] = ()
    loads: list[Access] = field(default_factory=list)
    stores: list[Access] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    obligations: list[loops.Obligation] = field(default_factory=list)
    assumptions: list[Term] = field(default_factory=list)
    locals: dict[tuple[str, str], list[Local]] = field(default_factory=dict)
    lines: dict[str, set[int]] = field(default_factory=dict)
    path: list[Term] = field(default_factory=list)
    floors: bool = False
    frames: list[Frame] = field(default_factory=list)
    line: int = 0
    products: Products = field(init=False)

    def __post_init__(self) -> None:
        self.products = Products(self.assumptions)

    # what theorems ask for

    def call(self, place: str, *arguments: Any, **named: Any) -> Any:
        """Execute the function with a dotted name, and return what it returns."""
        return self.execute(self.sources.function(place), arguments, named)

    def local(self, function: str, name: str, iteration: int = -1) -> Local:
        """The value of a variable after its last assignment, or after one of them.

        Raises:
            UnsupportedConstructError: the function was not executed, or has no such variable.
        """
        found = self.locals.get((function, name), [])
        if not found:
            raise UnsupportedConstructError(f"{function}: no variable {name} was assigned, which a theorem speaks of")
        return found[iteration]

    # execution

    def execute(self, located: Located, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        """Execute a function with arguments, and merge the results of its returns."""
        node = located.node
        assert isinstance(node, ast.FunctionDef)
        frame = Frame(located, self._bound(located, node, arguments, named))
        depth, floors = len(self.path), self.floors
        self.floors = not is_kernel(node)
        self.frames.append(frame)
        ends = self.block(node.body)
        self.frames.pop()
        path = tuple(self.path[depth:])
        del self.path[depth:]
        self.floors = floors
        return _merged_returns(frame.returned, path if ends else None)

    def _bound(self, located: Located, node: ast.FunctionDef, arguments: Sequence[Any], named: dict[str, Any]) -> Environment:
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        environment = dict(zip((p.arg for p in parameters), arguments, strict=False)) | named
        if node.args.kwarg is not None:
            others = {name: environment.pop(name) for name in named if name not in {p.arg for p in parameters}}
            environment[node.args.kwarg.arg] = others
            parameters.append(node.args.kwarg)
        defaults = dict(zip((p.arg for p in node.args.args[::-1]), node.args.defaults[::-1], strict=False))
        for parameter in parameters:
            if parameter.arg not in environment and parameter.arg in defaults:
                environment[parameter.arg] = self.value(defaults[parameter.arg])
        if missing := {p.arg for p in parameters} ^ set(environment):
            raise UnsupportedConstructError(
                f"{path_of(located.module)}:{node.lineno}: {node.name} does not take these arguments: {sorted(missing)}"
            )
        return environment

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def block(self, body: Sequence[ast.stmt]) -> bool:
        """Execute statements; returns whether the program continues after them."""
        for statement in body:
            self.line = statement.lineno
            self.lines.setdefault(self.frame.located.module, set()).add(statement.lineno)
            if not self._statement(statement):
                return False
        return True

    def _statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Assert():
                pass
            case ast.Expr(value=value):
                self.value(value)
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.value(value))
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.assign(target, self.value(value))
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                self.assign(target, self.operate(op, self.frame.environment[name], self.value(value), node))
            case ast.Return(value=value):
                self.frame.returned.append((tuple(self.path), self.value(value) if value is not None else None))
                return False
            case ast.If():
                return self._branch(node)
            case ast.For():
                loops.execute(self, node)
            case ast.Match():
                return self._match(node)
            case _:
                raise self.unsupported(node)
        return True

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            values = tuple(value.fields.values()) if isinstance(value, Record) else value
            for part, part_value in zip(target.elts, values, strict=True):
                self.assign(part, part_value)
            return
        if not isinstance(target, ast.Name):
            raise self.unsupported(target)
        value = self.arbitrary.get((self.frame.name, target.id), value)
        self.frame.environment[target.id] = value
        self.locals.setdefault((self.frame.name, target.id), []).append(Local(value, tuple(self.path), self.line))

    def _branch(self, node: ast.If) -> bool:
        test = self.value(node.test)
        if not isinstance(test, Tensor):
            return self.block(node.body if test else node.orelse)
        condition, before, depth = truth(test), self.frame.environment, len(self.path)
        ends = []
        for known, body in ((condition, node.body), (z3.Not(condition), node.orelse)):
            self.frame.environment = dict(before)
            self.path.append(known)
            ends.append((self.block(body), self.frame.environment))
            del self.path[depth:]
        (goes_on, then), (else_goes_on, other) = ends
        if goes_on and else_goes_on:
            self.frame.environment = {name: merged(condition, then[name], other[name]) for name in then if name in other}
        else:
            self.frame.environment = then if goes_on else other
            self.path.append(condition if goes_on else z3.Not(condition))
        return goes_on or else_goes_on

    def _match(self, node: ast.Match) -> bool:
        """A `match` of a value that is known, against values and `_`."""
        subject = self.value(node.subject)
        for case in node.cases:
            patterns = case.pattern.patterns if isinstance(case.pattern, ast.MatchOr) else [case.pattern]
            for pattern in patterns:
                is_any = isinstance(pattern, ast.MatchAs) and pattern.pattern is None
                if is_any or (isinstance(pattern, ast.MatchValue) and self.value(pattern.value) == subject):
                    return self.block(case.body)
        raise self.unsupported(node)

    # expressions

    def value(self, node: ast.expr) -> Any:
        try:
            return self._value(node)
        except UnsupportedConstructError:
            raise
        except (NotImplementedError, AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
            raise self.unsupported(node, error) from None

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._named(name)
            case ast.Attribute(value=holder, attr=name):
                return language.attribute(self, self.value(holder), name)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(self.value(part) for part in parts)
            case ast.Dict(keys=keys, values=values):
                return {self.value(key): self.value(value) for key, value in zip(keys, values, strict=True) if key is not None}
            case ast.BinOp(left=left, op=op, right=right):
                return self.operate(op, self.value(left), self.value(right), node)
            case ast.UnaryOp(op=op, operand=operand):
                return language.unary(self, op, self.value(operand))
            case ast.BoolOp(op=op, values=parts):
                return language.connective(isinstance(op, ast.And), self._up_to_the_decision(isinstance(op, ast.And), parts))
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self._comparison([self.value(left), *map(self.value, rest)], ops)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition = self.value(test)
                if not isinstance(condition, Tensor):
                    return self.value(body if condition else orelse)
                return merged(truth(condition), self.value(body), self.value(orelse))
            case ast.GeneratorExp(elt=element, generators=[ast.comprehension(target=ast.Name(id=name), iter=items, ifs=[])]):
                return tuple(self._bound_to(name, item, element) for item in self.value(items))
            case ast.DictComp(
                key=ast.Name(id=key),
                value=element,
                generators=[
                    ast.comprehension(target=ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)]), iter=items, ifs=[])
                ],
            ) if key == first:
                return {name: self._bound_to(second, item, element) for name, item in self.value(items)}
            case ast.Subscript(value=holder, slice=index):
                return language.subscript(self.value(holder), index, self.value)
            case ast.Call():
                return self._called(node)
        raise NotImplementedError

    def _bound_to(self, name: str, item: Any, node: ast.expr) -> Any:
        """An expression's value where a name of a generator is bound to an item."""
        outside = self.frame.environment
        self.frame.environment = {**outside, name: item}
        value = self.value(node)
        self.frame.environment = outside
        return value

    def operate(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """`left op right`: of Python's numbers, what Python makes of them."""
        if isinstance(left, _CONCRETE) and isinstance(right, _CONCRETE):
            return language.concrete(op, left, right)
        if isinstance(left, tuple) and isinstance(op, ast.Add):
            return left + right
        try:
            return arithmetic.binary(self, op, left, right)
        except NotImplementedError:
            raise self.unsupported(node) from None

    def _up_to_the_decision(self, is_and: bool, parts: list[ast.expr]) -> list[Any]:
        """The values of `and` or `or` that Python evaluates: what follows a value that decides has none."""
        values: list[Any] = []
        for part in parts:
            values.append(self.value(part))
            if not isinstance(values[-1], Tensor) and bool(values[-1]) != is_and:
                break
        return values

    def _comparison(self, values: list[Any], ops: list[ast.cmpop]) -> Any:
        parts = [
            language.concrete_comparison(op, a, b)
            if isinstance(a, (*_CONCRETE, tuple)) and isinstance(b, (*_CONCRETE, tuple))
            else language.comparison(op, a, b)
            for a, op, b in zip(values, ops, values[1:], strict=False)
        ]
        return parts[0] if len(parts) == 1 else language.connective(True, parts)

    def _named(self, name: str) -> Any:
        if name in self.frame.environment:
            return self.frame.environment[name]
        module = self.frame.located.module
        found = self.sources.find(module, name)
        if found is None:
            return Opaque(self.sources.imports(module, name) or name)
        if isinstance(found.node, ast.expr):
            return self._constant(found)
        return found

    def _constant(self, found: Located) -> Any:
        """A constant of a module, evaluated there."""
        assert isinstance(found.node, ast.expr)
        self.frames.append(Frame(Located(found.module, ast.parse("def module(): pass").body[0]), {}))  # type: ignore[arg-type]
        value = self.value(found.node)
        self.frames.pop()
        return value

    def _called(self, node: ast.Call) -> Any:
        function = self.value(node.func)
        arguments: list[Any] = []
        for argument in node.args:
            arguments += self.value(argument.value) if isinstance(argument, ast.Starred) else [self.value(argument)]
        named = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
        if any(keyword.arg is None for keyword in node.keywords):
            raise NotImplementedError
        if isinstance(function, Located) and isinstance(function.node, ast.FunctionDef):
            if (place := f"{function.module}.{function.node.name}") in self.given:
                return self.given[place](*arguments, **named)
            if (function.module, function.node.name) in FORMATS:
                return arithmetic.opaque(function.node.name, FORMATS[function.module, function.node.name](arguments[0].shape))
            line = self.line
            result = self.execute(function, arguments, named)
            self.line = line
            return result
        if not isinstance(function, Located | Opaque | tuple) and callable(function):  # given by a theorem
            return function(*arguments, **named)
        if isinstance(function, Located) and isinstance(function.node, ast.ClassDef):
            return _record(function.node, arguments, named)
        return language.call(self, function, arguments, named)

    def quotient(self, a: Term, b: Term) -> Term:
        """a // b for b > 0, a floor."""
        return self.products.quotient(a, b)

    def times(self, a: Term, b: Term) -> Term:
        """a * b."""
        return self.products.times(a, b)

    def here(self) -> tuple[tuple[Term, ...], str, int]:
        """The conditions, the function and the line that the program is at."""
        return tuple(self.path), self.frame.name if self.frames else "", self.line

    def note(self, here: tuple[tuple[Term, ...], str, int], dtype: str, term: Term) -> None:
        """Remember that a term must fit its type."""
        if not z3.is_int_value(term):
            self.notes.append(Note(dtype, term, *here))

    def unsupported(self, node: ast.AST, error: Exception | None = None) -> UnsupportedConstructError:
        """The error for a construct that the extractor does not understand."""
        text = " ".join(ast.unparse(node).split())
        why = f" ({error})" if error is not None and str(error) else ""
        module = self.frame.located.module
        return UnsupportedConstructError(
            f"{path_of(module)}:{getattr(node, 'lineno', self.line)}: not understood: {text[:160]}{why}"
        )


def is_kernel(node: ast.FunctionDef) -> bool:
    """True if Triton compiles a function: then `//` truncates."""
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    return bool(decorators & {"triton.jit", "compiled_once"})


def merged(condition: Term, a: Any, b: Any) -> Any:
    """A value that is `a` under a condition, else `b`."""
    if a is b or (isinstance(a, _CONCRETE) and isinstance(b, _CONCRETE) and type(a) is type(b) and a == b):
        return a
    if isinstance(a, Record) and isinstance(b, Record):
        return Record(a.name, {name: merged(condition, a.fields[name], b.fields[name]) for name in a.fields})
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(merged(condition, x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Pointer) and isinstance(b, Pointer) and (a.name, a.step) == (b.name, b.step):
        return replace(a, offset=merged(condition, a.offset, b.offset))
    return arithmetic.where(Tensor((), "bool", lambda _: condition), as_tensor(a), as_tensor(b))


def _merged_returns(returned: list[tuple[tuple[Term, ...], Any]], falls_through: tuple[Term, ...] | None) -> Any:
    if not returned or falls_through is not None:
        return None  # a function that returns nothing, under some condition or always
    *early, (_, result) = returned
    for path, value in reversed(early):
        result = merged(z3.And(*path), value, result)
    return result


def _record(node: ast.ClassDef, arguments: Sequence[Any], named: dict[str, Any]) -> Record:
    names = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    given: dict[str, Any] = dict(zip(names, arguments, strict=False)) | named
    if set(given) != set(names):
        raise ValueError(f"{node.name} has the fields {names}")
    return Record(node.name, {name: given[name] for name in names})
