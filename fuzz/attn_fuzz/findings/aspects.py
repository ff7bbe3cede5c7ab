"""Features and aspects of a case that a failure may need, from the table of dimensions.

An aspect is a word about a case. A failure needs an aspect if the case no longer fails without it.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from attn_fuzz.cases.case import Case
from attn_fuzz.cases.features import FEATURES, of_kind, places

if TYPE_CHECKING:
    from attn_fuzz.verdict.verdict import Verdict


ASPECTS = (*FEATURES, *of_kind("aspect"))
_BY_NAME = {aspect.name: aspect for aspect in ASPECTS}
OF_ATTENTION = frozenset(feature.name for feature in FEATURES if feature.group == "attention")
"""The kind of attention of a case. A failure is taken to need it unless another kind of attention fails in the same way."""


def aspects(case: Case) -> frozenset[str]:
    return frozenset(ASPECTS[i].name for i in places(case, ASPECTS))


def in_order(names: Collection[str]) -> list[str]:
    """Names of aspects in the order of ASPECTS, rules first."""
    chosen = [aspect for aspect in ASPECTS if aspect.name in names]
    return [aspect.name for aspect in sorted(chosen, key=lambda aspect: aspect.group != "rule")]


def alike(kinds: Collection[str]) -> frozenset[str]:
    """Kinds of verdicts, and those that another kind of values makes of them: an inexact sum is a wrong value."""
    return frozenset(kinds) | (_VALUES if _VALUES & set(kinds) else frozenset())


_VALUES = frozenset(("value", "bitwise"))


def needing(*needs: str, kinds: Collection[str], about: str) -> "Callable[[Case, Verdict], bool]":
    """A predicate for `Finding.explains`: a failure of some kinds about one thing, in a case that has all aspects named.

    Args:
        needs: names of ASPECTS.
        kinds, about: as in `Verdict`. "value" and "bitwise" stand for each other.

    Raises:
        ValueError: there is no such aspect.
    """
    if unknown := [name for name in needs if name not in _BY_NAME]:
        raise ValueError(f"needing: got {unknown[0]!r}, expected names of attn_fuzz.findings.aspects.ASPECTS")
    wanted = alike(kinds)

    def explains(case: Case, verdict: "Verdict") -> bool:
        return verdict.kind in wanted and verdict.about == about and aspects(case).issuperset(needs)

    return explains
