"""What a case has that a failure may need: the features of the coverage table, and finer ones beside them.

An aspect is a word about a case. A failure needs an aspect if the case no longer fails without it.
"""

from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from attn_fuzz.cases.case import Case
from attn_fuzz.cases.features import FEATURES, Feature, features

if TYPE_CHECKING:
    from attn_fuzz.verdict.verdict import Verdict


def _shares_blocks(case: Case) -> bool:
    return max(Counter(block for request in case.requests for block in request.blocks).values(), default=0) > 1


def _has_several_blocks(case: Case) -> bool:
    return any(len(request.blocks) > 1 for request in case.requests)


def _has_full_blocks(case: Case) -> bool:
    return case.cache is not None and any(request.seq_len >= case.cache.block_size for request in case.requests)


_KINDS = Counter(feature.rule for feature in FEATURES if feature.rule is not None)
_FINER = (
    *(Feature(f"{name} of any kind", "rule", lambda case: True, rule=name) for name, kinds in _KINDS.items() if kinds > 1),
    Feature("window to the left", "rule", lambda case: case.window[0] >= 0, rule="window"),
    Feature("window to the right", "rule", lambda case: case.window[1] >= 0, rule="window"),
    Feature("sinks of the layer's dtype", "rule", lambda case: case.narrow_sinks and case.dtype != "float32", rule="sinks"),
    Feature("NaN in keys that no query sees", "memory", lambda case: case.recycled),
    Feature("NaN in unused slots", "memory", lambda case: case.cache is not None and not case.finite_slots),
    Feature("shared blocks", "memory", _shares_blocks),
    Feature("several blocks", "memory", _has_several_blocks),
    Feature("a full block", "memory", _has_full_blocks),
    Feature("several requests", "size", lambda case: len(case.requests) > 1),
    Feature("several KV heads", "size", lambda case: case.num_kv_heads > 1),
    Feature("grouped heads", "size", lambda case: case.group_size > 1),
    Feature("head size no power of two", "size", lambda case: case.head_size.bit_count() > 1),
    Feature("request without a key", "size", lambda case: any(not request.seq_len for request in case.requests)),
    Feature("rows of padding", "form", lambda case: case.unowned_rows > 0),
    Feature("rows past the step's", "form", lambda case: case.rows_past > 0 or case.kv_rows_past > 0),
    Feature("unused columns of the block table", "form", lambda case: case.table_padding > 0),
    Feature("loose bounds of lengths", "form", lambda case: case.slack > 0),
    Feature("flat output", "form", lambda case: case.flat_out),
    Feature("unequal logits", "values", lambda case: case.values.kind != "exact"),
    Feature("large logits", "values", lambda case: case.values.kind == "extreme"),
)
ASPECTS = (*FEATURES, *_FINER)
_BY_NAME = {aspect.name: aspect for aspect in ASPECTS}
OF_ATTENTION = frozenset(feature.name for feature in FEATURES if feature.group == "attention")
"""Which attention a case asks for. A failure is taken to need it unless another kind of attention fails likewise."""


def aspects(case: Case) -> frozenset[str]:
    """The names of all aspects of a case."""
    rules = case.rules
    finer = (aspect.name for aspect in _FINER if (aspect.rule is None or aspect.rule in rules) and aspect.has(case))
    return frozenset((*features(case), *finer))


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
