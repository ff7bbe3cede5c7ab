"""Dimensions of the rules of a layer and of a step.

A rule that is not named here has one feature.
"""

import itertools
from collections.abc import Callable, Collection
from typing import Any

from attn_contract import RULES, Batch, Layer
from attn_contract.rules import held_rules
from attn_fuzz.cases.case import (
    Case,
    QueryScaleKind,
    SelectionKind,
)
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Value,
    always,
    aspect,
    dimension,
    equals,
    feature,
)

_ON: dict[Any, Any] = {bool: True, int: 2, int | None: 2, float | None: 4.0, tuple[int, int]: (2, -1)}


def value_on(name: str) -> Any:
    """A value that turns a rule on whose value is no tensor."""
    return _ON[RULES[name].type]


def _rule(name: str, fields: str = "") -> Callable[..., Dimension]:
    own = name if name in Case.__struct_fields__ else ""
    return dimension(name, "rule", f"{own} {fields}", rule=name)


def _plain(name: str) -> Dimension:
    return _rule(name)(feature(name, always))


# --- visibility ---
WINDOW = _rule("window")(
    feature("window", always),
    aspect("window to the left", lambda case: case.window[0] >= 0),
    aspect("window to the right", lambda case: case.window[1] >= 0),
)


RANGES = _rule("bidirectional_ranges", "requests.bidirectional_ranges")(
    feature("bidirectional_ranges", lambda case: not case.ranges_clamped),
    aspect("bidirectional_ranges of any kind", always),
)
CLAMPED = dimension("ranges_clamped", "rule", "ranges_clamped", rule="bidirectional_ranges")(
    feature("bidirectional_ranges, clamped", lambda case: case.ranges_clamped),
)


def _selected(kind: SelectionKind) -> Value:
    return feature(f"a selection, {kind}", lambda case: case.selected == kind, selections=lambda kinds: kind in kinds)


SELECTION = _rule("selection_unit", "selected selected_width")(
    _selected("some"),
    _selected("top"),
    _selected("holes"),
    _selected("all"),
    _selected("ahead"),
    aspect("a selection of any kind", always),
)
EMPTY_SELECTIONS = dimension("empty_selections", "rule", "empty_selections", rule="selection_unit")(
    aspect("rows that select nothing", lambda case: case.selection_unit is not None and case.empty_selections),
)
SELECTION_OF_HEADS = dimension("selected_per_head", "rule", "selected_per_head", rule="selection_unit")(
    aspect("a selection of each KV head", lambda case: case.selected_per_head and case.num_kv_heads > 1),
)

# --- logits and their sum ---


def _q_scale_per(kind: QueryScaleKind) -> Value:
    return feature(f"float8 queries, scale per {kind}", lambda case: case.q_scale == kind, cache_dtypes=_any_float8)


def _any_float8(dtypes: Collection[str]) -> bool:
    return any(dtype != "int8" for dtype in dtypes)


Q_SCALE = _rule("q_scale")(
    _q_scale_per("tensor"),
    _q_scale_per("head"),
    aspect("float8 queries of any kind", always),
)
SLOPES = _rule("alibi_slopes", "signed_slopes")(
    feature("alibi_slopes", lambda case: not case.signed_slopes),
    feature("alibi_slopes, signed", lambda case: case.signed_slopes, signed_slopes=bool),
    aspect("alibi_slopes of any kind", always),
)


QQ_BIAS = _rule("qq_bias")(
    equals("qq_bias, a tree", "qq_bias", "tree"),
    equals("qq_bias, random", "qq_bias", "random"),
    equals("qq_bias, hiding", "qq_bias", "hiding"),
    aspect("qq_bias of any kind", always),
)


SINKS = _rule("sinks")(feature("sinks", always))


def _has_narrow_sinks(case: Case) -> bool:
    return case.narrow_sinks and case.dtype != "float32"


NARROW_SINKS = dimension("narrow_sinks", "rule", "narrow_sinks", rule="sinks")(
    aspect("sinks of the layer's dtype", _has_narrow_sinks),
)

# --- values ---


WIDTHS = _rule("head_size_v")(feature("head_size_v", always))

_OWN = (
    WINDOW,
    RANGES,
    CLAMPED,
    SELECTION,
    EMPTY_SELECTIONS,
    SELECTION_OF_HEADS,
    Q_SCALE,
    SLOPES,
    SINKS,
    NARROW_SINKS,
    WIDTHS,
    QQ_BIAS,
)


def _of_rule(name: str) -> list[Dimension]:
    own = [one for one in _OWN if one.rule == name]
    return own if own or name in (one.name for one in _OWN) else [_plain(name)]


RULE_DIMENSIONS = tuple(itertools.chain.from_iterable(map(_of_rule, (*held_rules(Layer), *held_rules(Batch)))))
