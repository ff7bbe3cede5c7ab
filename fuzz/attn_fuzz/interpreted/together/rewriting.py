"""Rewrites a kernel's control flow for programs that run together.

    if TEST: BODY                     branch = _control.branch(TEST)
                                      if branch.then():
                                          if branch.diverges: branch.before(locals(), NAMES)
                                          BODY
                                          if branch.diverges: x, y, = branch.merged(locals(), NAMES)
                                      branch.end()
    for i in tl.range(...): BODY      the same with `_control.loop(...)`, in each turn
    while TEST: BODY                  the same with `_control.while_loop()` and its `goes_on(TEST)`
    A if TEST else B                  _control.either(TEST, lambda: A, lambda: B)
    min(A, B)                         _control.least(A, B)
    return X, in a branch or loop     if frame.returns(X): return frame.result()

NAMES are the variables that BODY assigns. `attn_fuzz.interpreted.together.control` has the calls. These statements stay as they
are, and work for programs that agree: a loop with `break` or `continue`, an `if` around them, and a loop over no range.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import TypeVar

CONTROL = "_control"
"""The name of the module `control` in rewritten functions."""
_Node = TypeVar("_Node", bound=ast.AST)
_FRAME = "_frame"
_RANGES = ("range", "static_range")
_BUILTINS = {"min": "least", "max": "most"}
_SCOPES = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def rewrite(tree: ast.Module) -> ast.Module:
    """Rewrite the functions of a module, in place."""
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        _Function(function).rewrite()
    return tree


class _Function(ast.NodeTransformer):
    """One function.

    Args:
        node: its definition.
    """

    def __init__(self, node: ast.FunctionDef) -> None:
        self._node = node
        self._has_frame = any(isinstance(inner, ast.Return) for outer in node.body for inner in _inside(outer))
        self._parts = 0

    def rewrite(self) -> None:
        body = [self.visit(statement) for statement in self._node.body]
        self._node.body = [each for found in body for each in (found if isinstance(found, list) else [found])]
        if self._has_frame:
            last = self._node.body[-1]
            if isinstance(last, ast.Return):
                last.value = _call(f"{_FRAME}.ends", last.value or ast.Constant(None))
            else:
                self._node.body.append(_placed(ast.Return(_call(f"{_FRAME}.ends", ast.Constant(None))), last))
            self._node.body.insert(0, _placed(_assigned(_FRAME, _call(f"{CONTROL}.frame")), self._node.body[0]))

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        assigned = [_assigned_in(part) for part in (node.body, node.orelse)]
        jumps = any(_jumps(part) for part in (node.body, node.orelse))
        self.generic_visit(node)
        if jumps:
            return node
        part = self._part()
        statements: list[ast.stmt] = [_assigned(part, _call(f"{CONTROL}.branch", node.test))]
        for way, body, names in zip(("then", "otherwise"), (node.body, node.orelse), assigned, strict=True):
            if body:
                statements.append(ast.If(_call(f"{part}.{way}"), _merging(part, body, names), []))
        statements.append(ast.Expr(_call(f"{part}.end")))
        return [_placed(statement, node) for statement in statements]

    def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
        names, jumps = _assigned_in(node.body), _jumps(node.body)
        self.generic_visit(node)
        if jumps or node.orelse or not _is_range(node.iter):
            return node
        assert isinstance(node.iter, ast.Call)
        part = self._part()
        node.iter.func = _name(f"{CONTROL}.loop")
        begins = _placed(_assigned(part, node.iter), node)
        node.iter, node.body = _placed(_name(part), node), _merging(part, node.body, names)
        return [begins, _placed(node, node)]

    def visit_While(self, node: ast.While) -> ast.AST | list[ast.stmt]:
        names, jumps = _assigned_in(node.body), _jumps(node.body)
        self.generic_visit(node)
        if jumps or node.orelse:
            return node
        part = self._part()
        begins = _assigned(part, _call(f"{CONTROL}.while_loop"))
        node.test, node.body = _call(f"{part}.goes_on", node.test), _merging(part, node.body, names)
        return [_placed(begins, node), _placed(node, node)]

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if not self._has_frame or node in self._node.body:
            return node
        is_last = _call(f"{_FRAME}.returns", node.value or ast.Constant(None))
        return _placed(ast.If(is_last, [ast.Return(_call(f"{_FRAME}.result"))], []), node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(inner, ast.NamedExpr) for way in (node.body, node.orelse) for inner in ast.walk(way)):
            return node  # a lambda would keep the name to itself
        return _placed(_call(f"{CONTROL}.either", node.test, _later(node.body), _later(node.orelse)), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in _BUILTINS and len(node.args) > 1 and not node.keywords:
            node.func = _placed(_name(f"{CONTROL}.{_BUILTINS[node.func.id]}"), node)
        return node

    def _part(self) -> str:
        """A name that the function does not use."""
        self._parts += 1
        return f"_part_{self._parts}"


def _merging(part: str, body: list[ast.stmt], names: Sequence[str]) -> list[ast.stmt]:
    """The body of a part, whose variables are kept before it and merged after it."""
    if not names:
        return body
    arguments = (_call("locals"), ast.Tuple([ast.Constant(name) for name in names], ast.Load()))
    keep = ast.Expr(_call(f"{part}.before", *arguments))
    variables = ast.Tuple([ast.Name(name, ast.Store()) for name in names], ast.Store())
    merge = ast.Assign([variables], _call(f"{part}.merged", *arguments))
    where = [ast.If(_name(f"{part}.diverges"), [statement], []) for statement in (keep, merge)]
    return [_placed(where[0], body[0]), *body, _placed(where[1], body[-1])]


def _assigned_in(body: list[ast.stmt]) -> list[str]:
    """The variables that statements assign."""
    names = {
        node.id: None
        for statement in body
        for node in (statement, *_inside(statement))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return list(names)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a node, without those of another scope."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES):
            yield child
            yield from _inside(child)


def _jumps(body: list[ast.stmt]) -> bool:
    """True if statements leave or continue the loop around them."""
    for statement in body:
        if isinstance(statement, ast.Break | ast.Continue):
            return True
        if isinstance(statement, ast.If) and (_jumps(statement.body) or _jumps(statement.orelse)):
            return True
    return False


def _is_range(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or any(isinstance(each, ast.Starred) for each in node.args):
        return False
    function = node.func
    return (isinstance(function, ast.Name) and function.id == "range") or (
        isinstance(function, ast.Attribute) and function.attr in _RANGES
    )


def _name(dotted: str) -> ast.expr:
    first, *attributes = dotted.split(".")
    found: ast.expr = ast.Name(first, ast.Load())
    for attribute in attributes:
        found = ast.Attribute(found, attribute, ast.Load())
    return found


def _call(dotted: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_name(dotted), list(arguments), [])


def _assigned(name: str, value: ast.expr) -> ast.Assign:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _later(value: ast.expr) -> ast.Lambda:
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(nothing, value)


def _placed(new: _Node, old: ast.AST) -> _Node:
    return ast.fix_missing_locations(ast.copy_location(new, old))
