"""Records which statements of a package run: each notes its own line. Interpreted kernels are recorded, too.

A trace function of Python would slow interpreted kernels down tenfold, because it is called for every function of Triton's
interpreter.
"""

import ast
from collections.abc import Iterator

from attn_fuzz.patches import installation
from attn_fuzz.patches.source import modules_of, text_of

LINES: dict[str, set[int]] = {}
"""The lines of the statements of each module that have run in this process since the sets were cleared."""
_NOTE = "_note_line"


def install(package: str) -> None:
    """Have this process import a package's modules so that their statements note their lines in `LINES`.

    Statements of Triton's kernels do, too, where kernels are interpreted.

    Raises:
        MutantError: a module is imported already.
    """
    sources = {module: _noting(module) for module in modules_of(package)}
    LINES.update({module: set() for module in sources})
    installation.import_from(sources, "recorded")


def take() -> dict[str, set[int]]:
    """The lines that have run since the last call, by module."""
    taken = {module: set(lines) for module, lines in LINES.items() if lines}
    for lines in LINES.values():
        lines.clear()
    return taken


def outside_functions(module: str) -> set[int]:
    """The lines of a module's statements that run when it is imported."""
    return {*_lines_outside_functions(ast.parse(text_of(module)))}


def _lines_outside_functions(node: ast.AST) -> Iterator[int]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child.lineno
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _lines_outside_functions(child)


def _noting(module: str) -> str:
    """A module's source with a call before each statement."""
    tree = ast.parse(text_of(module))
    _add_notes(tree)
    header = ast.parse(f"from {__name__} import LINES\n{_NOTE} = LINES[{module!r}].add").body
    docstring = tree.body[:1] if ast.get_docstring(tree) else []
    tree.body = [*docstring, *header, *tree.body[len(docstring) :]]
    return ast.unparse(tree)


def _add_notes(node: ast.AST) -> None:
    for child in ast.iter_child_nodes(node):
        _add_notes(child)
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        if isinstance(statements, list) and statements and isinstance(statements[0], ast.stmt):
            setattr(node, field, [each for statement in statements for each in _with_note(statement)])


def _with_note(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return [statement]  # a docstring must stay the first statement
    note = ast.Expr(ast.Call(ast.Name(_NOTE, ast.Load()), [ast.Constant(statement.lineno)], []))
    return [ast.copy_location(note, statement), statement]
