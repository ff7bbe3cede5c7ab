"""Each operator makes its slips and no others, and none of them changes words."""

import ast

import pytest
from attn_lab.mutate import generate
from attn_lab.mutate.operators import OPERATORS
from attn_lab.mutate.places import PatchMaker, places

WORDS = '''\
"""A docstring with 1 and a < b."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from there import here

__all__ = ["f", "g"]


@decorated(limit=1)
def f(x: int | 3, y: Literal[1, 2] = None) -> dict[4, 5]:
    """One of 2 docstrings."""
    z: tuple[int, 6]
    assert x is not None and y > 1
    text = f"{x + 1} of {len(y)}" + "2"
    raise ValueError(text, x + 1, f"at least {x - 1}")
'''


def made(operator: str, source: str) -> list[str]:
    """An operator's mutants of a function, or of the one line of a function's body."""
    tree = ast.parse(source)
    changed = []
    for place in places(tree):
        for change in OPERATORS[operator](place.node):
            patch = PatchMaker("module", tree).patch(place, change)
            changed.append(f"{patch.find} -> {patch.replace}")
    return changed


@pytest.mark.parametrize(
    ("operator", "source", "expected"),
    [
        ("edge", "a < b", ["a < b -> a <= b"]),
        ("edge", "0 <= a < b", ["0 <= a < b -> 0 < a < b", "0 <= a < b -> 0 <= a <= b"]),
        ("edge", "x is None", ["x is None -> x is not None"]),
        ("edge", "x not in y", ["x not in y -> x in y"]),
        ("off-by-one", "a + b", ["a + b -> a + b + 1", "a + b -> a + b - 1"]),
        ("off-by-one", "a - b + c", ["a - b -> a - b + 1", "a - b -> a - b - 1"]),
        ("off-by-one", "tl.cdiv(a, b)", ["tl.cdiv(a, b) -> tl.cdiv(a, b) + 1", "tl.cdiv(a, b) -> tl.cdiv(a, b) - 1"]),
        ("off-by-one", "a * 0.5", []),
        ("off-by-one", "tl.exp(a - b) * weight", ["a - b -> a - b + 1", "a - b -> a - b - 1"]),
        ("min-max", "tl.minimum(a, b)", ["tl.minimum(a, b) -> tl.maximum(a, b)"]),
        ("min-max", "max(a, b)", ["max(a, b) -> min(a, b)"]),
        ("min-max", "x.clamp(min=0)", ["x.clamp(min=0) -> x.clamp(max=0)"]),
        ("min-max", "x.clamp(min=0, max=1)", []),
        ("dropped-term", "a & b", ["a & b -> a", "a & b -> b"]),
        ("dropped-term", "a and b and c", ["a and b and c -> b and c", "a and b and c -> a and c", "a and b and c -> a and b"]),
        ("dropped-term", "tl.load(p, mask=m, other=0)", ["tl.load(p, mask=m, other=0) -> tl.load(p)"]),
        ("dropped-term", "load(p)", []),
        ("swapped", "a - b", ["a - b -> b - a"]),
        ("swapped", "a + b", []),
        ("swapped", "f(stride_a, x, stride_b)", ["f(stride_a, x, stride_b) -> f(stride_b, x, stride_a)"]),
        ("swapped", "f(k=x.stride(0), v=x.stride(1))", ["f(k=x.stride(0), v=x.stride(1)) -> f(k=x.stride(1), v=x.stride(0))"]),
        ("swapped", "{'k': k, 'v': v}", ["{'k': k, 'v': v} -> {'k': v, 'v': k}"]),
        ("swapped", "f(begin, end)", []),
        ("constant", "f(2)", ["2 -> 3", "2 -> 1"]),
        ("constant", "f(0)", ["0 -> 1"]),
        ("constant", "f(True)", ["True -> False"]),
        ("constant", "x * 0.5", ["0.5 -> 0.0", "0.5 -> 1.0"]),
        ("constant", "float('-inf')", ["float('-inf') -> 0.0"]),
        ("constant", "f('a', None, ...)", []),
        (
            "key-field",
            "def key(a, b) -> Hashable:\n    return (a, b)",
            ["(a, b) -> (b,)", "(a, b) -> (a,)"],
        ),
        ("key-field", "def key(a, b) -> tuple:\n    return (a, b)", []),
        (
            "key-field",
            "_signature(a, b)",
            ["_signature(a, b) -> _signature(None, b)", "_signature(a, b) -> _signature(a, None)"],
        ),
        ("and-or", "a and b", ["a and b -> a or b"]),
        ("and-or", "a | b", ["a | b -> a & b"]),
        ("and-or", "isinstance(x, Layer | None)", []),
        ("skipped", "x += 1", ["x += 1 -> pass"]),
        ("skipped", "x = x & y", ["x = x & y -> pass"]),
        ("skipped", "x = y", []),
        ("skipped", "x[0] = y", ["x[0] = y -> pass"]),
        ("skipped", "f(x)", ["f(x) -> pass"]),
        ("skipped", "yield x", []),
        ("cast", "x.to(tl.float32)", ["x.to(tl.float32) -> x", "x.to(tl.float32) -> x.to(tl.float16)"]),
        ("cast", "x.to(out_ptr.dtype.element_ty)", ["x.to(out_ptr.dtype.element_ty) -> x"]),
        ("cast", "x.to(device)", []),
        ("cast", "x.long()", ["x.long() -> x"]),
        ("sign", "not x", ["not x -> x"]),
        ("sign", "-x", ["-x -> x"]),
        ("sign", "-1", []),
        ("forced", "f() if a else b", ["a -> False", "a -> True"]),
        ("forced", "while x: f()", ["x -> False", "x -> True"]),
        ("forced", "tl.where(a, b, c)", ["tl.where(a, b, c) -> b", "tl.where(a, b, c) -> c"]),
    ],
)
def test_an_operator_makes_its_slips(operator, source, expected):
    assert made(operator, source) == expected


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_operator_changes_words(operator):
    """Docstrings, annotations, decorators, assertions, messages, imports and `__all__`."""
    assert made(operator, WORDS) == []


def test_an_elif_is_changed_within_its_if():
    (first, second) = made("forced", "if a:\n    x\nelif b:\n    y")[2:]
    assert first == "b -> False"
    assert second == "b -> True"
    assert "elif b" in made("skipped", "for i in a:\n    if a:\n        x\n    elif b:\n        for i in b:\n            y")[0]


def test_a_piece_that_stands_twice_is_changed_with_what_is_around_it():
    assert made("edge", "def f(a, b):\n    return a < b, (a < b) + 1") == [
        "(a < b, (a < b) + 1) -> (a <= b, (a < b) + 1)",
        "(a < b) + 1 -> (a <= b) + 1",
    ]


def test_every_operator_has_places_in_the_optimized_side():
    assert {mutant.operator for mutant in generate.of_package()} == set(OPERATORS)
