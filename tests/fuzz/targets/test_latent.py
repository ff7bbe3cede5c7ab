"""Latent caches and V of another width: what is drawn, that planted faults of such layers are found, and that nobody else
draws them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import attn_reference
import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz.cases import allocations, case_file, contradictions, earlier, tensors
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.cases.features import FEATURES
from attn_fuzz.corpus import adapting
from attn_fuzz.report import standalone
from attn_fuzz.report.drawn import can_have
from attn_fuzz.run import shrink
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.strategies import cases
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import registry
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING, WITH_LATENT, LatentSizes, Support
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import MODE_OF_FORMAT
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.latent_formats import latent_sizes
from tests.support.small_supports import DENSE, LATENT, SCALED, SMALL, WITH_SCALES

replace = msgspec.structs.replace


@functools.cache
def draw(support: Support, examples: int = 150) -> tuple[Case, ...]:
    found, tally = [], Tally()

    @seed(1)
    @settings(INDEPENDENT, phases=[Phase.generate], suppress_health_check=list(HealthCheck), max_examples=examples)
    @given(cases("reference-fp32", support, refuses=False, tally=tally))
    def collect(case):
        found.append(case)
        tally.add(case)

    collect()
    return tuple(found)


def latent_cases() -> Iterator[Case]:
    return (case for case in draw(LATENT) if case.has_work)


VISITED: dict[str, Callable[[Case], object]] = {
    **{f"widths {pair}": lambda case, pair=pair: (case.v_head_size, case.head_size - case.v_head_size) == pair
       for pair in LatentSizes().widths},
    **{f"{size} query heads": lambda case, size=size: case.group_size == size for size in LatentSizes().group_sizes},
    **{f"blocks of {size}": lambda case, size=size: case.cache.block_size == size for size in LatentSizes().block_sizes},
    **{f"cache of {dtype}": lambda case, dtype=dtype: case.cache.dtype == dtype for dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz")},
    **{f"{name} of a latent layer": lambda case, name=name: name in case.rules
       for name in ("window", "logits_soft_cap", "sinks", "chunked_local", "sink_tokens", "qq_bias", "bidirectional_ranges",
                    "alibi_slopes", "non_causal", "per_request_causal", "lse")},
    "padded rows": lambda case: case.cache.slot_padding,
    "padded blocks": lambda case: case.cache.padding,
    "kv_c and k_pe of unlike strides": lambda case: case.unlike_strides and case.writes,
    "another layer's write": lambda case: case.cache.neighbour is Layout.LATENT,
    "drafts": lambda case: any(1 < r.query_len < r.seq_len for r in case.requests),
    "infinities that saturate": lambda case: case.saturated,
}  # fmt: skip


@pytest.mark.parametrize("name", VISITED)
def test_latent_layers_are_drawn_with(name):
    drawn = draw(LATENT)
    assert all(case.has_latent_cache and case.head_size_v for case in drawn)
    assert any(VISITED[name](case) for case in drawn)


def _visited_with_scales() -> Iterator[tuple[Layout, str, Callable[[Case], object]]]:
    for layout, form in LATENT_FORMATS.items():
        for v_head_size, rest in WITH_SCALES[layout].latent.widths[:2]:
            widths = {"v_head_size": v_head_size, "head_size": v_head_size + rest}
            yield layout, f"widths {widths}", lambda case, of=widths: {name: getattr(case, name) for name in of} == of
        yield layout, "another layer's write", lambda case, of=layout: case.cache.neighbour is of
        names = ["cache of fp8_e4m3fn", "cache of fp8_e4m3fnuz", "padded blocks", "drafts", "infinities that saturate"]
        names += ["kv_c and k_pe of unlike strides"] if form.kept_dims is None else []
        names += ["window of a latent layer"] if form.scales_apart else ["padded rows", "window of a latent layer"]
        for name in names:
            yield layout, name, VISITED[name]
        if form.scales_apart:
            yield layout, "pages that padding ends", lambda case: case.cache.num_blocks > 1 and case.cache.padding == 0


@pytest.mark.parametrize(
    ("layout", "name", "holds"), [pytest.param(*one, id=f"{one[0]} {one[1]}") for one in _visited_with_scales()]
)
def test_formats_with_scales_are_drawn_with(layout, name, holds):
    """Never with widths that the format cannot have, nor with padded rows in dense pages."""
    drawn = draw(WITH_SCALES[layout])
    assert all((case.dtype, case.cache.layout, case.cache.scales) == ("bfloat16", layout, None) for case in drawn)
    for case in drawn:
        layout.check_widths(case.head_size, case.head_size_v)
        unit = layout.block_alignment(case.head_size, case.head_size_v)
        # one block may have any stride
        assert case.cache.num_blocks == 1 or allocations.cache_view(case, case.cache).block_stride % unit == 0
        assert not (case.cache.slot_padding and layout.has_dense_pages)
    assert any(holds(case) for case in drawn)


def test_a_target_of_all_latent_layouts_is_drawn_all():
    latent = tuple(layout for layout in Layout if layout.has_latent_value)
    drawn = draw(dataclasses.replace(LATENT, layouts=latent, dtypes=("float16", "bfloat16")))
    assert {(case.cache.layout, case.dtype) for case in drawn} == {
        (Layout.LATENT, "float16"),
        *((layout, "bfloat16") for layout in latent),
    }
    assert any(case.cache.dtype is None for case in drawn)


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_unused_slots_of_formats_with_scales_hold_nan_of_each_type(layout, finite):
    """Or finite numbers: bytes that are NaN in float8 would be large numbers in the two other types."""
    form = LATENT_FORMATS[layout]
    case = next(case for case in draw(WITH_SCALES[layout]) if case.cache.num_blocks > 1 and case.cache.block_size > 1)
    raw = tensors.build(replace(case, requests=(), unwritten=(), finite_slots=finite)).raw
    view = allocations.cache_view(case, case.cache)
    last = view.element(0, view.num_blocks - 1, view.block_size - 1, 0, torch.arange(view.row_size))
    quantized, scales_size = (size(case.head_size, case.head_size_v) for size in (form.quantized_size, form.scales_size))
    kept_size = view.row_size - quantized - scales_size
    sizes = [quantized, kept_size, scales_size] if form.scales_apart else [quantized, scales_size, kept_size]
    codes, *rest = raw.view(torch.uint8)[last].split(sizes)
    kept, scales = rest if form.scales_apart else reversed(rest)
    assert codes.view(raw.dtype).float().isfinite().tolist() == [finite] * quantized
    assert kept.clone().view(torch.bfloat16).isfinite().tolist() == [finite] * (case.head_size - quantized)
    if form.scale_dtype == torch.float32:
        assert scales.clone().view(torch.float32).isfinite().tolist() == [finite] * (quantized // form.scale_dims)
    else:
        assert all((scale == 255) != finite for scale in scales.tolist())


@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_the_kernels_agree_over_formats_with_scales(layout):
    target = registry.load(f"triton-latent@{MODE_OF_FORMAT[layout]}")
    for case in draw(dataclasses.replace(WITH_SCALES[layout], max_seq_len=40, max_tokens=8), 20)[:5]:
        verdict = try_case(replace(case, target=target.name), target, "cpu")
        assert verdict.kind == "agree", verdict.message


def test_dense_v_is_drawn_wider_and_narrower():
    sizes = {(case.v_head_size > case.head_size) - (case.v_head_size < case.head_size) for case in draw(DENSE)}
    assert sizes == {-1, 0, 1}


def test_a_target_of_all_layouts_has_both_kinds_of_caches():
    drawn = [case for case in draw(SMALL) if case.cache is not None]
    assert {case.has_latent_cache for case in drawn} == {True, False}
    assert all(case.head_size_v is not None for case in drawn if case.has_latent_cache)
    packed = [case for case in drawn if case.head_size_v is not None and not case.has_latent_cache]
    assert {case.cache.layout for case in packed} == {Layout.CONTENT_PACKED}
    assert {case.v_head_size > case.head_size for case in packed} == {True, False}


PACKED = dataclasses.replace(SMALL, attn_types=(AttentionType.DECODER,), layouts=(Layout.CONTENT_PACKED,))
PACKED_VISITED: dict[str, Callable[[Case], object]] = {
    "one width": lambda case: case.head_size_v is None,
    "a narrower V": lambda case: case.v_head_size < case.head_size,
    "a wider V": lambda case: case.v_head_size > case.head_size,
    "several KV heads": lambda case: case.head_size_v and case.num_kv_heads > 1,
    "several layers": lambda case: case.head_size_v and case.cache.num_layers > 1,
    "slots before heads": lambda case: case.head_size_v and case.cache.order == "BLNHC",
    "a rotation": lambda case: case.head_size_v and case.rope,
    "rows of one tensor": lambda case: case.head_size_v and case.fused_qkv and case.writes,
    **{
        f"a cache of {dtype}": lambda case, dtype=dtype: case.head_size_v and case.cache.dtype == dtype
        for dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz", "int8")
    },
    **{
        name: lambda case, name=name: case.head_size_v and name in case.rules
        for name in ("window", "sinks", "alibi_slopes", "qq_bias", "chunked_local", "bidirectional_ranges", "lse")
    },
}


@pytest.mark.parametrize("name", PACKED_VISITED)
def test_rows_of_two_widths_are_drawn_with(name):
    assert any(PACKED_VISITED[name](case) for case in draw(PACKED, 300))


def test_widths_of_models_are_drawn():
    support = dataclasses.replace(PACKED, head_sizes=WITH_LATENT.head_sizes)
    assert sum((case.head_size, case.head_size_v) == (192, 128) for case in draw(support)) > 3


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["triton-latent", "backend-triton-diffkv"])
def test_rows_of_bytes_whose_v_begins_at_an_odd_address_are_drawn(name):
    """A tile of few rows loads V by two dims at once, but where rows begin at odd addresses."""

    def loads_no_pairs(case: Case) -> bool:
        has_bytes = case.cache is not None and case.cache.dtype is not None and not case.has_latent_cache
        rows = max((request.query_len for request in case.requests), default=0) * case.group_size
        return has_bytes and case.head_size % 2 == 1 and case.v_head_size % 2 == 0 and 0 < rows <= 16

    assert sum(map(loads_no_pairs, draw(registry.load(name).support("cpu"), 300))) > 1


@pytest.mark.parametrize("name", [name for name in registry.battery() if name != "reference-fp32"])
def test_nobody_who_does_not_name_them_draws_them(name):
    """Not even to see a refusal: what a seed draws for the target has not changed."""
    support = registry.load(name).support("cpu")
    if "head_size_v" in support.rules:
        return
    for widened in (support, support.widened(), *support.widenings()):
        assert "head_size_v" not in widened.rules
        assert not any(layout.has_latent_value for layout in widened.layouts)


def test_what_a_latent_cache_alone_has_is_not_missed_in_draws_of_others():
    assert {feature.name for feature in FEATURES if not can_have(EVERYTHING, feature)} == {
        "head_size_v",
        *(layout for layout in Layout if layout.has_latent_value),
        "padded rows",
    }
    assert all(can_have(WITH_LATENT, feature) for feature in FEATURES)


CONTRADICTIONS = [
    ({"head_size_v": None}, "head_size_v: got None, expected a width: layout LATENT is latent"),
    ({"head_size_v": 99}, "head_size_v: a latent cache has one KV head"),
    ({"num_kv_heads": 2}, "head_size_v: a latent cache has one KV head"),
    ({"cache": {"planes": True}}, "cache: a latent cache has no plane of V"),
    (
        {"cache": {"dtype": "fp8_e4m3fn", "scales": "token"}},
        "cache: a latent cache has no plane of V",
    ),
    (
        {"cache": {"layout": Layout.BLOCKS_FIRST_NHD}},
        "head_size_v: got 32, expected null: layout BLOCKS_FIRST_NHD is not latent",
    ),
    ({"cache": {"writer": Layout.KV_FIRST_NHD}}, "cache.writer: KV_FIRST_NHD cannot address the elements of LATENT"),
    ({"cache": {"neighbour": Layout.KV_FIRST_NHD}}, "cache.neighbour: KV_FIRST_NHD cannot have the footprint of LATENT"),
]


def assert_contradicts(case: Case, changes: dict[str, Any], message: str) -> None:
    """A case contradicts itself when some of its fields are changed, or of its cache's, and not before."""
    contradictions.check(case)
    fields = {name: replace(case.cache, **value) if name == "cache" else value for name, value in changes.items()}
    with pytest.raises(CaseError) as refused:
        contradictions.check(replace(case, **fields))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS, ids=[message for _, message in CONTRADICTIONS])
def test_cases_that_contradict_themselves(changes, message):
    case = replace(next(latent_cases()), target="anything", rope=None, saturated=False)
    case = replace(case, cache=replace(case.cache, dtype=None, scales=None, writer=None, neighbour=None))
    assert_contradicts(case, changes, message)


def _contradictions_with_scales() -> Iterator[tuple[Layout, dict[str, Any], str]]:
    for layout, form in LATENT_FORMATS.items():
        yield layout, {"dtype": "float16"}, f"dtype: bfloat16 in layout {layout}"
        yield layout, {"cache": {"dtype": None}}, f"cache.dtype: {layout} holds scales, so it is quantized"
        yield layout, {"cache": {"dtype": "int8"}}, "cache: a latent cache has no plane of V"
        yield (
            layout,
            {"cache": {"scales": "tensor"}},
            "cache.scales: expected null exactly if the cache is not quantized, or each row",
        )
        footprint = f"cache.neighbour: LATENT cannot have the footprint of {layout}"
        yield layout, {"cache": {"neighbour": Layout.LATENT}}, footprint
        if form.kept_dims is None:
            yield layout, {"head_size_v": 1}, f"head_size_v: got 1, expected a multiple of {form.scale_dims} in layout {layout}"
        else:
            yield layout, {"head_size_v": 1}, f"head_size_v: got 1, expected head_size ({form.scale_dims + form.kept_dims}) in"
        if form.alignment > 1:
            yield layout, {"cache": {"padding": 1}}, f"cache.layout: {layout} needs"
        if form.scales_apart:
            yield (
                layout,
                {"cache": {"slot_padding": 4}},
                "cache.slot_padding: only rows of a latent cache, or of K and V apart",
            )


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [pytest.param(*one, id=f"{one[0]} {one[2]}") for one in _contradictions_with_scales()],
)
def test_cases_of_formats_with_scales_that_contradict_themselves(layout, changes, message):
    sizes = latent_sizes(layout)
    case = next(case for case in draw(WITH_SCALES[layout]) if case.head_size_v == sizes["head_size_v"])
    case = replace(case, target="anything", saturated=False, cache=replace(case.cache, writer=None, neighbour=None))
    assert_contradicts(case, changes, message)


def test_dense_pages_have_no_gaps():
    case = next(case for case in draw(SMALL) if case.cache is not None and case.cache.layout.is_x_packed)
    with pytest.raises(CaseError, match=r"^cache\.slot_padding: only rows of a latent cache, or of K and V apart, have it"):
        contradictions.check(replace(case, cache=replace(case.cache, slot_padding=8)))


@pytest.mark.parametrize("support", [LATENT, SCALED, DENSE], ids=["latent", "scaled", "dense"])
def test_the_reference_in_float32_agrees_with_itself(support):
    for case in draw(support)[:8]:
        verdict = try_case(case, REFERENCE_FP32, "cpu")
        assert verdict.kind == "agree", verdict.message


# --- planted faults ---


def last_elements(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """V is taken from the end of K's row, which is its rotated part."""
    rotated = layer.head_size - layer.v_head_size
    REFERENCE_FP32.attention(q.roll(-rotated, 2), k, v, kv_cache.roll(-rotated, 2).contiguous(), layer, batch, out=out, lse=lse)


def strides_of_kv_c(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    """k_pe is read with the stride of kv_c's rows (local-inference-lab/vllm #15)."""
    rows = min(len(k_pe), (k_pe.untyped_storage().size() // k_pe.element_size() - k_pe.storage_offset()) // kv_c.stride(0))
    wrong = k_pe.as_strided((rows, k_pe.shape[1]), (kv_c.stride(0), 1), k_pe.storage_offset())
    attn_reference.write_latent_cache(kv_c[:rows], wrong, kv_cache, layer, slot_mapping[:rows])


def planted(fault: Callable[..., None], support: Support = LATENT) -> Target:
    fields = {"attention" if fault is last_elements else "write_latent_cache": fault}
    return dataclasses.replace(REFERENCE_FP32, name="planted", support=lambda device: support, **fields)


def first_failure(fault: Callable[..., None], support: Support = LATENT) -> Case | None:
    with_work = (case for case in draw(support) if case.has_work)
    return next((case for case in with_work if try_case(case, planted(fault, support), "cpu").failed), None)


@pytest.mark.parametrize("support", [LATENT, SCALED], ids=["latent", "scaled"])
def test_a_wrong_write_of_a_latent_cache_is_found(support):
    assert first_failure(strides_of_kv_c, support) is not None


def test_a_failure_shrinks_to_a_small_latent_layer():
    """The rows of one head and one request, of the narrowest pair of widths that still has a rotated part."""
    found, target = first_failure(last_elements), planted(last_elements)
    small, is_minimal = shrink.shrink(found, LATENT, lambda case: try_case(case, target, "cpu").failed, lambda: True)
    assert is_minimal
    assert small.has_latent_cache
    assert (len(small.requests), small.group_size, small.cache.slot_padding) == (1, 1, 0)
    assert (small.v_head_size, small.head_size - small.v_head_size) in ((8, 32), (16, 8))


# --- cases in files ---


def test_a_case_without_the_field_is_the_file_that_it_was():
    """Files of before have no head_size_v, and are written as they were."""
    case = next(case for case in draw(SMALL) if case.head_size_v is None)
    text = case_file.dumps(case)
    assert "head_size_v" not in text
    assert case_file.loads(text) == case
    latent = next(latent_cases())
    assert case_file.loads(case_file.dumps(latent)) == latent


def test_a_latent_case_is_adapted_to_targets_of_latent_caches_alone():
    case = replace(next(latent_cases()), group_size=5)
    sizes = LatentSizes(widths=((512, 64),), group_sizes=(16, 128), block_sizes=(64,))
    adapted, _ = adapting.adapted(case, dataclasses.replace(LATENT, latent=sizes))
    assert (adapted.v_head_size, adapted.head_size, adapted.group_size, adapted.cache.block_size) == (512, 576, 16, 64)
    nobody, reason = adapting.adapted(case, EVERYTHING)
    assert (nobody, reason) == (None, "a head size of V other than K's (head_size_v)")


@pytest.mark.parametrize("support", [LATENT, SCALED], ids=["latent", "scaled"])
def test_the_script_of_a_case_runs_it_and_its_writes(support, tmp_path, script_ends):
    case = next(case for case in draw(support) if case.has_work and case.writes and any(r.query_len for r in case.requests))
    verdict = try_case(case, REFERENCE_FP32, "cpu")
    path = tmp_path / "script.py"
    path.write_text(standalone.script(case, verdict))
    assert script_ends(path) == 0


@pytest.mark.parametrize("change", ["head_size_v", "no head_size_v", "cache strides", "dtype", "contents"])
def test_earlier_calls_of_latent_layers_are_right_calls(change):
    """They are other calls of the same contract, and leave nothing behind."""
    for case in [case for case in draw(LATENT)[:20] if case.values.kind == "random"]:
        step = tensors.build(case)
        with earlier.changed(step, change) as other:
            if other is not None:
                attn_reference.paged_attention(other.q, other.kv_cache, other.layer, other.batch, out=other.out)
