"""Dimensions of a layer: its rules, its scale, its heads and its widths.

A rule that is not named here has one feature, and one setting unless its value is a tensor.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import torch
from attn_contract import RULES, AttentionType, Batch, Layer, Layout
from attn_contract.rules import held_rules
from attn_fuzz.cases.case import CONTENTS, BiasKind, Case, Request, SinkKind
from attn_fuzz.cases.dimensions.dimension import (
    OFF,
    Dimension,
    Setting,
    Value,
    aspect,
    feature,
    idle_stride,
    illegal,
    not_drawn,
    not_finite,
    of_request,
    region,
    setting,
    step_region,
    tensor_regions,
    unscoped,
)
from attn_fuzz.cases.tensors import Step

OF_ANY_SIZE = "it scales a logit, and keys of extreme values draw the range of logits"
_ON: dict[Any, Any] = {bool: True, int: 2, int | None: 2, float | None: 4.0, tuple[int, int]: (2, -1)}


def value_on(name: str) -> Any:
    """A value that turns a rule on whose value is no tensor."""
    return _ON[RULES[name].type]


def _always(case: Case) -> bool:
    return True


def _of_rule(name: str, *values: Value, fields: tuple[str, ...] = (), choice: str = "") -> Dimension:
    own = (name,) if name in Case.__struct_fields__ else ()
    return Dimension(
        name=name,
        group="rule",
        rule=name,
        fields=(*own, *fields),
        contract=(f"{RULES[name].holder}.{name}",),
        values=(*values, region(OFF, lambda case: name not in case.rules)),
        choice=choice,
    )


def values_of(name: str, values: Iterable[Any], every: Iterable[Any] | None = None) -> tuple[Setting, ...]:
    """A setting for each value of a field. Beside those of `every`, values are only in scopes of all settings."""
    few = [*values] if every is None else [*every]
    return tuple(setting(f"{name} {one}", scopes="every" if one in few else "all", **{name: one}) for one in values)


def _rule(name: str, settings: tuple[Setting, ...]) -> Value:
    return feature(name, _always, *settings)


def _plain(name: str) -> Dimension:
    return _of_rule(name, _rule(name, () if RULES[name].is_tensor else values_of(name, [value_on(name)])))


def _splits_a_window(case: Case, step: Step) -> bool:
    """Whether the interpreted kernels cut the keys inside a window that reaches beyond 65 keys into parts."""
    if not _reaches_far(case) or case.has_latent_cache:
        return False
    import attn_optimized
    from attn_optimized.device import INTERPRETER

    return attn_optimized.plan_of(step.q, step.layer, step.batch, architecture=INTERPRETER, compute_units=1).splits > 1


def _reaches_far(case: Case) -> bool:
    return case.window[0] > 65 and any(r.query_len and r.context_len > case.window[0] for r in case.requests)


_EVERY_WINDOW = [(left, right) for left in range(-1, 6) for right in range(-1, 4) if (left, right) != (-1, -1)]
WINDOW = _of_rule(
    "window",
    _rule("window", values_of("window", _EVERY_WINDOW, every=((0, -1), (2, -1), (4, -1), (-1, 0), (-1, 1), (1, 1)))),
    aspect("window to the left", lambda case: case.window[0] >= 0),
    aspect("window to the right", lambda case: case.window[1] >= 0),
    region("left only", lambda case: case.window[0] >= 0 > case.window[1]),
    region("right only", lambda case: case.window[1] >= 0 > case.window[0]),
    region("both edges equal", lambda case: case.window[0] == case.window[1] >= 0),
    region("both edges unlike", lambda case: min(case.window) >= 0 and case.window[0] != case.window[1]),
    region("an edge of 0", lambda case: 0 in case.window),
    region("a left edge beyond 65 inside the sequence", _reaches_far),
    step_region("a left edge beyond 65 with splits inside", _splits_a_window),
    not_drawn("above 2^20", "a window that reaches beyond the sequence is drawn, and hides nothing"),
)


def _hides_sink_tokens(case: Case) -> bool:
    return any(0 <= case.window[0] < request.context_len - case.sink_tokens for request in case.requests)


SINK_TOKENS = _of_rule(
    "sink_tokens",
    _rule("sink_tokens", values_of("sink_tokens", (1, 2, 3, 5), every=(1, 2))),
    region("outside a window", _hides_sink_tokens),
    region("beyond a tile", lambda case: case.sink_tokens > 64),
)
CHUNKED_LOCAL = _of_rule(
    "chunked_local",
    _rule("chunked_local", values_of("chunked_local", (1, 2, 3, 4, 5), every=(1, 2))),
    region("1", lambda case: case.chunked_local == 1),
    region("several chunks", lambda case: any(r.seq_len > 2 * (case.chunked_local or 0) for r in case.requests)),
    region("a query before the sequence", of_request(lambda r: r.context_len < 0)),
)
LOGITS_SOFT_CAP = _of_rule(
    "logits_soft_cap",
    _rule("logits_soft_cap", values_of("logits_soft_cap", (1e-3, 0.25, 50.0, 1e6), every=(0.25,))),
    region("far below logits", lambda case: case.values.kind == "extreme"),
    region("with small logits", lambda case: case.values.kind != "extreme"),
    region("below a quarter or above 50", lambda case: not 0.25 <= (case.logits_soft_cap or 1) <= 50 and case.has_work),
    not_drawn("below 0.01 or above 10^5", OF_ANY_SIZE),
    illegal("subnormal, negative, above 2^32, NaN, infinity", "Layer refuses it: kernels divide by it"),
)
ALIBI_SLOPES = _of_rule(
    "alibi_slopes",
    feature("alibi_slopes", lambda case: not case.signed_slopes, setting("alibi_slopes", alibi_slopes=True)),
    feature(
        "alibi_slopes, signed",
        lambda case: case.signed_slopes,
        setting("signed alibi_slopes", alibi_slopes=True, signed_slopes=True, num_kv_heads=3),
        unscoped(alibi_slopes=True, signed_slopes=True),
        signed_slopes=bool,
    ),
    aspect("alibi_slopes of any kind", _always),
    *tensor_regions(
        "alibi_slopes",
        {
            "positive": lambda slopes: (slopes > 0).any(),
            "0": lambda slopes: (slopes == 0).any(),
            "negative": lambda slopes: (slopes < 0).any(),
        },
    ),
    not_drawn("magnitudes above 1", OF_ANY_SIZE),
    not_finite("a slope"),
    fields=("signed_slopes",),
)


def _sinks() -> Iterator[Setting]:
    """The sinks of neighbouring heads are unlike: a little and far above all logits, on and off. A latent cache has 12 heads
    for two."""
    for heads in (2, 12):
        for kind in get_args(SinkKind):
            scopes = "every" if kind in ("near", "above", "below", "some") else "all"
            yield setting(f"sinks {kind} of {heads} heads", scopes=scopes, sinks=kind, group_size=heads)


SINKS = _of_rule(
    "sinks",
    _rule("sinks", (unscoped(sinks="off"), *_sinks())),
    region("above all logits", lambda case: case.sinks == "above"),
    region("below all logits", lambda case: case.sinks == "below"),
    region("near the logits", lambda case: case.sinks == "near"),
    *tensor_regions(
        "sinks",
        {
            "-inf in all heads": lambda sinks: (sinks == -torch.inf).all(),
            "-inf in some heads": lambda sinks: len((sinks == -torch.inf).unique()) == 2,
        },
    ),
    illegal("NaN, +infinity", "`validation.values` refuses it: it would take all weight"),
)
NARROW_SINKS = Dimension(
    name="narrow_sinks",
    group="rule",
    rule="sinks",
    fields=("narrow_sinks",),
    choice="form",
    values=(
        aspect(
            "sinks of the layer's dtype",
            lambda case: case.narrow_sinks and case.dtype != "float32",
            setting("narrow sinks", dtype="float16", sinks="near", narrow_sinks=True, group_size=2),
        ),
        region(
            "after a call with other numbers in the same tensor",
            lambda case: case.narrow_sinks and case.dtype != "float32" and CONTENTS in case.earlier,
        ),
    ),
)


def _overlap(ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(a < c <= b < d for a, b in ranges for c, d in ranges)


def _behind_chunks(case: Case) -> Iterator[tuple[int, int, int]]:
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
    """Of these ranges: the first key that the window leaves the query, where it lies between first key and end."""
    left = case.window[0] if case.ranges_clamped else -1
    return (query - left for first, end, query in _behind_chunks(case) if left >= 0 and first < query - left < end)


def _range(name: str, holds: Callable[[Request, int, int], object]) -> Value:
    """A region of cases that have a range with a property."""
    return region(name, of_request(lambda r: any(holds(r, first, last) for first, last in r.bidirectional_ranges)))


BIDIRECTIONAL_RANGES = _of_rule(
    "bidirectional_ranges",
    feature(
        "bidirectional_ranges",
        lambda case: not case.ranges_clamped,
        setting("ranges at edges", ranges="edges", scopes="few"),
        setting("all ranges", ranges="all", scopes="all"),
    ),
    aspect("bidirectional_ranges of any kind", _always),
    _range("over the context's end", lambda r, first, last: first < r.context_len <= last),
    _range("empty", lambda r, first, last: last < first),
    _range("before the sequence", lambda r, first, last: first < 0),
    _range("past its end", lambda r, first, last: last >= r.seq_len),
    region("overlapping", of_request(lambda r: _overlap(r.bidirectional_ranges))),
    region("over a chunk's end, with a query behind it", lambda case: any(_behind_chunks(case))),
    region("over a chunk's end, and clamped to some keys before it", lambda case: any(_clamped_before_chunks(case))),
    fields=("requests.bidirectional_ranges",),
)
RANGES_CLAMPED = Dimension(
    name="ranges_clamped",
    group="rule",
    rule="bidirectional_ranges",
    fields=("ranges_clamped",),
    contract=("Layer.ranges_clamped",),
    values=(
        feature(
            "bidirectional_ranges, clamped",
            lambda case: case.ranges_clamped,
            *(
                setting(f"ranges clamped by window {window}", ranges="edges", ranges_clamped=True, window=window)
                for window in ((0, -1), (1, -1))
            ),
            unscoped(ranges_clamped=True, ranges="edges"),
        ),
        region("with a left window", lambda case: case.ranges_clamped and case.window[0] >= 0),
    ),
)


def _qq_bias(words: str, kind: BiasKind) -> Value:
    return feature(f"qq_bias, {words}", lambda case: case.qq_bias == kind, setting(f"qq_bias {kind}", qq_bias=kind))


def _decodes(case: Case) -> bool:
    return all(request.query_len <= 1 for request in case.requests) and case.query_start_loc[-1] > 0


QQ_BIAS = _of_rule(
    "qq_bias",
    _qq_bias("a tree", "tree"),
    _qq_bias("random", "random"),
    _qq_bias("hiding", "hiding"),
    aspect("qq_bias of any kind", _always),
    region("no tree, in a step of one query", lambda case: case.qq_bias != "tree" and _decodes(case)),
    *tensor_regions("qq_bias", {"a query that does not see its own key": lambda bias: (bias.diagonal() == -torch.inf).any()}),
    idle_stride("qq_bias"),
    not_finite("a bias"),
)


def _has_two_widths(case: Case) -> bool:
    return case.cache is not None and case.head_size_v is not None and not case.has_latent_cache


def _has_odd_values(case: Case) -> bool:
    """Whether the rows of V have pairs of dims, each of a byte, and begin at odd addresses."""
    is_odd = _has_two_widths(case) and case.head_size % 2 == 1 and case.value_size % 2 == 0
    return is_odd and case.cache is not None and case.cache.dtype is not None


HEAD_SIZE_V = _of_rule(
    "head_size_v",
    _rule(
        "head_size_v",
        (
            unscoped(head_size_v=8),
            unscoped({"layout": Layout.LATENT}, head_size_v=8),
            unscoped({"layout": Layout.CONTENT_PACKED}, head_size_v=8),
            setting("packed rows whose v is narrower", {"layout": Layout.CONTENT_PACKED}, head_size=32, head_size_v=16),
            setting("latent rows with 3 scales of 128 dims each", head_size=386, head_size_v=384),
            setting("latent rows with 3 scales of 32 dims each", head_size=96, head_size_v=96),
        ),
    ),
    region("narrower than dense K", lambda case: case.cache is None and case.value_size < case.head_size),
    region("wider than dense K", lambda case: case.cache is None and case.value_size > case.head_size),
    region("the beginning of K", lambda case: case.has_latent_cache and case.value_size < case.head_size),
    region("all of K", lambda case: case.has_latent_cache and case.value_size == case.head_size),
    region("narrower than K in a row", lambda case: _has_two_widths(case) and case.value_size < case.head_size),
    region("wider than K in a row", lambda case: _has_two_widths(case) and case.value_size > case.head_size),
    region("128 behind 192 of K", lambda case: _has_two_widths(case) and (case.head_size, case.value_size) == (192, 128)),
    region("in a row of encoder keys", lambda case: _has_two_widths(case) and case.attn_type is AttentionType.ENCODER_DECODER),
    region("even behind an odd K in a row of bytes", _has_odd_values),
    not_drawn("512 of 576", "sizes are arguments of one formula; targets of kernels name their own (`Support.latent`)"),
    illegal("of other caches", "Layer refuses it: no layout but CONTENT_PACKED and latent ones has two widths"),
    choice="layout",
)
_OWN = {
    "window": (WINDOW,),
    "sink_tokens": (SINK_TOKENS,),
    "chunked_local": (CHUNKED_LOCAL,),
    "ranges_clamped": (),
    "logits_soft_cap": (LOGITS_SOFT_CAP,),
    "alibi_slopes": (ALIBI_SLOPES,),
    "sinks": (SINKS, NARROW_SINKS),
    "head_size_v": (HEAD_SIZE_V,),
    "bidirectional_ranges": (BIDIRECTIONAL_RANGES, RANGES_CLAMPED),
    "qq_bias": (QQ_BIAS,),
}
RULE_DIMENSIONS = tuple(
    dimension for name in (*held_rules(Layer), *held_rules(Batch)) for dimension in _OWN.get(name, (_plain(name),))
)
