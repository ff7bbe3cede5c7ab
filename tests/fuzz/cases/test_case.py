"""A case is data: it survives its own file, and one whose fields contradict each other is refused by name."""

import dataclasses
import json
import math

import msgspec
import pytest
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases import case_file, contradictions
from attn_fuzz.cases.case import SCHEMA, Cache, Case, CaseError, Request, Rope
from attn_fuzz.run.case import trial
from attn_fuzz.strategies import cases
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from hypothesis import given, settings
from hypothesis import strategies as st

replace = msgspec.structs.replace
SMALL = dataclasses.replace(EVERYTHING, head_sizes=(16,), max_tokens=16, max_seq_len=32)
NONSENSE = st.sampled_from([-2, -1, 0, 1, 2, 3, 7, 100, 1 << 33, 0.5, 1e300, None, True, "", "x", [], [3], [-1, 3], {}])

encoder = Case(target="t", attn_type=AttentionType.ENCODER, requests=(Request(query_len=3, seq_len=3),))
cross = Case(
    target="t",
    attn_type=AttentionType.ENCODER_DECODER,
    requests=(Request(query_len=2, seq_len=3, blocks=(0,)),),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=2),
)


def test_a_file_from_before_the_rules_still_means_what_it_did(step_case):
    """No field of it is new, and every new field is as simple as it was."""
    text = """{"schema": "attn-parity.case/2", "target": "reference-fp32", "head_size": 8, "requests": [
      {"query_len": 2, "seq_len": 7, "blocks": [2, 0], "causal": true},
      {"query_len": 3, "seq_len": 3, "blocks": [3], "causal": true}],
      "cache": {"layout": "KV_FIRST_NHD", "block_size": 4, "num_blocks": 4}}"""
    assert case_file.loads(text) == step_case


@settings(max_examples=50, deadline=None, database=None)
@given(cases("reference-fp32", EVERYTHING))
def test_a_case_is_what_its_file_says(case):
    text = case_file.dumps(case)
    assert json.loads(text)["schema"] == SCHEMA
    assert case_file.loads(text) == case


def contradicting_fields():
    one_block = Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=1)
    causal = Request(query_len=1, seq_len=1, blocks=(0,), causal=True)
    yield "a decoder without a cache", "cache", {"cache": None}
    yield "an encoder with a cache", "cache", {"attn_type": AttentionType.ENCODER}
    for scale in (math.nan, math.inf, -math.inf, 1e7):
        yield f"scale {scale}", "scale", {"scale": scale}
    yield "unwritten rows past the last", "unwritten", {"unwritten": (5,)}
    yield "flags that differ", "per_request_causal", {"requests": (causal, Request(query_len=0, seq_len=0))}
    yield "too few blocks", r"requests\[0\].blocks", {"requests": (Request(query_len=1, seq_len=5, blocks=(0,)),)}
    yield "too many blocks", r"requests\[0\].blocks", {"requests": (Request(query_len=1, seq_len=1, blocks=(0, 1)),)}
    yield "a block past the cache", r"requests\[0\].blocks", {"cache": one_block}
    yield "a block twice", "twice", {"requests": (Request(query_len=1, seq_len=8, blocks=(1, 1)),)}
    yield "a slot written twice", "one slot", {"requests": (causal, causal)}
    for cap in (0.0, -1.0, math.nan, math.inf):
        yield f"soft cap {cap}", "logits_soft_cap", {"logits_soft_cap": cap}
    yield "a rotation of an odd number of dims", "rotary_dim", {"rope": Rope(rotary_dim=3)}
    yield "a rotation of more than all dims", "rotary_dim", {"rope": Rope(rotary_dim=10)}
    yield "a rotation without a write", "rope", {"rope": Rope(rotary_dim=4), "writes": False}

    def caches(**fields):
        return {"cache": Cache(**{"layout": Layout.KV_FIRST_NHD, "block_size": 4, "num_blocks": 4, **fields})}

    packed, inline = Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED
    yield "x-packed blocks that are no multiple of x", "layout", caches(layout=Layout.X_PACKED, dtype="int8", scales="token")
    yield "an order of what has none", "order", caches(order=PhysicalOrder.BLNHC)
    yield "layers where there is one", "num_layers", caches(num_layers=2)
    yield "a layer past the last", "cache.layer", caches(layout=packed, num_layers=2, layer=2)
    yield "planes of rows that hold K and V", "planes", caches(layout=packed, planes=True)
    yield "inline scales without a dtype", "dtype", caches(layout=inline)
    yield "inline scales and others", "scales", caches(layout=inline, dtype="int8", scales="token")
    yield "inline scales at odd places", "padding", caches(layout=inline, dtype="int8", padding=2)
    yield "scales without a dtype", "scales", caches(scales="tensor")
    yield "a dtype without scales", "scales", caches(dtype="fp8_e4m3fn")
    yield "int8 of fixed scales", "int8", caches(dtype="int8", scales="head")
    yield "float8 queries beside a cache of the layer's dtype", "q_scale", {"q_scale": "tensor"}
    float8 = caches(dtype="fp8_e4m3fn", scales="tensor")
    yield "float8 queries that are rotated", "q_scale", {"q_scale": "head", "rope": Rope(rotary_dim=4), **float8}
    yield "float8 queries beside k and v", "q_scale", {"q_scale": "head", "fused_qkv": True, **float8}
    yield "a writer of other elements", "writer", caches(writer=Layout.X_PACKED)
    yield "a writer of rows over planes", "planes", caches(writer=packed, planes=True)
    yield "a neighbour of another footprint", "neighbour", caches(neighbour=packed, planes=True)


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for _, name, changes in contradicting_fields()],
    ids=[c[0] for c in contradicting_fields()],
)
def test_a_contradiction_is_refused(name, changes, step_case):
    contradictions.check(step_case)
    with pytest.raises(CaseError, match=name):
        contradictions.check(replace(step_case, **changes))


@pytest.mark.parametrize(
    ("case", "name", "changes"),
    [
        (encoder, "causal", {"requests": (Request(query_len=1, seq_len=1, causal=True),)}),
        (encoder, "causal", {"per_request_causal": True}),
        (encoder, r"requests\[0\].seq_len", {"requests": (Request(query_len=1, seq_len=2),)}),
        (encoder, r"requests\[0\].blocks", {"requests": (Request(query_len=1, seq_len=1, blocks=(0,)),)}),
        (encoder, "recycled", {"recycled": True}),
        (encoder, "finite_slots", {"finite_slots": True}),
        (encoder, "writes", {"writes": False}),
        (encoder, "unwritten", {"unwritten": (0,)}),
        (cross, "causal", {"requests": (Request(query_len=2, seq_len=3, blocks=(0,), causal=True),)}),
        (cross, "window", {"window": (3, -1)}),
        (cross, "sink_tokens", {"sink_tokens": 1}),
        (cross, "chunked_local", {"chunked_local": 4}),
        (cross, "alibi_slopes", {"alibi_slopes": True}),
        (cross, "qq_bias", {"qq_bias": "tree"}),
        (
            cross,
            "bidirectional_ranges",
            {"requests": (Request(query_len=2, seq_len=3, blocks=(0,), bidirectional_ranges=((0, 1),)),)},
        ),
        (cross, "rope", {"rope": Rope(rotary_dim=4)}),
        (encoder, "ranges_clamped", {"ranges_clamped": True}),
        (encoder, "bidirectional_ranges", {"requests": (Request(query_len=3, seq_len=3, bidirectional_ranges=((0, 1),)),)}),
        (encoder, "qq_bias", {"qq_bias": "random"}),
        (encoder, "rope", {"rope": Rope(rotary_dim=4)}),
        (cross, "cache", {"cache": None}),
    ],
)
def test_a_contradiction_with_the_attention_type_is_refused(case, name, changes):
    contradictions.check(case)
    with pytest.raises(CaseError, match=name):
        contradictions.check(replace(case, **changes))


def test_a_case_that_no_machine_holds_is_refused(step_case, monkeypatch):
    """Before anything is allocated, a list of its slots too: every dimension is legal by itself."""
    monkeypatch.setattr(contradictions, "slot_bits", lambda *positions: pytest.fail("it counts the slots of billions of rows"))
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=1 << 20, num_blocks=2000)
    requests = tuple(Request(query_len=1 << 20, seq_len=1 << 20, blocks=(i,)) for i in range(2000))
    with pytest.raises(CaseError, match="elements"):
        contradictions.check(replace(step_case, cache=cache, requests=requests))


@settings(max_examples=60, deadline=None, database=None)
@given(cases("reference-fp32", SMALL), st.data())
def test_a_case_edited_into_nonsense_is_refused_or_runs(case, data):
    """No edit of one field, at any depth, gets past the check and then makes the fuzzer itself fail."""
    fields = json.loads(case_file.dumps(case))
    where = fields
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = data.draw(NONSENSE)
    try:
        edited = case_file.loads(json.dumps(fields))
    except CaseError:
        return
    assert trial.try_case(edited, REFERENCE_FP32, "cpu").kind == "agree"
