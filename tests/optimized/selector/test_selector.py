"""Selections and their reasons, with AITER as recorded: every skip has all its reasons, and layers that share memory agree."""

import functools
import importlib
import itertools
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch
from attn_contract import (
    AttentionConfig,
    AttentionType,
    ContractError,
    KVCacheView,
    Layout,
    Refusal,
    UnsupportedError,
    check_shared_allocation,
    same_elements,
    same_footprint,
)
from attn_optimized.aiter_adapter import Aiter, recorded
from attn_optimized.backends import BACKENDS
from attn_optimized.selector import (
    PRIORITIES,
    Assignment,
    CacheKind,
    cache_kind,
    model,
    parse_architecture,
    priorities,
    select,
    select_model,
    this_architecture,
)
from attn_optimized.selector import layer as one_layer
from hypothesis import given, reject, settings
from hypothesis import strategies as st

AITER = recorded("2026-08")
NO_AITER = Aiter(missing="AITER is not installed")
DECODER = AttentionConfig(num_heads=16, num_kv_heads=16, head_size=64, dtype=torch.bfloat16, block_size=16)
CROSS = replace(DECODER, attn_type=AttentionType.ENCODER_DECODER)
ENCODER = replace(DECODER, attn_type=AttentionType.ENCODER, block_size=None)
ONE_OF_EACH = {"gfx11??": "gfx1100", "gfx12??": "gfx1201", "sm*": "sm90"}
ARCHITECTURES = [ONE_OF_EACH.get(pattern, pattern) for pattern in PRIORITIES]


@pytest.fixture(autouse=True)
def nothing_logged_before():
    one_layer.log_skipped.cache_clear()


def on_mi300(layers: Mapping[str, AttentionConfig], **shared) -> dict[str, Assignment]:
    return select_model(layers, architecture="gfx942", aiter=AITER, **shared)


def view_of(assignment: Assignment, config: AttentionConfig, num_blocks: int = 7) -> KVCacheView:
    """The view by which an assigned layer addresses the allocation, if its backend is right about `allocation_layout`."""
    assert assignment.layout is not None
    assert config.block_size is not None
    return KVCacheView.dense(
        Layout.KV_FIRST_NHD if assignment.allocation_layout else assignment.layout,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_kv_heads=config.num_kv_heads,
        head_size=config.head_size,
        itemsize=(config.kv_cache_dtype or config.dtype).itemsize,
    )


def check_shares(layers: Mapping[str, AttentionConfig], assignments: Mapping[str, Assignment], *contents: tuple[str, str]):
    check_shared_allocation({name: view_of(assignments[name], config) for name, config in layers.items()}, contents)


# architectures


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("gfx942:sramecc+:xnack-", "gfx942"),
        ("gfx90a:sramecc+:xnack-", "gfx90a"),
        ("gfx950", "gfx950"),
        ("gfx1100", "gfx1100"),
        ("gfx1201", "gfx1201"),
        ("sm90", "sm90"),
        ("sm120", "sm120"),
        ("interpreter", "interpreter"),
    ],
)
def test_an_architecture_is_parsed(name, parsed):
    assert parse_architecture(name) == parsed


@pytest.mark.parametrize("name", ["gfx906", "gfx94", "gfx942:", "gfx942:xnack", "gfx942 ", "small", "", "cpu", None, 942])
def test_an_unknown_architecture_is_refused_with_those_known(name):
    with pytest.raises(ContractError, match="gfx90a, gfx942, gfx950, gfx11") as refused:
        parse_architecture(name)
    assert refused.value.argument == "architecture"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_knows_every_backend_and_the_one_that_serves_all(architecture):
    of_all_kinds = [name for kind in get_args(CacheKind) for name in priorities(architecture, kind)]
    assert sorted(of_all_kinds) == sorted(BACKENDS)
    assert select(CROSS, architecture=architecture, aiter=NO_AITER).backend == "TRITON_ATTN"


@pytest.mark.parametrize("kind", ["", "Latent", None, ["latent"]])
def test_an_unknown_kind_of_cache_is_refused_with_those_known(kind):
    with pytest.raises(ContractError, match="one of one width, two widths, latent, selection, latent selection") as refused:
        priorities("gfx942", kind)
    assert refused.value.argument == "kind"


def test_this_machine_has_an_architecture(monkeypatch):
    assert parse_architecture(this_architecture()) == this_architecture()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    table = importlib.import_module("attn_optimized.selector.priorities")  # the package has a function of this name
    monkeypatch.setattr(table, "architecture_of", lambda device, dtype: f"of {device.type}")
    assert this_architecture() == "of cuda"


# one layer


LATENT = AttentionConfig(
    num_heads=16, num_kv_heads=1, head_size=576, dtype=torch.bfloat16, block_size=16, rules={"head_size_v": 512}
)
NO_ADAPTER = "has no adapter to AITER's assembly kernels"


@pytest.mark.parametrize(
    ("config", "architecture", "reason"),
    [
        (replace(LATENT, num_heads=144), "gfx942", None),
        (replace(LATENT, num_heads=130), "gfx942", "more than 128 heads that are no multiple of 16"),
        (replace(LATENT, block_size=1), "gfx942", None),
        (LATENT.with_rules(non_causal=True), "gfx950", None),
        (LATENT.with_rules(non_causal=True), "gfx942", "not causal, but on gfx950"),
        (replace(LATENT, dtype=torch.float16).with_rules(non_causal=True), "gfx950", "float16 with a cache of float16"),
        (replace(LATENT, dtype=torch.float32), "gfx942", "dtype float32"),
        (LATENT.with_rules(batch_invariant=True), "gfx942", "batch"),
        (LATENT.with_rules(sinks=True), "gfx942", "sinks"),
        (LATENT.with_rules(over_ranks=True), "gfx942", None),
    ],
)
@pytest.mark.parametrize("backend", ["ROCM_AITER_MLA", "ROCM_AITER_TRITON_MLA"])
def test_aiters_backends_of_latent_attention_refuse_as_vllm_declares(backend, config, architecture, reason):
    """As vLLM declares it. None has an adapter here, so that each is refused for this reason at least."""
    first, *others = BACKENDS[backend].capabilities(AITER).refusals(config, architecture)
    assert NO_ADAPTER in first.reason
    assert [reason in refusal.property for refusal in others] == ([] if reason is None else [True])


# MiMo-V2, on one of two devices
TWO_WIDTHS = AttentionConfig(
    num_heads=32, num_kv_heads=2, head_size=192, dtype=torch.bfloat16, block_size=16, rules={"head_size_v": 128}
)


def test_one_kv_head_and_a_narrower_v_are_a_latent_cache_unless_the_layout_says_otherwise():
    one = replace(TWO_WIDTHS, num_kv_heads=1)
    for config, backend in (
        (one, "TRITON_MLA"),
        (replace(one, layout=Layout.CONTENT_PACKED), "TRITON_ATTN_DIFFKV"),
        (replace(one, head_size=128).with_rules(head_size_v=192), "TRITON_ATTN_DIFFKV"),
    ):
        assert select(config, architecture="sm90", aiter=NO_AITER).backend == backend


@pytest.mark.parametrize("architecture", ["gfx90a", "gfx942", "gfx1201", "sm90"])
def test_a_cache_that_ranks_share_is_served_in_latent_attention_alone(architecture):
    """And where it is said to be, there is a builder and a layer for it."""
    backend = select(LATENT.with_rules(over_ranks=True), architecture=architecture, aiter=AITER).backend
    assert backend == "TRITON_MLA"
    assert BACKENDS[backend].over_ranks().name == backend
    with pytest.raises(UnsupportedError, match="a cache that ranks share not supported: vLLM's backend declares none"):
        select(DECODER.with_rules(over_ranks=True), architecture=architecture, aiter=AITER)


@pytest.mark.parametrize("architecture", ["gfx90a", "gfx1201", "sm90"])
@pytest.mark.parametrize("backend", ["ROCM_AITER_MLA", "ROCM_AITER_FA"])
def test_an_architecture_that_a_backend_does_not_run_on_is_the_only_reason(backend, architecture):
    """A user of an NVIDIA GPU was told to install AITER, which needs ROCm."""
    config = LATENT.with_rules(sinks=True)
    (refusal,) = BACKENDS[backend].capabilities(Aiter(missing="AITER is not installed")).refusals(config, architecture)
    assert refusal.property == f"architecture {architecture}"
    assert "AITER needs ROCm" in refusal.reason


@pytest.mark.parametrize(
    ("config", "backend", "reason"),
    [(LATENT, "TRITON_ATTN", "a latent cache"), (replace(DECODER, layout=Layout.KV_FIRST_HND), "TRITON_MLA", "layout")],
)
def test_a_backend_of_the_other_kind_says_why_it_does_not_serve(config, backend, reason):
    with pytest.raises(UnsupportedError, match=f"^{backend}: .*{reason}"):
        select(config, architecture="gfx942", aiter=AITER, backend=backend)


@pytest.mark.parametrize(
    ("architecture", "aiter", "config", "backend", "layout"),
    [
        ("gfx942", AITER, DECODER, "ROCM_ATTN", Layout.X_PACKED),
        ("gfx942", AITER, ENCODER, "ROCM_ATTN", None),
        ("gfx942", AITER, CROSS, "ROCM_AITER_UNIFIED_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", NO_AITER, CROSS, "TRITON_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", AITER, DECODER.with_rules(sinks=True), "ROCM_AITER_FA", Layout.BLOCKS_FIRST_NHD),
        ("gfx90a", AITER, DECODER.with_rules(sinks=True), "ROCM_AITER_UNIFIED_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", recorded("0.1.7"), DECODER.with_rules(sinks=True), "ROCM_AITER_UNIFIED_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", AITER, DECODER.with_rules(logits_soft_cap=50.0), "ROCM_AITER_FA", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", AITER, DECODER.with_rules(non_causal=True), "ROCM_ATTN", Layout.X_PACKED),
        ("gfx942", AITER, DECODER.with_rules(bidirectional_ranges=True), "TRITON_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx1201", AITER, DECODER, "ROCM_AITER_UNIFIED_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx1201", NO_AITER, DECODER, "ROCM_ATTN", Layout.X_PACKED),
        ("sm90", NO_AITER, DECODER, "TRITON_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("interpreter", AITER, DECODER, "TRITON_ATTN", Layout.BLOCKS_FIRST_NHD),
        ("gfx942", AITER, replace(DECODER, layout=Layout.KV_FIRST_HND), "ROCM_AITER_FA", Layout.KV_FIRST_HND),
        (
            "gfx942",
            AITER,
            replace(DECODER, kv_cache_dtype=torch.int8, scales="inline"),
            "TRITON_ATTN",
            Layout.CONTENT_PACKED_SCALED,
        ),
    ],
)
def test_the_first_that_serves_is_selected(architecture, aiter, config, backend, layout):
    selection = select(config, architecture=architecture, aiter=aiter)
    assert (selection.backend, selection.layout) == (backend, layout)


@pytest.mark.parametrize(
    ("config", "options", "argument"),
    [
        (None, {}, "config"),
        ("DECODER", {}, "config"),
        (DECODER, {"aiter": "2026-08"}, "aiter"),
        (DECODER, {"backend": []}, "backend"),
        (DECODER, {"backend": "FLASH_ATTN"}, "backend"),
    ],
)
def test_a_value_that_is_no_config_aiter_or_backend_is_refused(config, options, argument):
    with pytest.raises(ContractError) as refused:
        select(config, **{"architecture": "gfx942", "aiter": AITER, **options})
    assert refused.value.argument == argument


FLAGS = ("alibi_slopes", "sinks", "non_causal", "lse", "batch_invariant", "rope", "qq_bias")
ROWS_OF_CDNA = [f"{name}:sramecc+:xnack-" for name in ("gfx90a", "gfx942", "gfx950")]


@st.composite
def configs(draw: st.DrawFn) -> AttentionConfig:
    """Layers of each kind of cache, with rules and formats that few backends serve."""
    kind = draw(st.sampled_from(("one width", "one width", "two widths", "latent", "selection", "latent selection")))
    unit = draw(st.sampled_from((1, 128))) if "selection" in kind else None
    head_size = draw(st.sampled_from((24, 32, 64, 80, 128, 256)))
    fields: dict[str, Any] = {"head_size": head_size, "block_size": draw(st.sampled_from((16, 32, 48)))}
    fields |= {"dtype": draw(st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))}
    fields |= {"layout": draw(st.none() | st.sampled_from((Layout.X_PACKED, Layout.CONTENT_PACKED)))}
    rules = dict.fromkeys(draw(st.lists(st.sampled_from(FLAGS), max_size=2)), True)
    rules |= {"window": (7, 0)} if draw(st.booleans()) else {}
    if kind == "selection":
        fields |= {"block_size": draw(st.sampled_from((16, 128))), "rules": {"selection_unit": unit}}
        return replace(DECODER, **fields)
    if kind != "one width":
        is_latent = kind != "two widths"
        heads = {"num_heads": 8, "num_kv_heads": 1 if is_latent else 2}
        layout = Layout.LATENT if is_latent else Layout.CONTENT_PACKED
        v_head_size = head_size // 2 if is_latent else draw(st.sampled_from((16, 96)))
        rules = {"head_size_v": v_head_size, "selection_unit": unit}
        fields |= {**heads, "layout": draw(st.sampled_from((None, layout))), "rules": rules}
        fields["dtype"] = draw(st.sampled_from((torch.float16, torch.bfloat16)))
        return replace(DECODER, **fields)
    if draw(st.booleans()):
        fields |= {"kv_cache_dtype": torch.float8_e4m3fn, "scales": draw(st.sampled_from(("tensor", "head", "token")))}
    fields |= {"output_dtype": draw(st.none() | st.just(torch.float8_e4m3fn))}
    attn_type = draw(st.sampled_from(AttentionType))
    no_cache = {} if attn_type.reads_cache else dict.fromkeys(("block_size", "layout", "kv_cache_dtype", "scales"))
    with suppress(ContractError):
        return replace(DECODER, **{**fields, **no_cache}, attn_type=attn_type, rules=rules)
    return reject()


@settings(max_examples=200)
@given(
    config=configs(), architecture=st.sampled_from((*ARCHITECTURES, *ROWS_OF_CDNA)), aiter=st.sampled_from((AITER, NO_AITER))
)
def test_the_first_that_serves_is_selected_and_what_is_skipped_does_not_serve(config, architecture, aiter):
    def refusals(backend: str, layout: Layout | None) -> tuple[Refusal, ...]:
        asked = replace(config, layout=layout) if layout else config
        return tuple(BACKENDS[backend].capabilities(aiter).refusals(asked, architecture.split(":")[0]))

    def layouts(backend: str) -> list[Layout | None]:
        """The layouts with which a backend serves, in its order."""
        is_left = config.layout is None and config.attn_type.reads_cache
        choices = BACKENDS[backend].capabilities(aiter).layouts.values if is_left else (config.layout,)
        fitting = [one for one in choices if one is None or one.has_inline_scales == (config.scales == "inline")]
        return [one for one in fitting if not refusals(backend, one)]

    options = {"architecture": architecture, "aiter": aiter}
    order = priorities(architecture, cache_kind(config))
    serving = [backend for backend in order if layouts(backend)]
    for backend in order:
        if backend not in serving:
            with pytest.raises(UnsupportedError) as refused:
                select(config, **options, backend=backend)
            assert refused.value.instead == (" or ".join(serving) or None)
            continue
        named = select(config, **options, backend=backend)
        assert (named.backend, named.layout, named.skipped) == (backend, layouts(backend)[0], ())
    if not serving:
        with pytest.raises(UnsupportedError, match="every backend of this project"):
            select(config, **options)
        return
    selection = select(config, **options)
    assert (selection.backend, selection.layout) == (serving[0], layouts(serving[0])[0])
    before = order[: order.index(serving[0])]
    assert tuple(one.backend for one in selection.skipped) == before
    for one in selection.skipped:
        assert one.refusals
        assert one.refusals == refusals(one.backend, None) or not refusals(one.backend, None)
    assert architecture.split(":")[0] in selection.why
    assert [word for word in re.findall(r"\w+", selection.why) if word in BACKENDS] == [*before]


def test_where_none_serves_all_say_why():
    with pytest.raises(UnsupportedError) as refused:
        select(replace(DECODER, head_size=528).with_rules(sinks=True), architecture="gfx942", aiter=NO_AITER)
    for backend in priorities("gfx942"):
        line = next(line for line in refused.value.reason.splitlines() if line.startswith(f"  {backend}: "))
        assert "head size 528" in line
        assert ("AITER is not installed" in line) == ("AITER" in backend)


def test_without_an_aiter_the_installed_one_is_asked(monkeypatch):
    monkeypatch.setattr(one_layer, "find_aiter", lambda: AITER)
    assert select(CROSS, architecture="gfx942").backend == "ROCM_AITER_UNIFIED_ATTN"
    monkeypatch.setattr(one_layer, "find_aiter", lambda: NO_AITER)
    assert select(CROSS, architecture="gfx942").backend == "TRITON_ATTN"


# logging


def test_a_selection_that_skipped_is_one_line_at_info_with_reasons_at_debug_once(caplog):
    caplog.set_level(logging.DEBUG, "attn_optimized.selector")
    for _ in range(3):
        select(CROSS, architecture="gfx942", aiter=AITER)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["INFO", "DEBUG", "DEBUG"]
    message = lines[0][1]
    assert message == "encoder_decoder attention on gfx942: ROCM_AITER_UNIFIED_ATTN, skipping ROCM_ATTN and ROCM_AITER_FA"
    assert lines[1][1].startswith("ROCM_ATTN: cross-attention (ENCODER_DECODER) not supported: ")
    assert lines[2][1].startswith("ROCM_AITER_FA: cross-attention (ENCODER_DECODER) not supported: ")


def test_a_first_choice_is_not_logged_and_a_model_logs_each_kind_of_layer_once(caplog):
    caplog.set_level(logging.DEBUG, "attn_optimized.selector")
    on_mi300({f"layers.{i}": DECODER for i in range(4)})
    assert not caplog.records
    on_mi300({f"layers.{i}": DECODER.with_rules(sinks=True) for i in range(4)})
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG"]


# a model


def test_layers_that_share_nothing_get_what_they_get_alone():
    layers = {"encoder": ENCODER, "decoder": DECODER, "cross": CROSS}
    for name, assignment in on_mi300(layers).items():
        alone = select(layers[name], architecture="gfx942", aiter=AITER)
        assert assignment == Assignment(**vars(alone))


def test_another_layout_is_taken_for_one_footprint_before_anything_else():
    layers = {"decoder": DECODER, "cross": CROSS}
    chosen = on_mi300(layers, allocations=[layers])
    assert [(one.backend, one.layout) for one in chosen.values()] == [
        ("ROCM_ATTN", Layout.X_PACKED),
        ("ROCM_AITER_UNIFIED_ATTN", Layout.KV_FIRST_NHD),
    ]
    assert chosen["cross"].allocation_layout is None
    assert "KV_FIRST_NHD instead of BLOCKS_FIRST_NHD, for the footprint of decoder" in chosen["cross"].why
    check_shares(layers, chosen)
    assert on_mi300(layers, allocations=[layers]) == chosen


def test_seed_43945_a_blocks_first_cache_beside_planes_is_reinterpreted():
    layers = {"decoder": DECODER, "cross": replace(CROSS, layout=Layout.BLOCKS_FIRST_NHD)}
    chosen = on_mi300(layers, allocations=[layers])
    assert chosen["decoder"].layout is Layout.X_PACKED
    assert chosen["cross"].layout is Layout.BLOCKS_FIRST_NHD
    assert chosen["cross"].allocation_layout is Layout.X_PACKED
    assert "reinterpreted as planes of K and V, which decoder has in the same allocation" in chosen["cross"].why
    check_shares(layers, chosen)
    as_given = dict(chosen, cross=replace(chosen["cross"], allocation_layout=None))
    with pytest.raises(ContractError, match="footprint of decoder"):
        check_shares(layers, as_given)


def test_the_next_backend_is_taken_where_no_view_helps_and_the_skip_says_why():
    layers = {"decoder": DECODER, "cross": replace(CROSS, layout=Layout.BLOCKS_FIRST_HND)}
    chosen = on_mi300(layers, allocations=[layers])
    assert (chosen["decoder"].backend, chosen["decoder"].layout) == ("ROCM_AITER_FA", Layout.BLOCKS_FIRST_NHD)
    assert str(chosen["decoder"].skipped[0]) == (
        "ROCM_ATTN: one allocation with cross not supported: none of its layouts agrees with theirs"
    )
    check_shares(layers, chosen)


@pytest.mark.parametrize(
    "other", [{"block_size": 32}, {"head_size": 128}, {"num_kv_heads": 8}, {"dtype": torch.float32}, {"block_size": 48}]
)
def test_layers_whose_blocks_have_other_sizes_are_refused_by_name(other):
    layers = {"layers.0": DECODER, "layers.1": replace(DECODER, **other)}
    with pytest.raises(UnsupportedError, match=r"one allocation for layers\.0 and layers\.1 not supported") as refused:
        on_mi300(layers, allocations=[layers])
    assert "layers.1: " in refused.value.reason
    on_mi300(layers)


def test_a_choice_by_name_holds_for_its_layer_and_the_others_follow():
    layers = {"a": DECODER, "b": DECODER}
    wanted = {"b": "ROCM_AITER_UNIFIED_ATTN"}
    chosen = on_mi300(layers, allocations=[layers], backends=wanted)
    assert [one.backend for one in chosen.values()] == ["ROCM_ATTN", "ROCM_AITER_UNIFIED_ATTN"]
    assert chosen["b"].why.startswith("asked for by name")
    check_shares(layers, chosen)
    with pytest.raises(UnsupportedError, match="b: ROCM_AITER_UNIFIED_ATTN: non-causal decoder attention not supported"):
        on_mi300({"a": DECODER, "b": DECODER.with_rules(non_causal=True)}, backends=wanted)


def test_who_reads_another_layers_cache_addresses_it_as_that_one_does():
    reader = DECODER.with_rules(kv_sharing=True, sinks=True)
    layers = {"reader": reader, "writer": DECODER, "neighbour": CROSS}
    chosen = on_mi300(layers, allocations=[("writer", "neighbour")], kv_sharing={"reader": "writer"})
    check_shares(layers, chosen, ("writer", "reader"))
    assert chosen["reader"].backend == "ROCM_AITER_UNIFIED_ATTN"
    assert list(chosen) == list(layers)


def test_two_readers_agree_through_their_writer_wherever_it_stands():
    reader = DECODER.with_rules(kv_sharing=True)
    layers = {"first": reader, "second": reader.with_rules(sinks=True), "writer": DECODER}
    chosen = on_mi300(layers, allocations=[layers], kv_sharing={"first": "writer", "second": "writer"})
    check_shares(layers, chosen, ("writer", "first"), ("writer", "second"))
    assert [(one.backend, one.layout) for one in chosen.values()] == [
        ("ROCM_ATTN", Layout.X_PACKED),
        ("TRITON_ATTN", Layout.X_PACKED),
        ("ROCM_ATTN", Layout.X_PACKED),
    ]


READER = DECODER.with_rules(kv_sharing=True)
E4M3FN = {"kv_cache_dtype": torch.float8_e4m3fn, "scales": "tensor"}


FLOAT8_TOKENS = {**E4M3FN, "scales": "token"}
UNLIKE = [
    ("num_heads", {}, {"num_heads": 32}, None),
    ("num_kv_heads", {}, {"num_kv_heads": 8, "head_size": 128}, "num_kv_heads"),
    ("head_size", {}, {"head_size": 128, "block_size": 8}, "head_size"),
    ("dtype", {}, {"dtype": torch.float16}, "kv_cache_dtype"),
    ("dtype", E4M3FN, {**E4M3FN, "dtype": torch.float16, "num_heads": 32}, None),
    ("attn_type", {}, {"attn_type": AttentionType.ENCODER_DECODER}, "attn_type"),
    ("block_size", {}, {"block_size": 32}, "block_size"),
    ("layout", {}, {"layout": Layout.KV_FIRST_HND}, None),
    ("kv_cache_dtype", {}, E4M3FN, "kv_cache_dtype"),
    ("kv_cache_dtype", E4M3FN, {**E4M3FN, "kv_cache_dtype": torch.float8_e4m3fnuz}, "kv_cache_dtype"),
    ("kv_cache_dtype", FLOAT8_TOKENS, {"kv_cache_dtype": torch.int8, "scales": "token"}, "kv_cache_dtype"),
    ("scales", E4M3FN, {**E4M3FN, "scales": "head"}, "scales"),
    ("output_dtype", {}, {"output_dtype": torch.float8_e4m3fn}, None),
    ("rules", {}, {"rules": {"kv_sharing": True, "sinks": True}}, None),
]
"""A field of AttentionConfig, the writer, the reader, in which the field is another one, and by which field it takes the bytes
for something else. No backend of a layer that has a top_k reads another layer's cache."""


@pytest.mark.parametrize(("written", "read", "refused"), [case[1:] for case in UNLIKE], ids=[case[0] for case in UNLIKE])
def test_a_reader_that_takes_the_bytes_for_something_else_is_refused(written, read, refused):
    layers = {"writer": replace(DECODER, **written), "reader": replace(READER, **read)}
    if refused:
        with pytest.raises(ContractError, match=f"kv_sharing: got layer reader with {refused} .*, that of writer"):
            on_mi300(layers, kv_sharing={"reader": "writer"})
    else:
        check_shares(layers, on_mi300(layers, kv_sharing={"reader": "writer"}), ("writer", "reader"))


def test_each_field_of_two_layers_that_share_is_made_unlike():
    assert {name for name, *_ in UNLIKE} == {field.name for field in fields(AttentionConfig)} - {"top_k"}


WRITERS = [DECODER, DECODER.with_rules(sinks=True), replace(DECODER, layout=Layout.KV_FIRST_HND)]


@pytest.mark.parametrize("aiter", [AITER, NO_AITER], ids=["aiter", "no aiter"])
@pytest.mark.parametrize("neighbour", [CROSS, replace(CROSS, layout=Layout.BLOCKS_FIRST_NHD)], ids=["any", "blocks first"])
def test_nothing_that_fits_is_cheaper(neighbour, aiter):
    for writer, reader in itertools.product(WRITERS, repeat=2):
        layers = {"writer": writer, "reader": reader.with_rules(kv_sharing=True), "neighbour": neighbour}
        places = {
            name: list(model._places(one_layer.answers_of(config, "gfx942", aiter), config)) for name, config in layers.items()
        }
        costs = [
            model._cost(chosen)
            for combination in itertools.product(*places.values())
            if fits(layers, chosen := dict(zip(layers, combination, strict=True)))
        ]
        shared = {"allocations": [("writer", "neighbour")], "kv_sharing": {"reader": "writer"}}
        if not costs:
            with pytest.raises(UnsupportedError, match="one allocation for writer, neighbour and reader"):
                select_model(layers, **shared, architecture="gfx942", aiter=aiter)
            continue
        assignments = select_model(layers, **shared, architecture="gfx942", aiter=aiter)
        check_shares(layers, assignments, ("writer", "reader"))
        assert model._cost({name: place_of(assignments[name], places[name]) for name in layers}) == min(costs)


def fits(layers, places) -> bool:
    writer, reader, neighbour = (view_of(assigned(place.addressed_as), layers[name]) for name, place in places.items())
    return have_same_elements(writer, reader) and have_same_footprint(writer, neighbour)


have_same_elements, have_same_footprint = functools.cache(same_elements), functools.cache(same_footprint)


def place_of(assignment: Assignment, places):
    asked = assignment.backend, assignment.layout, assignment.allocation_layout is not None
    return next(place for place in places if (place.backend, place.layout, place.is_reinterpreted) == asked)


def alone_and_shared(config: AttentionConfig) -> list[tuple[dict[str, AttentionConfig], dict]]:
    reader = config.with_rules(kv_sharing=True)
    return [
        ({"a": config}, {}),
        ({"a": config, "b": config}, {"allocations": [("a", "b")]}),
        ({"a": config, "b": reader}, {"kv_sharing": {"b": "a"}}),
    ]


@pytest.mark.parametrize(
    "sizes",
    [{"block_size": 1 << 29}, {"num_heads": 2**31 - 1, "num_kv_heads": 2**31 - 1, "head_size": 256}],
)
def test_no_element_of_a_block_is_listed(sizes):
    """Such a block has more elements than any memory."""
    for layers, shared in alone_and_shared(replace(DECODER, **sizes)):
        chosen = on_mi300(layers, **shared)
        assert {one.layout for one in chosen.values()} == {Layout.X_PACKED}


DENSE = [layout for layout in Layout if not (layout.has_inline_scales or layout.has_latent_value)]


@pytest.mark.parametrize("element", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8, 16, 24])
def test_dense_caches_are_compared_as_the_contract_compares_their_views(element, block_size):
    x = 16 // element.itemsize
    for heads, head_size in itertools.product((1, 2, 3), (1, 2, 4, 8, 16, 24)):
        config = AttentionConfig(num_heads=6, num_kv_heads=heads, head_size=head_size, dtype=element, block_size=block_size)
        is_packable = head_size % x == 0 and block_size % x == 0
        layouts = [layout for layout in DENSE if is_packable or not layout.is_x_packed]
        views = {layout: view_of(assigned(layout), config) for layout in layouts}
        for a, b in itertools.combinations_with_replacement(layouts, 2):
            assert model._same_elements(a, b, config) == same_elements(views[a], views[b]), (a, b, config)
            has_one = model._footprint(a, config) == model._footprint(b, config)
            assert has_one == same_footprint(views[a], views[b]), (a, b, config)


def test_footprints_of_other_sizes_are_compared_as_the_contract_compares_them():
    sizes = itertools.product((1, 2), (8, 16), (4, 8, 16), (torch.bfloat16, torch.float32))
    places = {
        (layout, config): view_of(assigned(layout), config)
        for heads, head_size, block_size, dtype in sizes
        for config in [
            AttentionConfig(num_heads=2, num_kv_heads=heads, head_size=head_size, dtype=dtype, block_size=block_size)
        ]
        for layout in (Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD, Layout.CONTENT_PACKED)
    }
    for (a, one), (b, other) in itertools.combinations(places.items(), 2):
        assert (model._footprint(*a) == model._footprint(*b)) == same_footprint(one, other), (a, b)


def assigned(layout: Layout) -> Assignment:
    return Assignment(backend="", layout=layout, why="", skipped=())


HOLDS = {"heads": DECODER, "more heads": replace(DECODER, num_heads=32, num_kv_heads=32), "nothing": ENCODER}
LAYERS = st.lists(st.tuples(st.sampled_from(tuple(HOLDS)), st.booleans()), min_size=1, max_size=5)
"""For each layer what its cache holds, or would hold, and whether the layer reads the cache of another one."""


@settings(max_examples=200)
@given(kinds=LAYERS, told=st.dictionaries(st.integers(0, 4), st.integers(0, 4)), is_told=st.booleans())
def test_a_model_is_refused_unless_each_reader_is_told_of_a_cache_that_it_can_read(kinds, told, is_told):
    """And nobody else is: not who has a cache of its own, nor whose writer is a reader itself."""
    kinds = [(holds, reads and holds != "nothing") for holds, reads in kinds]
    layers = {
        str(n): HOLDS[holds].with_rules(kv_sharing=True) if reads else HOLDS[holds] for n, (holds, reads) in enumerate(kinds)
    }
    written = {str(n): holds for n, (holds, reads) in enumerate(kinds) if not reads and holds != "nothing"}
    readers = {str(n): holds for n, (holds, reads) in enumerate(kinds) if reads}
    kv_sharing = {str(reader): str(writer) for reader, writer in told.items() if str(reader) in layers}
    if is_told:  # of the first that fits
        fitting = {name: [other for other in written if written[other] == holds] for name, holds in readers.items()}
        kv_sharing = {name: others[0] for name, others in fitting.items() if others} | (kv_sharing if len(told) == 1 else {})
    is_right = kv_sharing.keys() == readers.keys()
    is_right = is_right and all(written.get(kv_sharing[name]) == holds for name, holds in readers.items())
    if is_right:
        assert list(on_mi300(layers, kv_sharing=kv_sharing)) == list(layers)
        return
    with pytest.raises(ContractError):
        on_mi300(layers, kv_sharing=kv_sharing)


@pytest.mark.parametrize(
    ("layers", "shared", "argument"),
    [
        ({"a": DECODER}, {"allocations": [("a", "b")]}, "allocations"),
        ({"a": DECODER}, {"allocations": [()]}, "allocations"),
        ({"a": DECODER}, {"allocations": [("a", "a")]}, "allocations"),
        ({"a": DECODER, "e": ENCODER}, {"allocations": [("a", "e")]}, "allocations"),
        ({"a": DECODER, "b": DECODER}, {"allocations": [("a",), ("a", "b")]}, "allocations"),
        ({"a": DECODER, "b": READER}, {"allocations": [("a",), ("b",)], "kv_sharing": {"b": "a"}}, "allocations"),
        ({"a": DECODER}, {"backends": {"b": "TRITON_ATTN"}}, "backends"),
        ({"a": DECODER}, {"backends": {"a": "TRITON"}}, "backend"),
        ({"a": DECODER, "b": READER}, {"kv_sharing": {"b": []}}, "kv_sharing"),
        ({"a": DECODER}, {"kv_sharing": None}, "kv_sharing"),
        ({"a": DECODER, "b": DECODER}, {"allocations": ["ab"]}, "allocations"),
        ({"a": DECODER}, {"allocations": None}, "allocations"),
        ({"a": DECODER}, {"allocations": [5]}, "allocations"),
        ({"a": DECODER}, {"allocations": [iter(["a"])]}, "allocations"),
        ({"a": DECODER}, {"allocations": [[[]]]}, "allocations"),
        ({"a": DECODER}, {"allocations": torch.tensor(0.0)}, "allocations"),
        ({"a": DECODER}, {"allocations": [[5]]}, "allocations"),
        ({"a": DECODER}, {"kv_sharing": {5: "a"}}, "kv_sharing"),
        ({"a": DECODER}, {"backends": {5: "TRITON_ATTN"}}, "backends"),
        ({5: DECODER}, {}, "layers"),
        ({None: DECODER, "b": DECODER}, {"allocations": [("b",)]}, "layers"),
        ({"a": DECODER}, {"backends": ["a"]}, "backends"),
        ({"a": DECODER}, {"backends": {"a": []}}, "backend"),
        ({"a": None}, {}, "layers['a']"),
        ([DECODER], {}, "layers"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(layers, shared, argument):
    with pytest.raises(ContractError) as refused:
        on_mi300(layers, **shared)
    assert refused.value.argument == argument


def test_rows_of_two_widths_share_an_allocation_with_rows_of_as_many_bytes():
    """192 and 128 dims of two heads are as many as 160 and 160, and not as 192 and 192."""
    as_wide = replace(TWO_WIDTHS, head_size=160, rules={})
    layers = {"two widths": TWO_WIDTHS, "one width": as_wide}
    chosen = on_mi300(layers, allocations=[layers])
    assert chosen["two widths"].backend == "TRITON_ATTN_DIFFKV"
    wider = replace(as_wide, head_size=192)
    with pytest.raises(UnsupportedError, match="one allocation for two widths and one width"):
        on_mi300({**layers, "one width": wider}, allocations=[layers])


def test_a_reader_of_two_widths_reads_what_has_both():
    reader = TWO_WIDTHS.with_rules(kv_sharing=True, sinks=True)
    chosen = on_mi300({"writer": TWO_WIDTHS, "reader": reader}, kv_sharing={"reader": "writer"})
    assert {one.backend for one in chosen.values()} == {"TRITON_ATTN_DIFFKV"}
    with pytest.raises(ContractError, match="head_size_v"):
        on_mi300({"writer": TWO_WIDTHS.with_rules(head_size_v=96), "reader": reader}, kv_sharing={"reader": "writer"})
