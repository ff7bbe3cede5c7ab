"""Choices among values, which are most of what is drawn."""

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


def pick(draw: st.DrawFn, values: Sequence[T]) -> T:
    """One of the values, simplest first. It is drawn as by `st.sampled_from`, whose validation takes longer than the draw."""
    return values[0] if len(values) == 1 else values[draw(_index(len(values)))]


@cache
def _index(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)
