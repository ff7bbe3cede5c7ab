"""Draws the rules of a case: none, the usual two, one alone, or several together; and the numbers of each."""

from collections.abc import Callable
from functools import partial
from typing import Any

from attn_contract import RULES, AttentionType
from attn_fuzz.strategies.choices import pick
from attn_fuzz.targets.engine import WindowKind
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st

USUAL = ("window", "sinks")
BESIDE_ALIBI = frozenset({"sinks", "bidirectional_ranges"})
"""Rules that layers with ALiBi lack if the engine sends no `mixed_alibi`."""
# how many times as often as others a rule is chosen: rules of many kinds, and rules that only some cases can have
WEIGHT = {"quantized": 4, "rope": 2, "bidirectional_ranges": 2, "qq_bias": 2, "head_size_v": 4, "selection_unit": 3}
ONE_IN = 4
"""One layer in this many has a rule that excludes others. If it were chosen like other rules, many layers would
lack the others."""


def window(draw: st.DrawFn, support: Support, kind: WindowKind) -> tuple[int, int]:
    """A window of a kind that the engine sends. Edges are unlimited, 0, small, around a tile's end, or a long way off.

    A window "by causality" is drawn with both edges, and `strategies.cases` takes the right one back in causal steps.
    """
    lengths = window_lengths(support)
    sides = (-1, *lengths)
    if kind == "left":
        return pick(draw, lengths), -1
    if kind != "any":
        both = pick(draw, lengths)
        return both, both
    return pick(draw, sides), pick(draw, (-1, 0) if pick(draw, (False, True)) else sides)


def window_lengths(support: Support) -> tuple[int, ...]:
    """The lengths of a limited window to one side."""
    return (*((0,) if support.engine.one_token_windows else ()), 1, 2, 7, *_around(support), *_far(support))


def _around(support: Support) -> tuple[int, ...]:
    return tuple(tile + more for tile in support.tile_sizes for more in (-1, 0, 1))


def _far(support: Support) -> tuple[int, ...]:
    """Distances of several tiles, so that the keys inside a window or a chunk are split, too, and some tiles need no mask."""
    return support.max_seq_len // 4, support.max_seq_len * 3 // 8 + 1, support.max_seq_len * 5 // 8


_Number = Callable[[st.DrawFn, Support], Any]


def _one_of(*values: Any, sizes: Callable[[Support], tuple[float, ...]] | None = None) -> _Number:
    return lambda draw, support: pick(draw, values if sizes is None else (*values, *sizes(support)))


def _chunks(support: Support) -> tuple[int, ...]:
    """Half of them are far: short windows and chunks are launched in another way than long ones."""
    return *_around(support), *_far(support) * 4


MIN_CAP = 2.0**-120


def _edge_caps(support: Support) -> tuple[float, ...]:
    """Caps so small that scale / cap may exceed float32, for an engine that sends any scale."""
    return (MIN_CAP,) * 2 if support.engine.other_scales and 0 in support.engine.scale_signs else ()


NUMBERS: dict[str, _Number] = {
    "window": partial(window, kind="any"),
    "sink_tokens": _one_of(1, 2, 4, sizes=_around),
    "chunked_local": _one_of(16, 1, 2, 7, sizes=_chunks),
    "key_unit": _one_of(4, 2, 128, 3),
    "logits_soft_cap": _one_of(50.0, 5.0, 1.0, 0.25, 1e5, 0.01, 4e3, sizes=_edge_caps),
    "alibi_slopes": _one_of(True),
    "qq_bias": _one_of("tree", "random", "hiding"),
    "sinks": _one_of("zero", "near", "above", "below", "off", "some"),
}
"""For each rule of a layer or of a step, the strategy of the number that a case holds. A rule without one is not drawn."""

DRAWN_ELSEWHERE = {
    "bidirectional_ranges": "strategies.batches draws the ranges of each request",
    "ranges_clamped": "strategies.layers draws it where there are ranges",
    "head_size_v": "strategies.layers draws it with head_size",
    "q_scale": "strategies.layers draws it beside caches of float8",
    "selection_unit": "strategies.layers draws it as the cache's layout allows",
}
"""For each rule of a layer or of a step without a number here, the place where it is drawn."""


def rules(draw: st.DrawFn, support: Support, attn_type: AttentionType) -> set[str]:
    """Names of rules that the attention type has and the target supports, with those that it requires; see `_possible`.

    Half of the layers whose queries select keys have sinks, as DeepSeek-V4's, where they may.
    """
    required = {rule for rule in support.required_rules if attn_type in RULES[rule].attn_types}
    if attn_type.reads_cache and not support.unquantized:
        required |= {"quantized"}
    possible, alone = _compatible(draw, _possible(support, attn_type), required)
    chosen = _chosen(draw, possible) | alone | required
    if "selection_unit" in chosen and "sinks" in possible and pick(draw, (False, True)):
        chosen = chosen | {"sinks"}
    return chosen if support.engine.mixed_alibi or "alibi_slopes" not in chosen else chosen - BESIDE_ALIBI


def _compatible(draw: st.DrawFn, possible: list[str], required: set[str]) -> tuple[list[str], set[str]]:
    """Names that may stand beside each other; and a rule that excludes others, which a layer has that is required to, or one in
    ONE_IN."""
    exclusive = [rule for rule in possible if rule in RULES and RULES[rule].excludes]
    may_be = [rule for rule in exclusive if not required.intersection(RULES[rule].excludes)]
    alone = {rule for rule in may_be if rule in required or pick(draw, range(ONE_IN)) == ONE_IN - 1}
    others = {*exclusive}.union(*(RULES[rule].excludes for rule in alone))
    return [rule for rule in possible if rule not in others], alone


def _chosen(draw: st.DrawFn, possible: list[str]) -> set[str]:
    if not possible:
        return set()
    each = [rule for rule in possible for _ in range(WEIGHT.get(rule, 1))]
    kind = pick(draw, ("usual", "alone", "together", "together", "together"))
    if kind == "usual":
        usual = [rule for rule in USUAL if rule in possible] or possible[:1]
        return {rule for rule in usual if pick(draw, (False, True))}
    count = 1 if kind == "alone" else pick(draw, range(2, 7))
    return {pick(draw, each) for _ in range(count)}


def _possible(support: Support, attn_type: AttentionType) -> list[str]:
    """Names of what is chosen as rules are; a quantized cache and a quantized output count as such."""
    named = [*NUMBERS, "bidirectional_ranges", "selection_unit", "rope", "head_size_v"]
    if not support.causal:
        named = [rule for rule in named if rule not in RULES or "non_causal" not in RULES[rule].excludes]
    if attn_type is not AttentionType.DECODER and not support.engine.mixed_alibi:
        named.remove("alibi_slopes")
    if attn_type is AttentionType.ENCODER_DECODER and not any(layout.takes_two_widths for layout in support.layouts):
        named.remove("head_size_v")
    possible = [rule for rule in named if rule in support.rules and attn_type in RULES[rule].attn_types]
    quantized = ["quantized"] if support.cache_dtypes and attn_type.reads_cache else []
    return [*possible, *quantized, *(["output_dtype"] if support.output_dtypes else [])]
