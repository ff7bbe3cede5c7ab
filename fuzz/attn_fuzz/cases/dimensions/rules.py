"""Dimensions of the rules of a layer and of a step.

A rule that is not named here has one feature. Unless its value is a tensor, it has one setting, too.
"""

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, get_args

import torch
from attn_contract import RULES, AttentionType, Batch, Layer, Layout
from attn_contract.rules import held_rules
from attn_fuzz.cases.case import (
    CONTENTS,
    Cache,
    Case,
    Float8,
    QueryScaleKind,
    Request,
    ScaleKind,
    SelectionKind,
    SinkKind,
)
from attn_fuzz.cases.dimensions.cache import ONE_SCALE, of_scale
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Setting,
    Value,
    always,
    aspect,
    dimension,
    equals,
    feature,
    idle_stride,
    illegal,
    in_step,
    not_drawn,
    of_request,
    of_tensor,
    region,
    setting,
    unscoped,
)
from attn_fuzz.cases.tensors import Step

OF_ANY_SIZE = "it scales a logit, and keys of extreme values draw the range of logits"
_ENTERS_LOGITS = "`validation.values` refuses it: a number that enters every logit"
_ON: dict[Any, Any] = {bool: True, int: 2, int | None: 2, float | None: 4.0, tuple[int, int]: (2, -1)}


def value_on(name: str) -> Any:
    """A value that turns a rule on whose value is no tensor."""
    return _ON[RULES[name].type]


def _rule(name: str, fields: str = "", **more: Any) -> Callable[..., Dimension]:
    own = name if name in Case.__struct_fields__ else ""
    return dimension(name, "rule", f"{own} {fields}", f"{RULES[name].holder}.{name}", rule=name, **more)


def values_of(name: str, values: Iterable[Any], only_all: Iterable[Any] = ()) -> tuple[Setting, ...]:
    """A setting for each value of a field; those of `only_all` are in scopes of all settings."""
    every = [setting(**{name: value}) for value in values]
    return (*every, *(setting(scopes="all", **{name: value}) for value in only_all))


def _plain(name: str) -> Dimension:
    own = () if RULES[name].is_tensor else values_of(name, [value_on(name)])
    return _rule(name)(feature(name, always, *own))


# --- visibility ---


def _reaches_far(case: Case) -> bool:
    return case.window[0] > 65 and any(r.query_len and r.context_len > case.window[0] for r in case.requests)


def _splits_a_window(case: Case, step: Step) -> bool:
    """True if the interpreted kernels cut the keys inside a window that reaches beyond 65 keys into parts."""
    if not _reaches_far(case) or case.has_latent_cache:
        return False
    import attn_optimized
    from attn_optimized.device import INTERPRETER

    return attn_optimized.plan_of(step.q, step.layer, step.batch, architecture=INTERPRETER, compute_units=1).splits > 1


_WINDOWS = ((0, -1), (2, -1), (4, -1), (-1, 0), (-1, 1), (1, 1))
_ALL_WINDOWS = {(left, right) for left in range(-1, 6) for right in range(-1, 4)} - {(-1, -1)}
WINDOW = _rule("window")(
    feature("window", always, *values_of("window", _WINDOWS, sorted(_ALL_WINDOWS - {*_WINDOWS}))),
    aspect("window to the left", lambda case: case.window[0] >= 0),
    aspect("window to the right", lambda case: case.window[1] >= 0),
    region("left only", lambda case: case.window[1] < 0),
    region("right only", lambda case: case.window[0] < 0),
    region("both edges equal", lambda case: case.window[0] == case.window[1]),
    region("both edges unlike", lambda case: min(case.window) >= 0 and case.window[0] != case.window[1]),
    region("an edge of 0", lambda case: 0 in case.window),
    region("a left edge beyond 65 inside the sequence", _reaches_far),
    in_step("a left edge beyond 65 with splits inside", _splits_a_window),
    not_drawn("above 2^20", "a window that reaches beyond the sequence is drawn, and hides nothing"),
)


def _hides_sink_tokens(case: Case) -> bool:
    return any(0 <= case.window[0] < request.context_len - case.sink_tokens for request in case.requests)


SINK_TOKENS = _rule("sink_tokens")(
    feature("sink_tokens", always, *values_of("sink_tokens", (1, 2), (3, 5))),
    region("outside a window", _hides_sink_tokens),
    region("beyond a tile", lambda case: case.sink_tokens > 64),
)
CHUNKED_LOCAL = _rule("chunked_local")(
    feature("chunked_local", always, *values_of("chunked_local", (1, 2), (3, 4, 5))),
    region("1", lambda case: case.chunked_local == 1),
    region("several chunks", lambda case: any(r.seq_len > 2 * (case.chunked_local or 0) for r in case.requests)),
    region("a query before the sequence", of_request(lambda r: r.context_len < 0)),
)


def _overlap(ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(a < c <= b < d for a, b in ranges for c, d in ranges)


def _past_chunks(case: Case) -> Iterator[tuple[int, int, int]]:
    """Ranges that hold keys of a chunk before that of one of their queries: first key, end of that chunk, such a query."""
    chunk = case.chunked_local
    if chunk is None:
        return
    for request in case.requests:
        for first, last in request.bidirectional_ranges:
            first, last = max(0, first), min(last, request.seq_len - 1)
            for query in range(max(first, request.context_len), last + 1):
                end = query // chunk * chunk
                if first < end:
                    yield first, end, query


def _clamped_before_chunks(case: Case) -> Iterator[int]:
    """For such ranges, the first key that the window leaves the query, where it lies between first key and end."""
    left = case.window[0] if case.ranges_clamped else -1
    return (query - left for first, end, query in _past_chunks(case) if left >= 0 and first < query - left < end)


def _range(name: str, holds: Callable[[Request, int, int], object]) -> Value:
    """A region of cases that have a range with a property."""
    return region(name, of_request(lambda r: any(holds(r, first, last) for first, last in r.bidirectional_ranges)))


_RANGES = (setting(ranges="edges", scopes="few"), setting(ranges="all", scopes="all"))
_CLAMPED = (
    setting(ranges="edges", ranges_clamped=True, window=(0, -1)),
    setting(ranges="edges", ranges_clamped=True, window=(1, -1)),
    setting(ranges="edges", scopes="none", ranges_clamped=True),
)
RANGES = _rule("bidirectional_ranges", "requests.bidirectional_ranges")(
    feature("bidirectional_ranges", lambda case: not case.ranges_clamped, *_RANGES),
    aspect("bidirectional_ranges of any kind", always),
    _range("over the context's end", lambda r, first, last: first < r.context_len <= last),
    _range("empty", lambda r, first, last: last < first),
    _range("before the sequence", lambda r, first, last: first < 0),
    _range("past its end", lambda r, first, last: last >= r.seq_len),
    region("overlapping", of_request(lambda r: _overlap(r.bidirectional_ranges))),
    region("over a chunk's end, with a query after it", lambda case: any(_past_chunks(case))),
    region("over a chunk's end, and clamped to some keys before it", lambda case: any(_clamped_before_chunks(case))),
)
CLAMPED = dimension("ranges_clamped", "rule", "ranges_clamped", "Layer.ranges_clamped", rule="bidirectional_ranges")(
    feature("bidirectional_ranges, clamped", lambda case: case.ranges_clamped, *_CLAMPED),
    region("with a left window", lambda case: case.ranges_clamped and case.window[0] >= 0),
)


def _selected(kind: SelectionKind, *settings: Setting) -> Value:
    settings = (*settings, unscoped(selection_unit=16, selected=kind))  # which each layout allows
    return feature(
        f"a selection, {kind}", lambda case: case.selected == kind, *settings, selections=lambda kinds: kind in kinds
    )


def _unit(name: str, holds: Callable[[int, Cache], object]) -> Value:
    return region(name, lambda case: case.cache is not None and holds(case.selection_unit or 1, case.cache))


def _tokens(name: str, holds: Callable[[Request, int], object]) -> Value:
    return region(name, lambda case: any(holds(request, case.key_unit or 1) for request in case.requests))


def _entries(step: Step) -> torch.Tensor:
    assert step.batch.selected is not None
    return step.batch.selected


_PACKED_APART = "a packed launch draws other selections than its calls alone"
SELECTION = dimension(
    "selection_unit",
    "rule",
    "selection_unit selected selected_width",
    "Layer.selection_unit Batch.selected",
    rule="selection_unit",
    left_out=_PACKED_APART,
)(
    _selected("some", unscoped(selection_unit=1)),
    _selected("top", unscoped(selection_unit=1, selected="top")),
    _selected("holes", unscoped(selection_unit=1, selected="holes")),
    _selected("all", unscoped(selection_unit=2, selected="all")),
    _selected("ahead", unscoped(selection_unit=1, selected="ahead")),
    aspect("a selection of any kind", always),
    _unit("of single tokens", lambda unit, cache: unit == 1),
    _unit("of parts of a block", lambda unit, cache: 1 < unit < cache.block_size),
    _unit("of whole blocks", lambda unit, cache: unit == cache.block_size),
    _unit("over the end of a block", lambda unit, cache: unit % cache.block_size and cache.block_size % unit),
    in_step("a row that selects nothing", lambda case, step: (_entries(step) < 0).all(-1).any()),
    in_step("no entry in any row", lambda case, step: _entries(step).shape[2] == 0),
    illegal("a unit past the request, a unit twice", "`validation.values` refuses it"),
)
KEY_UNIT = _rule("key_unit")(
    feature("key_unit", always, *values_of("key_unit", (2, 4), (3,))),
    _tokens("fewer tokens than share a key", lambda r, unit: r.query_len and 0 < r.seq_len < unit),
    _tokens("tokens after the last key", lambda r, unit: r.query_len and r.seq_len > unit and r.seq_len % unit),
    _tokens("a last key that the last token completes", lambda r, unit: r.query_len and r.seq_len and r.seq_len % unit == 0),
    _tokens("queries before and after the end of a key", lambda r, g: max(0, r.context_len + 1) // g < r.seq_len // g),
    region("a selection of such keys", lambda case: case.selection_unit is not None),
)
EMPTY_SELECTIONS = dimension(
    "empty_selections", "rule", "empty_selections", rule="selection_unit", choice="form", left_out=_PACKED_APART
)(
    aspect(
        "rows that select nothing",
        lambda case: case.selection_unit is not None and case.empty_selections,
        unscoped(selection_unit=1, empty_selections=True),
    ),
)
SELECTION_OF_HEADS = dimension(
    "selected_per_head", "rule", "selected_per_head", rule="selection_unit", choice="form", left_out=_PACKED_APART
)(
    aspect(
        "a selection of each KV head",
        lambda case: case.selected_per_head and case.num_kv_heads > 1,
        unscoped(selection_unit=1, selected_per_head=True, num_kv_heads=2),
    ),
)

# --- logits and their sum ---


SOFT_CAP = _rule("logits_soft_cap")(
    feature("logits_soft_cap", always, *values_of("logits_soft_cap", (0.25,), (1e-3, 50.0, 1e6))),
    region("far below logits", lambda case: case.values.kind == "extreme"),
    region("with small logits", lambda case: case.values.kind != "extreme"),
    region("below a quarter or above 50", lambda case: not 0.25 <= (case.logits_soft_cap or 1) <= 50 and case.has_work),
    not_drawn("below 0.01 or above 10^5", OF_ANY_SIZE),
    illegal("subnormal, negative, above 2^32, NaN, infinity", "Layer refuses it: kernels divide by it"),
)
_FLOAT8 = {"dtype": "fp8_e4m3fn", "scales": "tensor"}
_FLOAT8_FNUZ = {"dtype": "fp8_e4m3fnuz", "scales": "head"}


def _q_scale_per(kind: QueryScaleKind, *settings: Setting) -> Value:
    caches = itertools.product(get_args(Float8), (*get_args(ScaleKind), None))
    apart = [unscoped({"dtype": dtype, "scales": scales}, q_scale=kind) for dtype, scales in caches]
    name = f"float8 queries, scale per {kind}"
    return feature(name, lambda case: case.q_scale == kind, *settings, *apart, cache_dtypes=_any_float8)


def _any_float8(dtypes: Collection[str]) -> bool:
    return any(dtype != "int8" for dtype in dtypes)


def _of_codes(name: str, holds: Callable[[torch.Tensor], object]) -> Value:
    """A region of steps whose float8 queries [rows, H, D], as float32 numbers, have a property."""
    return in_step(name, lambda case, step: holds(step.q[: case.query_start_loc[-1]].float()))


Q_SCALE = _rule("q_scale")(
    _q_scale_per("tensor", setting(_FLOAT8, q_scale="tensor")),
    _q_scale_per("head", setting(_FLOAT8_FNUZ, num_kv_heads=2, q_scale="head")),
    aspect("float8 queries of any kind", always),
    *of_scale("q_scale"),
    _of_codes("the largest number", lambda q: q.numel() and q.abs().amax() in (240, 448)),
    _of_codes("subnormal numbers", lambda q: ((q != 0) & (q.abs() < 2.0**-7)).any()),
    region("with an output of another float8", lambda case: case.cache and case.output_dtype not in (None, case.cache.dtype)),
    *ONE_SCALE,
)
_SIGNED = (setting(alibi_slopes=True, signed_slopes=True, num_kv_heads=3), unscoped(alibi_slopes=True, signed_slopes=True))
SLOPES = _rule("alibi_slopes", "signed_slopes")(
    feature("alibi_slopes", lambda case: not case.signed_slopes, setting(alibi_slopes=True)),
    feature("alibi_slopes, signed", lambda case: case.signed_slopes, *_SIGNED, signed_slopes=bool),
    aspect("alibi_slopes of any kind", always),
    of_tensor("alibi_slopes", "positive", lambda slopes: (slopes > 0).any()),
    of_tensor("alibi_slopes", "0", lambda slopes: (slopes == 0).any()),
    of_tensor("alibi_slopes", "negative", lambda slopes: (slopes < 0).any()),
    not_drawn("magnitudes above 1", OF_ANY_SIZE),
    illegal("NaN, infinity", _ENTERS_LOGITS),
)


def _decodes(case: Case) -> bool:
    return all(request.query_len <= 1 for request in case.requests) and case.query_start_loc[-1] > 0


QQ_BIAS = _rule("qq_bias")(
    equals("qq_bias, a tree", "qq_bias", "tree"),
    equals("qq_bias, random", "qq_bias", "random"),
    equals("qq_bias, hiding", "qq_bias", "hiding"),
    aspect("qq_bias of any kind", always),
    region("no tree, in a step of one query", lambda case: case.qq_bias != "tree" and _decodes(case)),
    of_tensor("qq_bias", "a query that does not see its own key", lambda bias: (bias.diagonal() == -torch.inf).any()),
    idle_stride("qq_bias"),
    illegal("NaN, infinity", _ENTERS_LOGITS),
)


def _sinks() -> Iterator[Setting]:
    """The sinks of neighbouring heads are unlike: a little and far above all logits, on and off. A latent cache has 12 heads
    for two."""
    for heads in (2, 12):
        for kind in get_args(SinkKind):
            scopes = "every" if kind in ("near", "above", "below", "some") else "all"
            yield setting(scopes=scopes, sinks=kind, group_size=heads)


SINKS = _rule("sinks")(
    feature("sinks", always, *_sinks()),
    region("above all logits", lambda case: case.sinks == "above"),
    region("below all logits", lambda case: case.sinks == "below"),
    region("near the logits", lambda case: case.sinks == "near"),
    of_tensor("sinks", "-inf in all heads", lambda sinks: (sinks == -torch.inf).all()),
    of_tensor("sinks", "-inf in some heads", lambda sinks: len((sinks == -torch.inf).unique()) == 2),
    illegal("NaN, +infinity", "`validation.values` refuses it: it would take all weight"),
)


def _has_narrow_sinks(case: Case) -> bool:
    return case.narrow_sinks and case.dtype != "float32"


_NARROW = setting(dtype="float16", sinks="near", narrow_sinks=True, group_size=2)
NARROW_SINKS = dimension("narrow_sinks", "rule", "narrow_sinks", rule="sinks", choice="form")(
    aspect("sinks of the layer's dtype", _has_narrow_sinks, _NARROW),
    region("after another call with its tensors", lambda case: _has_narrow_sinks(case) and CONTENTS in case.earlier),
)

# --- values ---


def _place(case: Case) -> str:
    if case.cache is None:
        return "without a cache"
    return "in a latent row" if case.has_latent_cache else "in a row of two widths"


def _width(words: str, place: str, compare: Callable[[int, int], bool]) -> Value:
    return region(f"{words} {place}", lambda case: _place(case) == place and compare(case.v_head_size, case.head_size))


def _in_row(name: str, holds: Callable[[Case], object]) -> Value:
    return region(name, lambda case: _place(case) == "in a row of two widths" and holds(case))


def _is_odd(case: Case) -> bool:
    """True if the rows of V have pairs of dims, each of a byte, and begin at odd addresses."""
    return case.is_quantized and case.head_size % 2 == 1 and case.v_head_size % 2 == 0


_PACKED, _LATENT = {"layout": Layout.CONTENT_PACKED}, {"layout": Layout.LATENT}
_TWO_WIDTHS = (
    unscoped(head_size_v=8),
    unscoped(_LATENT, head_size_v=8),
    unscoped(_PACKED, head_size_v=8),
    setting(_PACKED, head_size=32, head_size_v=16),
    setting(head_size=386, head_size_v=384),  # latent rows with 3 scales of 128 dims each
    setting(head_size=96, head_size_v=96),  # and of 32 dims each
)
WIDTHS = _rule("head_size_v", choice="layout")(
    feature("head_size_v", always, *_TWO_WIDTHS),
    _width("narrower than K", "without a cache", operator.lt),
    _width("wider than K", "without a cache", operator.gt),
    _width("narrower than K", "in a latent row", operator.lt),
    _width("all of K", "in a latent row", operator.eq),
    _width("narrower than K", "in a row of two widths", operator.lt),
    _width("wider than K", "in a row of two widths", operator.gt),
    _in_row("128 after 192 of K", lambda case: (case.head_size, case.v_head_size) == (192, 128)),
    _in_row("in a row of encoder keys", lambda case: case.attn_type is AttentionType.ENCODER_DECODER),
    _in_row("even after an odd K in a row of bytes", _is_odd),
    not_drawn("512 of 576", "sizes are arguments of one formula; targets of kernels name their own (`Support.latent`)"),
    illegal("of other caches", "Layer refuses it: no layout but CONTENT_PACKED and latent ones has two widths"),
)

_OWN = (
    WINDOW,
    SINK_TOKENS,
    CHUNKED_LOCAL,
    RANGES,
    CLAMPED,
    SELECTION,
    EMPTY_SELECTIONS,
    SELECTION_OF_HEADS,
    KEY_UNIT,
    SOFT_CAP,
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
