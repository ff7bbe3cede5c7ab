"""Features are told apart, and two are called undefined exactly where no case that the contract allows has both."""

from itertools import combinations, product

import pytest
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case, CaseError, Request, Rope
from attn_fuzz.cases.features import FEATURES, features, undefined

from tests.latent_formats import latent_sizes

NAMES = [feature.name for feature in FEATURES]
CAUSAL = {"attn_type": AttentionType.DECODER, "causal": (True,)}
ENCODER = {"attn_type": AttentionType.ENCODER, "causal": (False,), "cache": None}
CROSS = {"attn_type": AttentionType.ENCODER_DECODER, "causal": (False,)}
PACKED_CONTENT, INLINE = {"layout": Layout.CONTENT_PACKED}, {"layout": Layout.CONTENT_PACKED_SCALED}


def case_of(*changes: dict) -> Case:
    """A causal prefill of three tokens, changed: fields of the case, of its cache, and the causal flags of its requests.

    Each `request` (query_len, seq_len) joins the others; of the rest later changes win, in `cache` each field by itself.
    """
    lens = [change["request"] for change in changes if "request" in change] or [(3, 3)]
    fields = {name: value for change in changes for name, value in change.items() if name not in ("request", "cache")}
    flags, ranges = fields.pop("causal", (True,)), fields.pop("ranges", ())
    caches = [change["cache"] for change in changes if "cache" in change]
    cache = {"layout": Layout.KV_FIRST_NHD, "block_size": 16, "num_blocks": 4}
    cache |= {name: value for change in caches if change is not None for name, value in change.items()}
    requests = []
    for r in range(max(len(lens), len(flags))):
        query_len, seq_len = lens[r % len(lens)]
        blocks = () if None in caches else tuple(range(r * 2, r * 2 + -(-seq_len // cache["block_size"])))
        requests.append(Request(query_len, seq_len, blocks=blocks, causal=flags[r % len(flags)], bidirectional_ranges=ranges))
    return Case(target="t", requests=tuple(requests), cache=None if None in caches else Cache(**cache), **fields)


def layouts():
    yield "BLOCKS_FIRST_NHD", {"layout": Layout.BLOCKS_FIRST_NHD}
    yield "BLOCKS_FIRST_HND", {"layout": Layout.BLOCKS_FIRST_HND}
    yield "KV_FIRST_NHD", {"layout": Layout.KV_FIRST_NHD}
    yield "KV_FIRST_HND", {"layout": Layout.KV_FIRST_HND}
    yield "X_PACKED", {"layout": Layout.X_PACKED}
    yield "SHUFFLED", {"layout": Layout.SHUFFLED}
    yield "CONTENT_PACKED", PACKED_CONTENT


LATENT = {"head_size_v": 8, "cache": {"layout": Layout.LATENT}}


# each feature, by one or more ways to have it
WAYS = {
    "decoder, causal": [CAUSAL],
    "decoder, non-causal": [CAUSAL | {"causal": (False,)}],
    "decoder, causal per request": [CAUSAL | {"causal": (True, False), "per_request_causal": True}],
    "encoder": [ENCODER],
    "encoder-only": [ENCODER | {"attn_type": AttentionType.ENCODER_ONLY}],
    "cross-attention": [CROSS],
    "prefill": [{"request": (3, 3)}],
    "extend": [{"request": (9, 10)}],
    "decode": [{"request": (1, 3)}],
    "multi-token decode": [{"request": (8, 10)}],
    "more queries than keys": [{"request": (4, 3)}],
    "request without a query": [{"request": (0, 3)}, {"request": (0, 0)}],
    "window": [{"window": (0, -1)}, {"window": (-1, 0)}],
    "sink_tokens": [{"sink_tokens": 1}],
    "chunked_local": [{"chunked_local": 1}],
    "logits_soft_cap": [{"logits_soft_cap": 1.0}],
    "alibi_slopes": [{"alibi_slopes": True, "signed_slopes": False}],
    "alibi_slopes, signed": [{"alibi_slopes": True, "signed_slopes": True}],
    "sinks": [{"sinks": "off"}],
    "head_size_v": [{"head_size_v": 8, "cache": {"layout": layout}} for layout in (Layout.LATENT, Layout.CONTENT_PACKED)]
    + [{"head_size_v": 8}],
    "bidirectional_ranges": [{"ranges": ((0, 1),), "ranges_clamped": False}],
    "bidirectional_ranges, clamped": [{"ranges": ((0, 1),), "ranges_clamped": True}],
    "qq_bias, a tree": [{"qq_bias": "tree"}],
    "qq_bias, random": [{"qq_bias": "random"}],
    "qq_bias, hiding": [{"qq_bias": "hiding"}],
    "float32": [{"dtype": "float32"}],
    "float16": [{"dtype": "float16"}],
    "bfloat16": [{"dtype": "bfloat16"}],
    **{name: [{"cache": fields}, {"cache": fields | {"writer": Layout.CONTENT_PACKED}}] for name, fields in layouts()},
    "CONTENT_PACKED_SCALED": [
        {"cache": INLINE | {"dtype": dtype, "scales": None}} for dtype in ("int8", "fp8_e4m3fn", "fp8_e4m3fnuz")
    ],
    "LATENT": [LATENT],
    **{
        str(layout): [
            {"dtype": "bfloat16", **latent_sizes(layout), "cache": {"layout": layout, "scales": None, "dtype": dtype}}
            for dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz")
        ]
        for layout in LATENT_FORMATS
    },
    **{
        f"order {order}": [{"cache": PACKED_CONTENT | {"order": order}}, {"cache": {"order": order}}] for order in PhysicalOrder
    },
    "interleaved layers": [{"cache": PACKED_CONTENT | {"num_layers": 2}}, {"cache": {"num_layers": 2}}],
    "K and V planes": [{"cache": {"planes": True}}],
    "padded blocks": [{"cache": {"padding": 4}}],
    "padded rows": [{"head_size_v": 8, "cache": {"layout": Layout.LATENT, "slot_padding": 4}}],
    "block size no power of two": [{"cache": {"block_size": 48}}],
    "writer in another layout": [
        {"cache": {"writer": writer, "block_size": size}}
        for writer in (Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_NHD, Layout.CONTENT_PACKED, Layout.X_PACKED, Layout.SHUFFLED)
        for size in (4, 8, 16, 48)
    ],
    "neighbour in another layout": [
        {"cache": {"neighbour": neighbour}} for neighbour in (Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD)
    ],
    "cache of the layer's dtype": [{"cache": {"dtype": None, "scales": None}}],
    "cache fp8_e4m3fn": [{"cache": {"dtype": "fp8_e4m3fn", "scales": scales}} for scales in (None, "token", "tensor")],
    "cache fp8_e4m3fnuz": [{"cache": {"dtype": "fp8_e4m3fnuz", "scales": scales}} for scales in (None, "token", "tensor")],
    "cache int8": [{"cache": {"dtype": "int8", "scales": scales}} for scales in (None, "token")],
    "scale per tensor": [{"cache": {"dtype": "fp8_e4m3fn", "scales": "tensor"}}, {"cache": {"scales": "tensor"}}],
    "scale per head": [{"cache": {"dtype": "fp8_e4m3fn", "scales": "head"}}, {"cache": {"scales": "head"}}],
    "scale per token, separate": [{"cache": {"dtype": "fp8_e4m3fn", "scales": "token"}}, {"cache": {"scales": "token"}}],
    "slot -1": [{"unwritten": (0,)}, {"unowned_rows": 1}],
    "nothing written": [{"writes": False}],
    "saturated": [
        *({"saturated": True, "cache": {"dtype": "fp8_e4m3fn", "scales": scales}} for scales in ("token", "tensor")),
        {"saturated": True},
    ],
    "rope, NeoX": [{"rope": Rope(rotary_dim=16)}],
    "rope, interleaved": [{"rope": Rope(rotary_dim=16, neox=False)}],
    "rope, partial": [{"rope": Rope(rotary_dim=2)}, {"rope": Rope(rotary_dim=2, neox=False)}],
    "fused qkv": [{"fused_qkv": True}],
    "scale 0": [{"scale": 0.0}],
    "scale below 0": [{"scale": -1.0}],
    "unlike strides": [{"unlike_strides": True}],
    "dense output": [{"dense_out": True}],
    "LSE": [{"lse": True}],
    "earlier call": [{"earlier": ("same",)}],
    "output fp8_e4m3fn": [{"output_dtype": "fp8_e4m3fn"}],
    "output fp8_e4m3fnuz": [{"output_dtype": "fp8_e4m3fnuz"}],
}
SIMPLEST = ["decoder, causal", "prefill", "float32", "KV_FIRST_NHD", "cache of the layer's dtype"]


def test_the_simplest_case_has_only_what_every_case_has():
    assert features(case_of()) == SIMPLEST


def test_every_feature_is_tried_here():
    assert list(WAYS) == NAMES
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_is_had_by_a_case_made_for_it_and_not_by_every_case(name):
    found = features(case_of(WAYS[name][0]))
    assert name in found
    assert found == [other for other in NAMES if other in found], "in the order of FEATURES"
    assert any(name not in features(case_of(ways[0])) for ways in WAYS.values())


def made_cases(first: str, second: str) -> list[Case]:
    """All ways to have two features, together, the one over the other."""
    pairs = product(WAYS[first], WAYS[second])
    return [case_of(*changes) for one, other in pairs for changes in ((one, other), (other, one))]


def is_possible(first: str, second: str) -> bool:
    for case in made_cases(first, second):
        try:
            contradictions.check(case)
        except CaseError:
            continue
        if {first, second} <= set(features(case)):
            return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_two_features_are_undefined_exactly_where_no_valid_case_has_both(name):
    """Each way to have one is put over each way to have the other: what comes of it is refused, or lost one of them."""
    for other in NAMES[NAMES.index(name) + 1 :]:
        assert (undefined(name, other) is None) == is_possible(name, other), other


def test_undefined_is_symmetric_and_says_why():
    for first, second in combinations(NAMES, 2):
        assert undefined(first, second) == undefined(second, first)
        assert undefined(first, second) != ""


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("cross-attention", "alibi_slopes", "different sequences"),
        ("encoder", "qq_bias, a tree", "only DECODER has it"),
        ("encoder-only", "order LBHNC", "no KV cache"),
        ("float16", "bfloat16", "one or the other"),
        ("rope, NeoX", "rope, interleaved", "one or the other"),
        ("cache int8", "scale per head", "per token and head"),
        ("rope, partial", "nothing written", "without a write"),
    ],
)
def test_undefined_gives_the_reason_of_this_pair(first, second, why):
    assert why in undefined(first, second)


@pytest.mark.parametrize(
    ("first", "second"), [("rope, NeoX", "rope, partial"), ("sinks", "LSE"), ("KV_FIRST_HND", "order BHLNC")]
)
def test_what_only_looks_exclusive_is_defined(first, second):
    assert undefined(first, second) is None
