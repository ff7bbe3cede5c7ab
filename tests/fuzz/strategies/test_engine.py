"""Calls of an engine are drawn directly. Rejected draws are counted, with the declarations that would avoid them."""

import re
from dataclasses import fields, replace

import pytest
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases import contradictions, edges_of_scales
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.features import FEATURES, features
from attn_fuzz.corpus import files
from attn_fuzz.corpus.adapting import adapted
from attn_fuzz.report.drawn import can_have, drawn
from attn_fuzz.run.shard import Progress
from attn_fuzz.strategies import families
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.tally import SUPPORTED, Tally
from attn_fuzz.targets.engine import RESTRICTIONS, VLLM, Engine
from attn_fuzz.targets.support import EVERYTHING, LatentSizes, Support
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.mostly_nightly import mostly_nightly

PLAIN = Engine(
    windows=("left",),
    one_token_windows=False,
    selection_units=(1,),
    selections=("some",),
    empty_selections=False,
    selected_per_head=(False,),
    signed_slopes=False,
    mixed_alibi=False,
    mixed_ranges=False,
    contexts=False,
    query_lens=("equal",),
    orders=(PhysicalOrder.LBHNC,),
    scale_signs=(1,),
    other_scales=False,
    ranges=("inside",),
    more_queries_than_keys=False,
    empty_requests=False,
    empty_batches=False,
    shared_blocks=False,
    planes=(False,),
    num_layers=(1,),
    padding=(0,),
    other_views=False,
    writes=(True,),
    unwritten=False,
    ordinary_writes=(True,),
    saturated=False,
    least_scales=False,
    recycled=False,
    fused_qkv=(False,),
    unlike_strides=(False,),
    flat_out=(False,),
    dense_out=(True,),
    unowned_rows=(0,),
    rows_past=(0,),
    kv_rows_past=(0,),
    table_padding=(0,),
    slack=(0,),
)
SCALES_OF_POWERS = Support(
    attn_types=(AttentionType.DECODER,),
    dtypes=("bfloat16",),
    layouts=(Layout.LATENT_E8M0_PLANES,),
    rules=("head_size_v",),
    required_rules=("head_size_v",),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    latent=LatentSizes(widths=((512, 0),)),
)
DRAFTS = replace(VLLM, prompts=False, query_lens=("equal",), mixed_alibi=False)


def draw(support: Support, examples: int = 150, refuses: bool = False) -> tuple[list[Case], Tally]:
    found, tally = [], Tally()

    @seed(1)
    @settings(INDEPENDENT, max_examples=examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(families("anything", support, refuses, tally))
    def collect(family):
        for case in family:
            found.append(case)
            tally.add(case)

    collect()
    return found, tally


@pytest.fixture(scope="module")
def anything() -> list[Case]:
    return draw(EVERYTHING, 250)[0] + draw(SCALES_OF_POWERS, 40)[0]


@pytest.mark.parametrize("engine", mostly_nightly([VLLM, PLAIN, DRAFTS], [VLLM]), ids=["VLLM", "PLAIN", "DRAFTS"])
def test_an_engine_is_drawn_directly(engine):
    found, tally = draw(replace(EVERYTHING, engine=engine))
    assert not tally.rejected, "nothing is drawn and thrown away"
    for case in found:
        contradictions.check(case)
        assert engine.not_sent(case) is None
    assert len({case.window for case in found}) > 3
    assert {len(case.requests) for case in found} >= {1, 8}


def test_finite_slots_are_drawn_directly():
    found, tally = draw(replace(EVERYTHING, unused_slots="finite"), examples=40)
    assert all(case.finite_slots for case in found if case.cache is not None)
    assert not tally.rejected


def test_bytes_of_scales_are_drawn_directly():
    found, tally = draw(replace(SCALES_OF_POWERS, engine=Engine(least_scales=False)), examples=60)
    assert not tally.rejected
    edges = [edge.byte for case in found if (edge := edges_of_scales.edge_of(case))]
    assert {*edges} == {edges_of_scales.MAX_BYTE}


@pytest.mark.parametrize("name", [field.name for field in fields(Engine) if field.compare])
def test_every_field_of_an_engine_restricts_something(name, anything):
    """A field that `not_sent` forgets would let past cases through that the engine never sends."""
    narrower = replace(Engine(), **{name: getattr(PLAIN if name != "prompts" else DRAFTS, name)})
    assert any(narrower.not_sent(case) for case in anything)


def test_windows_by_causality_are_those_of_vllm():
    found, _ = draw(replace(EVERYTHING, engine=VLLM))
    windows = {}
    for case in found:
        if max(case.window) >= 0:
            windows.setdefault(all(request.causal for request in case.requests), set()).add(case.window)
    assert all(right == 0 <= left for left, right in windows[True])
    assert all(right == left >= 0 for left, right in windows[False])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"windows": ()}, "Engine.windows: got .., expected a tuple of at least one value"),
        ({"planes": False}, "Engine.planes: got False, expected a tuple"),
        ({"unwritten": (False,)}, "Engine.unwritten: got .False,., expected True or False"),
    ],
)
def test_a_field_of_another_kind_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Engine(**changes)


def test_cases_that_exclude_throws_away_are_counted_with_their_remedy():
    def exclude(case: Case) -> str | None:
        return "fused qkv" if case.fused_qkv else None

    excluding = replace(EVERYTHING, exclude=exclude, rules=("non_causal",), attn_types=(AttentionType.DECODER,))
    found, tally = draw(excluding, examples=60)
    lost = tally.rejected["excluded: fused qkv"]
    assert lost > 5
    assert "fused_qkv=(False,)" in tally.remedies()["excluded: fused qkv"]
    progress = Progress(examples=len(found), rejected=dict(tally.rejected), remedies=tally.remedies())
    said = drawn([progress], excluding).rejections
    assert said[0] == f"thrown away: {lost} of {len(found) + lost} cases drawn: {lost} excluded: fused qkv"
    direct = replace(excluding, engine=Engine(fused_qkv=(False,)))
    assert not draw(direct, examples=60)[1].rejected


@pytest.mark.parametrize(("examples", "lost", "warns"), [(100, 20, False), (100, 30, True), (5, 10, False), (5, 11, True)])
def test_above_a_fifth_it_is_a_warning_that_names_the_field(examples, lost, warns):
    progress = Progress(
        examples=examples, rejected={"excluded: x": lost, SUPPORTED: 90}, remedies={"excluded: x": ["planes=(False,)"]}
    )
    said = drawn([progress], EVERYTHING).rejections
    assert said[0].startswith(f"thrown away: {lost} of {examples + lost}")
    assert any("Support(engine=Engine(planes=(False,)))" in line for line in said[1:]) == warns


def test_features_that_were_not_drawn_are_named_if_the_target_supports_them():
    narrow = Support(attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.BLOCKS_FIRST_NHD,))
    nothing = drawn([Progress()], narrow)
    assert nothing.features == [feature.name for feature in FEATURES if can_have(narrow, feature)]
    assert "float32" in nothing.features
    assert {"window", "float16", "encoder", "decoder, non-causal", "KV_FIRST_NHD"}.isdisjoint(nothing.features)
    assert nothing.num_features == len(nothing.features)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(VLLM, id="vLLM"),
        pytest.param(replace(VLLM, query_lens=("one",)), id="one query", marks=pytest.mark.nightly),
        pytest.param(replace(VLLM, query_lens=("equal",), mixed_ranges=False, mixed_alibi=False), id="equal queries"),
    ],
)
def test_all_that_a_support_allows_is_drawn_in_the_end(engine):
    """A feature that `can_have` promises in vain would be named at the end of every run."""
    rules = ("window", "lse", "non_causal", "alibi_slopes", "sinks")
    support = replace(EVERYTHING, engine=engine, rules=rules, attn_types=(AttentionType.DECODER,))
    found, _ = draw(support, examples=200)
    of_cases = [features(case) for case in found]
    assert {feature.name for feature in FEATURES if can_have(support, feature)} == {name for of in of_cases for name in of}


def test_restrictions_are_said_as_a_user_says_them():
    for name in RESTRICTIONS:
        assert isinstance(eval(f"Engine({name})", {"Engine": Engine}), Engine)


def vllm_kernel() -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16",),
        layouts=(Layout.BLOCKS_FIRST_NHD,),
        rules=("window", "logits_soft_cap", "alibi_slopes", "sinks"),
        head_sizes=(64, 128),
        group_sizes=(1, 4),
        block_sizes=(16, 32),
        engine=VLLM,
    )


def test_past_cases_are_adapted_to_what_an_engine_sends():
    admitted = files.admitted(files.shipped(), "mine", vllm_kernel())
    assert len(admitted.cases) >= 35
    assert admitted.adapted == len(admitted.cases)
    for case in admitted.cases:
        contradictions.check(case)
        assert vllm_kernel().not_drawn(case) is None
        assert vllm_kernel().beyond(case) is None
    out = sum(map(len, admitted.left_out.values()))
    ran = f"{len(admitted.cases)} run, {admitted.of_others} of them found on other targets"
    assert f"{ran}, {admitted.adapted} in sizes and forms of this target, {out} left out: " in admitted.sentence
    assert re.search(r"\b\d+ for encoder attention", admitted.sentence)


def test_an_adapted_table_keeps_what_requests_share():
    """Three blocks of 4 slots are one block of 8 slots, and half of another."""
    requests = tuple(Request(query_len=1, seq_len=14, blocks=(5, 2, 7, own), causal=True) for own in (1, 3))
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=8)
    case, reason = adapted(Case(target="x", requests=requests, cache=cache), replace(EVERYTHING, block_sizes=(8,)))
    assert reason == ""
    assert case is not None
    assert [request.blocks for request in case.requests] == [(5, 2), (5, 7)]
    contradictions.check(case)
