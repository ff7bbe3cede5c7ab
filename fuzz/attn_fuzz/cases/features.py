"""Features of cases, which the coverage table counts, and why some pairs of features cannot meet in one case."""

import functools
from collections.abc import Iterator
from itertools import combinations_with_replacement, product
from typing import NamedTuple

from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.dimensions import DIMENSIONS, FLAGS, MULTI_TOKEN_DECODE, Dimension, Setting
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
_BY_NAME = {feature.name: feature for feature in FEATURES}


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


def count(case: Case, together: list[int]) -> list[int]:
    """One more case in a table of features and pairs, row by row; [] is the empty table.

    Place i * len(FEATURES) + j, i <= j, counts the cases that have features i and j, or where i == j the one.
    """
    counts = together.copy() or [0] * len(FEATURES) ** 2
    for i, j in combinations_with_replacement(places(case), 2):
        counts[i * len(FEATURES) + j] += 1
    return counts


def made(setting: Setting) -> Case:
    """A causal prefill of three tokens with a setting."""
    attn_type = setting.fields.get("attn_type", AttentionType.DECODER)
    cache = Cache(**{"layout": Layout.KV_FIRST_NHD, "block_size": 16, "num_blocks": 4, **setting.cache})
    has_cache = bool(setting.cache) or attn_type.reads_cache
    flags = FLAGS[setting.causality or "causal"] if attn_type is AttentionType.DECODER else (False,)
    lengths, ranges = setting.lengths or ((3, 3),), ((0, 1),) if setting.ranges else ()
    requests = []
    for r in range(max(len(lengths), len(flags))):
        query_len, seq_len = lengths[r % len(lengths)]
        num_keys = seq_len // (setting.fields.get("key_unit") or 1)
        first, used = r * 2, -(-num_keys // cache.block_size) if has_cache else 0
        requests.append(Request(query_len, seq_len, tuple(range(first, first + used)), flags[r % len(flags)], ranges))
    return Case(
        target="",
        requests=tuple(requests),
        cache=cache if has_cache else None,
        per_request_causal=setting.causality == "per request",
        **setting.fields,
    )


def _has(case: Case, feature: Feature) -> bool:
    return (feature.rule is None or feature.rule in case.rules) and bool(feature.has(case))


@functools.cache
def undefined(first: str, second: str) -> str | None:
    """The reason, in words, why no case has both features; None if a case can have both.

    Some case can if a setting of the one over a setting of the other is valid, and still has both. If not, the reason is what
    contradicts such a case.
    """
    why = ""
    for _, reason in _with_both(first, second):
        if reason is None:
            return None
        why = why or reason
    return why or "a case has one or the other"


def examples(first: str, second: str) -> Iterator[Case]:
    """Small cases that have both features."""
    return (case for case, reason in _with_both(first, second) if reason is None)


def _with_both(first: str, second: str) -> Iterator[tuple[Case, str | None]]:
    """A setting of the one feature over a setting of the other, where it still has both, and what contradicts it."""
    one, other = _BY_NAME[first], _BY_NAME[second]
    for a, b in product(one.value.settings, other.value.settings):
        for case in (made(a | b), made(b | a)):
            if _has(case, one) and _has(case, other):
                yield case, contradiction(case)
