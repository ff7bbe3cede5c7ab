"""Features of cases, which the coverage table counts, and why some pairs of features cannot meet in one case."""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import NamedTuple

from attn_contract import AttentionType, Batch, Layer, Layout, PhysicalOrder
from attn_contract.layouts import LATENT_FORMATS
from attn_contract.rules import held_rules
from attn_fuzz.cases.case import Cache, Case, Request, Rope

MULTI_TOKEN_DECODE = 8
"""The most query tokens of a request that is decoding, drafts included. A request with more is in its prompt."""


class Feature(NamedTuple):
    """Something that a case may have.

    Attributes:
        name, group: its name, and the group that it is listed in.
        has: whether a case has it. For a kind of a rule: whether a case that has the rule has it in this way.
        choice: features with the same choice exclude each other.
        rule: the rule of which it is a kind, if it is one.
    """

    name: str
    group: str
    has: Callable[[Case], bool]
    choice: str | None = None
    rule: str | None = None


def _of_cache(has: Callable[[Cache], object]) -> Callable[[Case], bool]:
    return lambda case: case.cache is not None and bool(has(case.cache))


def _of_request(has: Callable[[Request], bool]) -> Callable[[Case], bool]:
    return lambda case: any(has(request) for request in case.requests)


def _of_rope(has: Callable[[Rope, Case], bool]) -> Callable[[Case], bool]:
    return lambda case: case.rope is not None and has(case.rope, case)


def _causal(*flags: bool) -> Callable[[Case], bool]:
    def has(case: Case) -> bool:
        return case.attn_type is AttentionType.DECODER and {request.causal for request in case.requests} == set(flags)

    return has


def _is(attn_type: AttentionType) -> Callable[[Case], bool]:
    return lambda case: case.attn_type is attn_type


def _layout(layout: Layout) -> Callable[[Case], bool]:
    return _of_cache(lambda cache: cache.layout is layout)


def _order(order: PhysicalOrder) -> Callable[[Case], bool]:
    return _of_cache(lambda cache: cache.holds_content_rows and cache.order is order)


def _is_written_in_another_layout(case: Case) -> bool:
    return case.cache is not None and case.writes and case.cache.writer not in (None, case.cache.layout)


def _skips_slots(case: Case) -> bool:
    """Whether slot_mapping has a -1, which is cheaper to say than to look up: `case.written_slots` goes through all rows."""
    if case.cache is None or not case.writes or case.attn_type is not AttentionType.DECODER:
        return False
    return bool(case.unwritten or case.unowned_rows) or any(request.context_len < 0 for request in case.requests)


# of rules that cases have in more than one way, by the rule's name
_KINDS_OF_RULES = {
    "ranges_clamped": (),
    "bidirectional_ranges": (
        Feature("bidirectional_ranges", "rule", lambda case: not case.ranges_clamped, choice="ranges"),
        Feature("bidirectional_ranges, clamped", "rule", lambda case: case.ranges_clamped, choice="ranges"),
    ),
    "alibi_slopes": (
        Feature("alibi_slopes", "rule", lambda case: not case.signed_slopes, choice="slopes"),
        Feature("alibi_slopes, signed", "rule", lambda case: case.signed_slopes, choice="slopes"),
    ),
    "qq_bias": (
        Feature("qq_bias, a tree", "rule", lambda case: case.qq_bias == "tree", choice="qq_bias"),
        Feature("qq_bias, random", "rule", lambda case: case.qq_bias == "random", choice="qq_bias"),
        Feature("qq_bias, hiding", "rule", lambda case: case.qq_bias == "hiding", choice="qq_bias"),
    ),
}


def _rule_features(name: str) -> list[Feature]:
    """The features of a rule: one, or one for each way in which cases have the rule."""
    kinds = _KINDS_OF_RULES.get(name, (Feature(name, "rule", lambda case: True),))
    return [kind._replace(rule=name) for kind in kinds]


FEATURES = (
    Feature("decoder, causal", "attention", _causal(True), choice="attention"),
    Feature("decoder, non-causal", "attention", _causal(False), choice="attention"),
    Feature("decoder, causal per request", "attention", _causal(True, False), choice="attention"),
    Feature("encoder", "attention", _is(AttentionType.ENCODER), choice="attention"),
    Feature("encoder-only", "attention", _is(AttentionType.ENCODER_ONLY), choice="attention"),
    Feature("cross-attention", "attention", _is(AttentionType.ENCODER_DECODER), choice="attention"),
    Feature("prefill", "phase", _of_request(lambda r: r.query_len > 1 and r.context_len == 0)),
    Feature("extend", "phase", _of_request(lambda r: r.query_len > MULTI_TOKEN_DECODE and r.context_len > 0)),
    Feature("decode", "phase", _of_request(lambda r: r.query_len == 1 and r.context_len > 0)),
    Feature("multi-token decode", "phase", _of_request(lambda r: 1 < r.query_len <= MULTI_TOKEN_DECODE and r.context_len > 0)),
    Feature("more queries than keys", "phase", _of_request(lambda r: r.context_len < 0)),
    Feature("request without a query", "phase", _of_request(lambda r: r.query_len == 0)),
    *(feature for name in (*held_rules(Layer), *held_rules(Batch)) for feature in _rule_features(name)),
    Feature("float32", "dtype", lambda case: case.dtype == "float32", choice="dtype"),
    Feature("float16", "dtype", lambda case: case.dtype == "float16", choice="dtype"),
    Feature("bfloat16", "dtype", lambda case: case.dtype == "bfloat16", choice="dtype"),
    *(Feature(str(layout), "layout", _layout(layout), choice="layout") for layout in Layout),
    *(Feature(f"order {order}", "allocation", _order(order), choice="order") for order in PhysicalOrder),
    Feature("interleaved layers", "allocation", _of_cache(lambda cache: cache.num_layers > 1)),
    Feature("K and V planes", "allocation", _of_cache(lambda cache: cache.planes)),
    Feature("padded blocks", "allocation", _of_cache(lambda cache: cache.padding)),
    Feature("padded rows", "allocation", _of_cache(lambda cache: cache.slot_padding)),
    Feature("block size no power of two", "allocation", _of_cache(lambda cache: cache.block_size.bit_count() > 1)),
    Feature("writer in another layout", "allocation", _is_written_in_another_layout),
    Feature("neighbour in another layout", "allocation", _of_cache(lambda cache: cache.neighbour not in (None, cache.layout))),
    Feature("cache of the layer's dtype", "cache dtype", _of_cache(lambda cache: cache.dtype is None), choice="cache dtype"),
    Feature("cache fp8_e4m3fn", "cache dtype", _of_cache(lambda cache: cache.dtype == "fp8_e4m3fn"), choice="cache dtype"),
    Feature("cache fp8_e4m3fnuz", "cache dtype", _of_cache(lambda cache: cache.dtype == "fp8_e4m3fnuz"), choice="cache dtype"),
    Feature("cache int8", "cache dtype", _of_cache(lambda cache: cache.dtype == "int8"), choice="cache dtype"),
    Feature("scale per tensor", "scales", _of_cache(lambda cache: cache.scales == "tensor"), choice="scales"),
    Feature("scale per head", "scales", _of_cache(lambda cache: cache.scales == "head"), choice="scales"),
    Feature("scale per token, separate", "scales", _of_cache(lambda cache: cache.scales == "token"), choice="scales"),
    Feature("slot -1", "write", _skips_slots),
    Feature("nothing written", "write", lambda case: case.cache is not None and not case.writes),
    Feature("saturated", "write", lambda case: case.saturated),
    Feature("rope, NeoX", "write", _of_rope(lambda rope, case: rope.neox), choice="rope"),
    Feature("rope, interleaved", "write", _of_rope(lambda rope, case: not rope.neox), choice="rope"),
    Feature("rope, partial", "write", _of_rope(lambda rope, case: rope.rotary_dim < case.head_size)),
    Feature("fused qkv", "call", lambda case: case.fused_qkv and case.writes),
    Feature("scale 0", "call", lambda case: case.scale == 0, choice="scale"),
    Feature("scale below 0", "call", lambda case: case.scale < 0, choice="scale"),
    Feature("unlike strides", "call", lambda case: case.unlike_strides),
    Feature("dense output", "call", lambda case: case.dense_out),
    Feature("LSE", "call", lambda case: case.lse),
    Feature("earlier call", "call", lambda case: bool(case.earlier)),
    Feature("output fp8_e4m3fn", "call", lambda case: case.output_dtype == "fp8_e4m3fn", choice="output"),
    Feature("output fp8_e4m3fnuz", "call", lambda case: case.output_dtype == "fp8_e4m3fnuz", choice="output"),
)


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


def places(case: Case) -> list[int]:
    """The places in FEATURES of the features that a case has, in order."""
    rules = case.rules
    return [i for i, feature in enumerate(FEATURES) if (feature.rule is None or feature.rule in rules) and feature.has(case)]


def count(case: Case, together: list[int]) -> list[int]:
    """One more case in a table of features and pairs, row by row; [] is the empty table.

    Place i * len(FEATURES) + j, i <= j, counts the cases that have features i and j, or where i == j the one.
    """
    counts = together.copy() or [0] * len(FEATURES) ** 2
    for i, j in combinations_with_replacement(places(case), 2):
        counts[i * len(FEATURES) + j] += 1
    return counts


def _names(*groups: str) -> set[str]:
    return {feature.name for feature in FEATURES if feature.group in groups}


_ENCODERS = {"encoder", "encoder-only"}
_TYPES = {
    AttentionType.ENCODER: {"encoder"},
    AttentionType.ENCODER_ONLY: {"encoder-only"},
    AttentionType.ENCODER_DECODER: {"cross-attention"},
}
_ROPE = {"rope, NeoX", "rope, interleaved", "rope, partial"}
_CONTENT = {"CONTENT_PACKED", "CONTENT_PACKED_SCALED"}
_INLINE = {str(layout) for layout in Layout if layout.has_inline_scales}
_LATENT = {str(layout) for layout in Layout if layout.has_latent_value}
_ORDERS = {f"order {order}" for order in PhysicalOrder}
_STORES_V = {str(layout) for layout in Layout if not layout.has_latent_value} | _ORDERS | _ROPE
_STORES_V |= {"K and V planes", "interleaved layers", "writer in another layout", "neighbour in another layout"}
_STORES_V |= {"cache int8", "scale per head", "scale per token, separate"}
"""Features of caches that store K and V apart, each with scales of its own."""
_OF_ONE_WIDTH = {str(layout) for layout in Layout if not (layout.has_latent_value or layout.takes_two_widths)}
_OF_ONE_WIDTH |= {"K and V planes", "writer in another layout", "neighbour in another layout"}
_UNDEFINED = (
    ({"cross-attention"}, _ROPE | {"slot -1"}, "the keys that it writes are the encoder's, once"),
    (_ENCODERS, _names("layout", "allocation", "cache dtype", "scales", "write"), "there is no KV cache"),
    (
        _ENCODERS,
        {"extend", "decode", "multi-token decode", "more queries than keys"},
        "its keys are its own tokens: there is no context",
    ),
    ({"cache of the layer's dtype"}, _names("scales") | _INLINE, "only a quantized cache has scales"),
    ({"cache of the layer's dtype"}, {"saturated"}, "only a quantized cache saturates"),
    ({"saturated"}, _ROPE, "a rotation makes NaN of infinities"),
    (_INLINE, _names("scales"), "its scales are in its rows"),
    ({str(layout) for layout in LATENT_FORMATS}, {"float32", "float16"}, "bfloat16 is the only dtype beside its rows"),
    ({str(layout) for layout in LATENT_FORMATS if layout.has_dense_pages}, {"padded rows"}, "its pages are dense"),
    ({"cache int8"}, {"scale per tensor", "scale per head"}, "int8 has a scale per token and head"),
    ({"K and V planes"}, _CONTENT | _ORDERS | {"interleaved layers"}, "K and V share each row of such an allocation"),
    ({"X_PACKED", "SHUFFLED"}, _ORDERS | {"interleaved layers"}, "no row of them holds K and V, whatever the view"),
    ({"CONTENT_PACKED_SCALED"}, {"writer in another layout", "neighbour in another layout"}, "no other layout has its scales"),
    ({"padded rows"} | _LATENT, _STORES_V, "a latent cache does not store V"),
    ({"head_size_v"}, _OF_ONE_WIDTH, "only a latent cache and CONTENT_PACKED have two widths"),
    ({"padded rows"} | _LATENT, {"cross-attention"}, "no encoder's keys are latent"),
    (
        {"nothing written"},
        _ROPE | {"slot -1", "saturated", "writer in another layout", "fused qkv"},
        "without a write there is neither K nor V",
    ),
    *(
        (types, {feature.name for feature in _rule_features(name)}, rule.why_not)
        for name, rule in {**held_rules(Layer), **held_rules(Batch)}.items()
        for attn_type, types in _TYPES.items()
        if attn_type not in rule.attn_types
    ),
)
_BY_NAME = {feature.name: feature for feature in FEATURES}


def undefined(first: str, second: str) -> str | None:
    """Why no case has both features, in words; None if some case can."""
    choice = _BY_NAME[first].choice
    if choice is not None and choice == _BY_NAME[second].choice:
        return "a case has one or the other"
    for some, others, reason in _UNDEFINED:
        if (first in some and second in others) or (second in some and first in others):
            return reason
    return None
