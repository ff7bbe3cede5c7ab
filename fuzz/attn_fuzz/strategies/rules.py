"""Which rules a case has: none, the usual two, one alone, or several together; and the numbers of each."""

from collections.abc import Callable
from typing import Any

from attn_contract import RULES, AttentionType
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st

USUAL = ("window", "sinks")
# Rules of many kinds are chosen so many times as often as others, and so are rules that only some cases can have.
WEIGHT = {"quantized": 4, "rope": 2, "bidirectional_ranges": 2, "qq_bias": 2}


def windows(support: Support) -> st.SearchStrategy[tuple[int, int]]:
    """(left, right), each unlimited, 0, small, or around a tile's end; and as engines have it, nothing to the right."""
    side = st.sampled_from([-1, 0, 1, 2, 7, *_around(support)])
    return st.one_of(st.tuples(side, st.sampled_from([-1, 0])), st.tuples(side, side))


def _around(support: Support) -> list[int]:
    return [tile + more for tile in support.tile_sizes for more in (-1, 0, 1)]


NUMBERS: dict[str, Callable[[Support], st.SearchStrategy[Any]]] = {
    "window": windows,
    "sink_tokens": lambda support: st.sampled_from([1, 2, 4, *_around(support)]),
    "chunked_local": lambda support: st.sampled_from([16, 1, 2, 7, *_around(support)]),
    "logits_soft_cap": lambda support: st.sampled_from([50.0, 5.0, 1.0, 0.25]),
    "alibi_slopes": lambda support: st.just(True),
    "qq_bias": lambda support: st.sampled_from(["tree", "random"]),
    "sinks": lambda support: st.sampled_from(["zero", "near", "above", "below", "off"]),
}
"""By the name of a rule of a layer or of a step: the strategy of what a case says of it. Without one, a rule is not drawn."""

DRAWN_ELSEWHERE = {
    "bidirectional_ranges": "strategies.batches draws the ranges of each request",
    "ranges_clamped": "strategies.layers draws it where there are ranges",
}
"""By the name of a rule of a layer or of a step that has no strategy here: where it is drawn."""


def rules(support: Support, attn_type: AttentionType) -> st.SearchStrategy[set[str]]:
    """Names of the rules that the attention type has and the target supports."""
    possible = _possible(support, attn_type)
    if not possible:
        return st.just(set())
    usual = st.sets(st.sampled_from([rule for rule in USUAL if rule in possible] or possible))
    each = st.sampled_from([rule for rule in possible for _ in range(WEIGHT.get(rule, 1))])
    alone = each.map(lambda rule: {rule})
    together = st.sets(each, min_size=min(2, len(possible)), max_size=6)
    return st.one_of(usual, alone, together, together, together)


def _possible(support: Support, attn_type: AttentionType) -> list[str]:
    """Names of what is chosen as rules are; a quantized cache and a quantized output count as such."""
    named = [*NUMBERS, "bidirectional_ranges", "rope"]
    possible = [rule for rule in named if rule in support.rules and attn_type in RULES[rule].attn_types]
    quantized = ["quantized"] if support.cache_dtypes and attn_type.reads_cache else []
    return [*possible, *quantized, *(["output_dtype"] if support.output_dtypes else [])]
