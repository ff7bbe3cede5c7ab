"""Places of a module where a mutation operator may be applied, and the patch that makes a change at one of them."""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from attn_fuzz.patches.mutant import Patch
from attn_lab.mutate.operators import Change

_OF_TYPES = {"annotation", "returns", "decorator_list", "type_comment", "type_params", "bases"}
"""Fields of nodes that hold no code that computes."""
_Scope = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Place(NamedTuple):
    """A node where operators are asked.

    Attributes:
        node: the node of the module's tree.
        path: the path of the innermost class or function around the node, such as `Class.method`; empty for the module itself.
        around: the nodes around the node, from the module to the node's parent.
    """

    node: ast.AST
    path: str
    around: tuple[ast.AST, ...]


def places(tree: ast.Module) -> Iterator[Place]:
    """All places of a module, in the order of its source. Words are no places, and neither is what only checkers read.

    Left out are docstrings and other texts, annotations, decorators, imports, `__all__`, assertions, blocks for type checkers,
    and what is raised.
    """
    yield from _below(tree, "", ())


def _below(node: ast.AST, path: str, around: tuple[ast.AST, ...]) -> Iterator[Place]:
    if _is_left_out(node):
        return
    # the name, the parameters' defaults and the body of a function belong to the function
    inside = f"{path}.{node.name}".lstrip(".") if isinstance(node, _Scope) else path
    yield Place(node, inside, around)
    if isinstance(node, ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        if field not in _OF_TYPES:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _below(child, inside, (*around, node))


def _is_left_out(node: ast.AST) -> bool:
    is_text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
    is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    for_checkers = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return is_text or is_all or for_checkers or isinstance(node, ast.Import | ast.ImportFrom | ast.Assert)


class PatchMaker:
    """Writes changes of a module as patches: each with the smallest piece of code that stands once in its function.

    Args:
        module: the module's dotted name.
        tree: its syntax tree.
    """

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = module
        self._counts: dict[int, Counter[str]] = {}
        self._dumps: dict[int, str] = {}
        self._tree = tree

    def patch(self, place: Place, change: Change) -> Patch:
        """The patch for a change at a place: of the node that is replaced, or of the nearest node around it that is unique."""
        chain = [*place.around, *way(place.node, change.old)]
        new: ast.AST = change.new
        for depth in range(len(chain) - 1, 0, -1):
            old, outer = chain[depth], chain[:depth]
            scope = next(node for node in reversed(outer) if isinstance(node, _Scope | ast.Module))
            if _can_be_found(old, outer[-1]) and self._count(scope, old) == 1:
                return Patch(place=self._path(outer), find=ast.unparse(old), replace=ast.unparse(new))
            new = _replaced(outer[-1], old, new)
        raise AssertionError(f"{self.module}: nothing around line {getattr(change.old, 'lineno', 0)} stands there once")

    def _path(self, outer: list[ast.AST]) -> str:
        return ".".join([self.module, *(node.name for node in outer if isinstance(node, _Scope))])

    def _count(self, scope: ast.AST, node: ast.AST) -> int:
        """The number of times that a node's code stands in a scope."""
        if id(scope) not in self._counts:
            pieces = (piece for piece in ast.walk(scope) if isinstance(piece, ast.expr | ast.stmt))
            self._counts[id(scope)] = Counter(map(self._dump, pieces))
        return self._counts[id(scope)][self._dump(node)]

    def _dump(self, node: ast.AST) -> str:
        if id(node) not in self._dumps:
            self._dumps[id(node)] = ast.dump(node)
        return self._dumps[id(node)]


def way(node: ast.AST, below: ast.AST) -> list[ast.AST]:
    """The nodes from one node to another that is below it, both included."""
    if node is below:
        return [node]
    for child in ast.iter_child_nodes(node):
        if found := way(child, below):
            return [node, *found]
    return []


def _can_be_found(node: ast.AST, parent: ast.AST) -> bool:
    """True if a patch can name a node by itself: an expression that is read, or a statement that is no `elif`."""
    if isinstance(node, ast.Starred | ast.Slice) or isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
        return False
    is_elif = isinstance(parent, ast.If) and isinstance(node, ast.If) and parent.orelse == [node]
    return isinstance(node, ast.expr | ast.stmt) and not is_elif


def _replaced(parent: ast.AST, old: ast.AST, new: ast.AST) -> ast.AST:
    """A copy of a node in which another node stands in place of one of its children."""
    changed = copy.copy(parent)
    for field, value in ast.iter_fields(parent):
        if value is old:
            setattr(changed, field, new)
        elif isinstance(value, list):
            setattr(changed, field, [new if child is old else child for child in value])
    return changed
