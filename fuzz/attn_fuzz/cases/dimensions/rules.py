"""Dimensions of the rules of a layer and of a step.

A rule that is not named here has one feature and one setting: True, if its value is a tensor.
"""

import itertools
from collections.abc import Callable, Collection
from typing import Any, get_args

from attn_contract import RULES, Batch, Layer, Layout
from attn_contract.rules import held_rules
from attn_fuzz.cases.case import (
    Case,
    Float8,
    QueryScaleKind,
    ScaleKind,
    SelectionKind,
    SinkKind,
)
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Setting,
    Value,
    always,
    aspect,
    dimension,
    equals,
    feature,
    setting,
)

_ON: dict[Any, Any] = {bool: True, int: 2, int | None: 2, float | None: 4.0, tuple[int, int]: (2, -1)}


def value_on(name: str) -> Any:
    """A value that turns a rule on whose value is no tensor."""
    return _ON[RULES[name].type]


def _rule(name: str, fields: str = "") -> Callable[..., Dimension]:
    own = name if name in Case.__struct_fields__ else ""
    return dimension(name, "rule", f"{own} {fields}", rule=name)


def _plain(name: str) -> Dimension:
    on: Any = True if RULES[name].is_tensor else value_on(name)
    return _rule(name)(feature(name, always, setting(**{name: on})))


# --- visibility ---
WINDOW = _rule("window")(
    feature("window", always, *(setting(window=window) for window in ((0, -1), (-1, 0), (1, 1)))),
    aspect("window to the left", lambda case: case.window[0] >= 0),
    aspect("window to the right", lambda case: case.window[1] >= 0),
)


_CLAMPED = (setting(ranges=True, ranges_clamped=True, window=(0, -1)), setting(ranges=True, ranges_clamped=True))
RANGES = _rule("bidirectional_ranges", "requests.bidirectional_ranges")(
    feature("bidirectional_ranges", lambda case: not case.ranges_clamped, setting(ranges=True)),
    aspect("bidirectional_ranges of any kind", always),
)
CLAMPED = dimension("ranges_clamped", "rule", "ranges_clamped", rule="bidirectional_ranges")(
    feature("bidirectional_ranges, clamped", lambda case: case.ranges_clamped, *_CLAMPED),
)


def _selected(kind: SelectionKind, *settings: Setting) -> Value:
    settings = (*settings, setting(selection_unit=16, selected=kind))  # which each layout allows
    return feature(
        f"a selection, {kind}", lambda case: case.selected == kind, *settings, selections=lambda kinds: kind in kinds
    )


SELECTION = _rule("selection_unit", "selected selected_width")(
    _selected("some", setting(selection_unit=1)),
    _selected("top", setting(selection_unit=1, selected="top")),
    _selected("holes", setting(selection_unit=1, selected="holes")),
    _selected("all", setting(selection_unit=2, selected="all")),
    _selected("ahead", setting(selection_unit=1, selected="ahead")),
    aspect("a selection of any kind", always),
)
EMPTY_SELECTIONS = dimension("empty_selections", "rule", "empty_selections", rule="selection_unit")(
    aspect("rows that select nothing", lambda case: case.selection_unit is not None and case.empty_selections),
)
SELECTION_OF_HEADS = dimension("selected_per_head", "rule", "selected_per_head", rule="selection_unit")(
    aspect("a selection of each KV head", lambda case: case.selected_per_head and case.num_kv_heads > 1),
)

# --- logits and their sum ---


_FLOAT8 = {"dtype": "fp8_e4m3fn", "scales": "tensor"}
_FLOAT8_FNUZ = {"dtype": "fp8_e4m3fnuz", "scales": "head"}


def _q_scale_per(kind: QueryScaleKind, *settings: Setting) -> Value:
    caches = itertools.product(get_args(Float8), (*get_args(ScaleKind), None))
    apart = [setting({"dtype": dtype, "scales": scales}, q_scale=kind) for dtype, scales in caches]
    name = f"float8 queries, scale per {kind}"
    return feature(name, lambda case: case.q_scale == kind, *settings, *apart, cache_dtypes=_any_float8)


def _any_float8(dtypes: Collection[str]) -> bool:
    return any(dtype != "int8" for dtype in dtypes)


Q_SCALE = _rule("q_scale")(
    _q_scale_per("tensor", setting(_FLOAT8, q_scale="tensor")),
    _q_scale_per("head", setting(_FLOAT8_FNUZ, num_kv_heads=2, q_scale="head")),
    aspect("float8 queries of any kind", always),
)
_SIGNED = (setting(alibi_slopes=True, signed_slopes=True, num_kv_heads=3), setting(alibi_slopes=True, signed_slopes=True))
SLOPES = _rule("alibi_slopes", "signed_slopes")(
    feature("alibi_slopes", lambda case: not case.signed_slopes, setting(alibi_slopes=True)),
    feature("alibi_slopes, signed", lambda case: case.signed_slopes, *_SIGNED, signed_slopes=bool),
    aspect("alibi_slopes of any kind", always),
)


QQ_BIAS = _rule("qq_bias")(
    equals("qq_bias, a tree", "qq_bias", "tree"),
    equals("qq_bias, random", "qq_bias", "random"),
    equals("qq_bias, hiding", "qq_bias", "hiding"),
    aspect("qq_bias of any kind", always),
)


SINKS = _rule("sinks")(feature("sinks", always, *(setting(sinks=kind) for kind in get_args(SinkKind))))


def _has_narrow_sinks(case: Case) -> bool:
    return case.narrow_sinks and case.dtype != "float32"


NARROW_SINKS = dimension("narrow_sinks", "rule", "narrow_sinks", rule="sinks")(
    aspect("sinks of the layer's dtype", _has_narrow_sinks),
)

# --- values ---


_PACKED, _LATENT = {"layout": Layout.CONTENT_PACKED}, {"layout": Layout.LATENT}
_TWO_WIDTHS = (
    setting(head_size_v=8),
    setting(_LATENT, head_size_v=8),
    setting(_PACKED, head_size_v=8),
    setting(_PACKED, head_size=32, head_size_v=16),
    setting(head_size=386, head_size_v=384),  # latent rows with 3 scales of 128 dims each
    setting(head_size=96, head_size_v=96),  # and of 32 dims each
)
WIDTHS = _rule("head_size_v")(feature("head_size_v", always, *_TWO_WIDTHS))

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
