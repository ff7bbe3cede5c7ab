"""Features of cases: what a run counts, and what the strategies draw to meet others."""

from collections.abc import Iterator
from typing import NamedTuple

from attn_contract import AttentionType
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.dimensions import DIMENSIONS, MULTI_TOKEN_DECODE, Dimension
from attn_fuzz.cases.dimensions.dimension import Holds, Value


class Feature(NamedTuple):
    """Something that a case may have: a value of a dimension.

    Attributes:
        name: the name of the value.
        has: True if a case has the value. For a kind of a rule, it is only asked of cases that have the rule.
        group, rule: the group and the rule of the feature's dimension.
        value, dimension: the value and the dimension.
    """

    name: str
    has: Holds
    group: str
    rule: str | None
    value: Value
    dimension: Dimension


def of_kind(kind: str) -> Iterator[Feature]:
    """All "feature"s or "aspect"s of the table."""
    for dimension in DIMENSIONS:
        for value in dimension.values:
            if value.kind == kind:
                yield Feature(value.name, value.holds, dimension.group, dimension.rule, value, dimension)


FEATURES = tuple(of_kind("feature"))


def phase(case: Case, request: Request) -> str:
    """The phase of a request in this step. Kernels have a path for each phase, and each path rounds differently."""
    if case.cache is None:
        return "encoder"
    if case.attn_type is AttentionType.ENCODER_DECODER:
        return "cross"
    if request.query_len == 1:
        return "decode"
    if request.context_len <= 0:
        return "prefill"
    return "multi-token decode" if request.query_len <= MULTI_TOKEN_DECODE else "extend"


def features(case: Case) -> list[str]:
    """Names of the features of a case, in the order of FEATURES."""
    return [FEATURES[i].name for i in places(case)]


def places(case: Case, among: tuple[Feature, ...] = FEATURES) -> list[int]:
    """The places in FEATURES, or among others, of the features that a case has, in order."""
    rules = case.rules
    return [i for i, feature in enumerate(among) if (feature.rule is None or feature.rule in rules) and feature.has(case)]
