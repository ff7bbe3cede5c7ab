"""A lost line that leaves a function without its result is seen without a call of the function."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("contract", "reference", "optimized", "fuzz")


def test_every_function_with_a_result_ends_with_one():
    assert [place for folder in SOURCES for path in (ROOT / folder).rglob("*.py") for place in without_result(path)] == []


def without_result(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or node.returns is None:
            continue
        may_end_anywhere = "None" in ast.unparse(node.returns) or any(
            isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(node)
        )
        is_abstract = all(isinstance(each, ast.Expr) for each in node.body)
        if not may_end_anywhere and not is_abstract and not ends(node.body):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def ends(body: list[ast.stmt]) -> bool:
    """True if a block never goes on after its last statement."""
    match body[-1] if body else None:
        case ast.Return(value=value):
            return value is not None
        case ast.Raise():
            return True
        case ast.If(body=then, orelse=other):
            return ends(then) and ends(other)
        case ast.With(body=inside):
            return ends(inside)
        case ast.Try(body=inside, handlers=handlers, orelse=other, finalbody=final):
            return ends(final) or (ends(other or inside) and all(ends(each.body) for each in handlers))
        case ast.While(test=ast.Constant(value=True)):
            return True
        case ast.Match(cases=cases):
            return all(ends(each.body) for each in cases)
    return False
