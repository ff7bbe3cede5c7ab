"""Patches of source code by meaning: a piece of Python in a named function is replaced by another piece.

    [[patch]]
    in = "attn_optimized.kernels.visibility.in_window"
    find = "last_position + right + 1"
    replace = "last_position + right"

`in` names a function, a method, a class or a module. `find` and `replace` are both an expression, or both statements, arguments
of a call (`left=distance(left)`) or entries of a dict (`"stride_kv": cache.kv`). An empty `replace` deletes statements.

Code is compared as the parser reads it: spaces, line breaks, comments, quotes and needless parentheses do not count. `find`
must match in exactly one place of what `in` names. All patches of a mutant are looked for in the source as it is, not in what
an earlier patch makes of it.
"""

import ast
import builtins
import difflib
import functools
import importlib.util
import itertools
import symtable
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attn_fuzz import current_folder
from attn_fuzz.patches.mutant import Patch

SHOWN, SHOWN_PLACES = 200, 3
_Node = ast.expr | ast.stmt | ast.keyword
_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PatchError(ValueError):
    """A patch that is not Python, that does not apply, or whose result is broken."""


def patched_sources(patches: Sequence[Patch]) -> dict[str, str]:
    """The source of every module that the patches change, by the module's name.

    Raises:
        PatchError: a patch does not apply; two patches overlap; a patched module does not compile, or reads a name that neither
            it nor Python defines.
    """
    by_module: dict[str, list[Patch]] = {}
    for patch in patches:
        by_module.setdefault(module_and_path(patch.place)[0], []).append(patch)
    return {module: _patched(module, text_of(module), tuple(its)) for module, its in by_module.items()}


@functools.lru_cache(maxsize=1024)  # a mutant is checked when it is read, and patched again when it is looked for
def _patched(module: str, unpatched: str, patches: tuple[Patch, ...]) -> str:
    source = _Source(module, unpatched)
    edits = sorted(source.edit(patch) for patch in patches)
    for before, after in itertools.pairwise(edits):
        if after.begin < before.end:
            raise PatchError(f"two patches of {module} change the same code: {_one_line(after.old)}")
    text = source.text
    for edit in reversed(edits):
        text = text[: edit.begin] + edit.new.encode() + text[edit.end :]
    patched = text.decode()
    try:
        compile(patched, module, "exec")
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{module} does not compile any more: {error}") from None
    if unknown := sorted(undefined_names(patched) - undefined_names(unpatched)):
        raise PatchError(f"{module} reads a name that is not defined: {', '.join(unknown)}")
    return patched


def text_of(module: str) -> str:
    """A module's source, unpatched.

    Raises:
        PatchError: there is no such module.
    """
    file = file_of(module)
    if file is None:
        raise PatchError(f"there is no module {module}")
    return file.read_text(encoding="utf-8")


@functools.lru_cache(maxsize=256)  # all mutants of a module ask for those of the module as it is
def undefined_names(source: str) -> frozenset[str]:
    """Names that a module reads, in its functions too, and that neither the module nor Python itself defines."""
    tables = [symtable.symtable(source, "module", "exec")]
    module = tables[0]
    read: set[str] = set()
    defined = {*dir(builtins), "__file__"}
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is module or symbol.is_global():
                binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
                (defined if binds else read).add(symbol.get_name())
    return frozenset(read - defined)


class _Piece(NamedTuple):
    """A piece of code that a patch can replace, alone or together with its neighbours.

    Attributes:
        kind: "expression", "statements", "arguments" or "entries".
        nodes: the key and the value of an entry; of all others one node.
        begin, end: the place of the piece in the source, in bytes.
    """

    kind: str
    nodes: tuple[_Node, ...]
    begin: int = 0
    end: int = 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Piece)
            and self.kind == other.kind
            and [type(node) for node in self.nodes] == [type(node) for node in other.nodes]
            and all(ast.dump(one) == ast.dump(another) for one, another in zip(self.nodes, other.nodes, strict=True))
        )

    def __str__(self) -> str:
        return ": ".join(map(ast.unparse, self.nodes))


class _Edit(NamedTuple):
    begin: int
    end: int
    old: str
    new: str


class _Source:
    """The source of a module with its syntax tree, in which patches are looked up."""

    def __init__(self, module: str, text: str) -> None:
        self.module = module
        self.text = text.encode()
        self.tree = _tree(self.text)
        self.line_begins = [0]
        for line in self.text.splitlines(keepends=True):
            self.line_begins.append(self.line_begins[-1] + len(line))

    def edit(self, patch: Patch) -> _Edit:
        find, replace = _readings(patch.find, "find"), _readings(patch.replace, "replace")
        kinds = [kind for kind in find if kind in replace]
        if not kinds:
            kinds_of_both = f"`find` reads as {' or '.join(find)}, `replace` as {' or '.join(replace)}"
            raise PatchError(f"{kinds_of_both}: {_one_line(patch.find)}")
        if any(find[kind] == replace[kind] for kind in kinds):
            raise PatchError(f"`replace` says the same as `find`: {_one_line(patch.find)}")
        path = module_and_path(patch.place)[1]
        scopes = [scope for name, scope in _scopes(self.tree) if name == path]
        if not scopes:
            stands = _stands_in(modules_of(self.module), find)
            raise PatchError(f"{self.module} has no function or class {path}{_hint(patch.place)}{stands}")
        # an expression that is a statement by itself is found as both
        found = {
            (run[0].begin, run[-1].end): (kind, run)
            for scope in scopes
            for kind in reversed(kinds)
            for run in self.runs(scope, kind, len(find[kind]))
            if run == find[kind]
        }
        if len(found) != 1:
            raise PatchError(f"{patch.place}: {self._not_once(patch, scopes, kinds, find, [*found])}")
        (((begin, end), (kind, _)),) = found.items()
        return _Edit(begin, end, patch.find, self._written(kind, replace[kind], begin))

    def _written(self, kind: str, pieces: list[_Piece], begin: int) -> str:
        if kind == "expression":
            return f"({pieces[0]})"
        if kind != "statements":
            return ", ".join(map(str, pieces))
        indent = " " * (begin - self.line_begins[self._line(begin) - 1])
        return textwrap.indent("\n".join(map(str, pieces)) or "pass", indent).removeprefix(indent)

    def _line(self, at: int) -> int:
        return sum(begin <= at for begin in self.line_begins)

    def runs(self, scope: ast.AST, kind: str, length: int) -> Iterator[list[_Piece]]:
        """All runs of `length` neighbouring pieces of one kind in a scope."""
        for row in self._rows(scope, kind):
            for first in range(len(row) - length + 1):
                yield row[first : first + length]

    def _rows(self, node: ast.AST, kind: str) -> Iterator[list[_Piece]]:
        """All lists of neighbouring code of one kind, in a node and in the nodes below it."""
        if isinstance(node, ast.JoinedStr):
            return  # Python 3.11 does not know where the parts of an f-string stand
        for field, value in ast.iter_fields(node):
            if kind == "expression" and isinstance(value, ast.expr):
                yield [self._piece(kind, value)]
            if not isinstance(value, list) or not value:
                continue
            if kind == "expression":
                yield from ([self._piece(kind, each)] for each in value if isinstance(each, ast.expr))
            if kind == "statements" and isinstance(value[0], ast.stmt) and not (field == "orelse" and self._is_elif(value[0])):
                yield [self._piece(kind, each) for each in value]
            if kind == "arguments" and isinstance(value[0], ast.keyword):
                yield [self._piece(kind, each) for each in value]
        if kind == "entries" and isinstance(node, ast.Dict):
            entries = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
            yield [self._piece(kind, key, value) for key, value in entries]
        for child in ast.iter_child_nodes(node):
            yield from self._rows(child, kind)

    def _piece(self, kind: str, *nodes: _Node) -> _Piece:
        first, last = nodes[0], nodes[-1]
        if decorators := getattr(first, "decorator_list", None):
            begin = self.text.rindex(b"@", 0, self._at(decorators[0].lineno, decorators[0].col_offset))
        else:
            begin = self._at(first.lineno, first.col_offset)
        assert last.end_lineno is not None
        assert last.end_col_offset is not None
        return _Piece(kind, nodes, begin, self._at(last.end_lineno, last.end_col_offset))

    def _at(self, line: int, column: int) -> int:
        return self.line_begins[line - 1] + column

    def _is_elif(self, statement: ast.stmt) -> bool:
        return self.text.startswith(b"elif", self._at(statement.lineno, statement.col_offset))

    def _not_once(
        self,
        patch: Patch,
        scopes: list[_Scope],
        kinds: list[str],
        find: dict[str, list[_Piece]],
        found: list[tuple[int, int]],
    ) -> str:
        """The reason why a patch does not apply. The message names the nearest code, for whoever moved the code or writes the
        patch."""
        stands = f"its `find` stands there {len(found)} times, expected once: {_one_line(patch.find)}"
        if found:
            return f"{stands} (lines {', '.join(str(self._line(begin)) for begin, _ in sorted(found))})"
        if elsewhere := _stands_in(modules_of(self.module), find):
            return stands + elsewhere
        runs = [run for scope in scopes for kind in kinds for run in self.runs(scope, kind, len(find[kind]))]
        by_text = {"\n".join(map(str, run)): run[0].begin for run in runs}
        texts = ["\n".join(map(str, find[kind])) for kind in kinds]
        nearest = difflib.get_close_matches(texts[0], by_text, 1, cutoff=0.4)
        return f"{stands}; nearest is line {self._line(by_text[nearest[0]])}: {_one_line(nearest[0])}" if nearest else stands


@functools.lru_cache(maxsize=64)
def _tree(text: bytes) -> ast.Module:
    """The syntax tree of a module. Many mutants copy it, and it must not change."""
    return ast.parse(text)


def _source(module: str) -> _Source:
    return _Source(module, text_of(module))


def _readings(text: str, name: str) -> dict[str, list[_Piece]]:
    """The pieces of code that a text can be read as, by kind."""
    text = textwrap.dedent(text).strip("\n")
    expression, call, entries = (_parsed(form, "eval") for form in (f"(\n{text}\n)", f"f(\n{text}\n)", f"{{\n{text}\n}}"))
    statements = _parsed(text, "exec")
    readings: dict[str, list[_Piece]] = {}
    is_empty = isinstance(statements, ast.Module) and not statements.body  # in parentheses, that is a tuple
    if isinstance(expression, ast.Expression) and not is_empty:
        readings["expression"] = [_Piece("expression", (expression.body,))]
    if isinstance(call, ast.Expression) and isinstance(call.body, ast.Call) and call.body.keywords and not call.body.args:
        readings["arguments"] = [_Piece("arguments", (keyword,)) for keyword in call.body.keywords]
    if isinstance(entries, ast.Expression) and isinstance(entries.body, ast.Dict) and entries.body.keys:
        pairs = zip(entries.body.keys, entries.body.values, strict=True)
        readings["entries"] = [_Piece("entries", (key, value)) for key, value in pairs if key is not None]
    if isinstance(statements, ast.Module):
        readings["statements"] = [_Piece("statements", (statement,)) for statement in statements.body]
    if not readings:
        raise PatchError(f"`{name}` is not Python: {statements}: {_one_line(text)}")
    return readings


def _parsed(text: str, mode: str) -> ast.mod | SyntaxError:
    try:
        return ast.parse(text, mode=mode)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte; too deep for the parser
        return SyntaxError(str(error))


def _scopes(node: ast.AST, path: str = "") -> Iterator[tuple[str, _Scope]]:
    """All scopes of a module with their paths: the module, whose path is empty, and classes and functions, nested ones too."""
    if isinstance(node, ast.Module):
        yield path, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{path}.{child.name}".lstrip(".")
            yield name, child
            yield from _scopes(child, name)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _scopes(child, path)


def module_and_path(place: str) -> tuple[str, str]:
    """The module of a place, and the path of a class or function in it."""
    parts = place.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if file_of(module) is not None:
            return module, ".".join(parts[length:])
    raise PatchError(f"there is no module {place}{_hint(place)}")


def file_of(module: str) -> Path | None:
    """The file of a module's source, or None if there is no such module. Nothing of the module's package is imported."""
    top, *rest = module.split(".")
    current_folder.admit(top)
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    inside = Path(spec.submodule_search_locations[0], *rest)
    return next((path for path in (inside.with_suffix(".py"), inside / "__init__.py") if path.is_file()), None)


def _hint(place: str) -> str:
    """The place that may be meant by a place that is not there: a place of the same name, or else of a similar name."""
    names = [f"{module}.{path}".rstrip(".") for module in modules_of(place) for path, _ in _scopes(_source(module).tree)]
    last = place.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(place, same or names, 1, cutoff=0 if same else 0.6)
    return f"; nearest is {nearest[0]}" if nearest else ""


def _stands_in(modules: Sequence[str], find: dict[str, list[_Piece]]) -> str:
    """The functions where the code of a patch stands now, if there are any."""
    names = []
    for module in modules:
        source = _source(module)
        for path, scope in _scopes(source.tree):
            holds = any(
                run == pieces for kind, pieces in find.items() if pieces for run in source.runs(scope, kind, len(pieces))
            )
            if holds and isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                names.append(f"{module}.{path}")
    return f"; it stands in {' and in '.join(names[:SHOWN_PLACES])}" if names else ""


def modules_of(place: str) -> list[str]:
    """All modules of the package that a place belongs to."""
    init = file_of(place.split(".")[0])
    if init is None or init.name != "__init__.py":
        return []
    files = [file.relative_to(init.parent.parent).with_suffix("") for file in sorted(init.parent.rglob("*.py"))]
    return [".".join(file.parts).removesuffix(".__init__") for file in files]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else f"{line[:SHOWN]}...")
