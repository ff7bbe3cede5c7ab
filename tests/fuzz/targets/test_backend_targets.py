"""Backends are fuzzed within what they serve, and a declaration that promises too much or too little is found."""

import pytest
import torch
from attn_contract import AttentionConfig, AttentionType, Layer
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import written_slots
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.strategies import cases
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.backends.layers import BackendLayers, installed, named
from attn_fuzz.targets.backends.mla import BACKEND_TRITON_MLA
from attn_fuzz.targets.backends.plain import BACKEND_ROCM_ATTN, BACKEND_TRITON, BACKEND_TRITON_DIFFKV
from attn_fuzz.targets.backends.sparse import BACKEND_MINIMAX_M3_SPARSE, BACKEND_ROCM_AITER_MLA_SPARSE
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_optimized.backends.triton_attn import TritonAttentionImpl
from hypothesis import HealthCheck, given, settings

from tests.support.mostly_nightly import mostly_nightly


@pytest.mark.parametrize(
    "target",
    [
        *("backend-triton", "backend-rocm-attn", "backend-triton-diffkv"),
        *("backend-rocm-aiter-mla-sparse", "backend-minimax-m3-sparse"),
    ],
)
def test_a_backend_agrees_within_what_it_declares_and_refuses_the_rest(target, fuzz_apart):
    progress = fuzz_apart(target, examples=6)
    assert progress.failure is None, progress.failure.verdict.message


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("place", "find", "replace"),
    [
        ("base.AttentionImpl.do_kv_cache_update", "self.kv_sharing_target_layer_name is None", "True"),
        ("base._must_reinterpret", "allocation_layout in PLANES_FIRST", "allocation_layout is Layout.KV_FIRST_NHD"),
        ("metadata.CommonAttentionMetadata.batch", "qq_bias=self.qq_bias if decoder else None", "qq_bias=self.qq_bias"),
    ],
    ids=[
        "a reader of another layer's cache writes it",
        "a layer beside packed planes keeps blocks of K and V",
        "a layer that is no decoder's is given the decoders' qq_bias",
    ],
)
def test_a_fault_of_a_layer_is_found(place, find, replace, finds_fault):
    finds_fault("backend-triton", f"attn_optimized.backends.{place}", find, replace, examples=100, seed=2)


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["backend-rocm-aiter-mla-sparse", "backend-minimax-m3-sparse"])
@pytest.mark.parametrize(
    "wrong",
    [
        "buffer.clamp(min=0)",
        "buffer.roll(1, dims=1)",
        "buffer[..., : buffer.shape[2] // 2]",
        "buffer.as_strided(buffer.shape, (buffer.stride(0), buffer.shape[2], 1))",
    ],
    ids=["-1 is unit 0", "rows of the tokens before", "half of the selection", "rows without what lies between them"],
)
def test_a_fault_of_a_selection_is_found(target, wrong, finds_fault):
    find, replace = (f"dataclasses.replace(step, selected={selected})" for selected in ("buffer", wrong))
    finds_fault(target, "attn_optimized.backends.topk_indices.selecting", find, replace, examples=100, seed=3)


SELECTING = (BACKEND_ROCM_AITER_MLA_SPARSE, BACKEND_MINIMAX_M3_SPARSE)
OURS = (BACKEND_TRITON, BACKEND_ROCM_ATTN, BACKEND_TRITON_DIFFKV, BACKEND_TRITON_MLA, *SELECTING)


@pytest.mark.parametrize("target", mostly_nightly(OURS, OURS[::2]), ids=lambda target: target.name)
def test_sizes_beyond_the_bounds_of_a_backend_are_drawn_and_refused_by_what_it_declares(target):
    support, capabilities, met = target.support("cpu"), target.declares("cpu"), set()
    refused = {f"{WORDS[name]} {size}" for name, sizes in support.refused_sizes.items() for size in sizes}

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=cases(target.name, support))
    def draw(case):
        if (beyond := support.beyond(case)) in refused:
            met.add(beyond)
            assert capabilities.refusals(config_of(case)), beyond

    draw()
    assert met


WORDS = {"head_sizes": "head size", "v_head_sizes": "a V of width", "widths": "latent widths", "block_sizes": "block size"}


@pytest.mark.nightly
def test_a_step_that_is_not_looked_at_after_the_first_one_is_found(finds_fault):
    place = "attn_optimized.backends.base.AttentionImplBase._check_step"
    finds_fault("backend-rocm-attn", place, "key in self._served", "bool(self._served)", examples=1000)


@pytest.mark.nightly
def test_a_declaration_that_promises_too_much_is_found(fuzz_apart):
    progress = fuzz_apart("planted_backends:CLAIMS_ROPE", examples=500)
    assert progress.failure is not None, f"survived {progress.examples} examples"
    assert progress.failure.case.rope is not None


def test_a_layer_that_checks_no_values_is_judged_as_well_as_one_that_does(monkeypatch):
    made = []
    make = TritonAttentionImpl.__init__
    monkeypatch.setattr(
        TritonAttentionImpl, "__init__", lambda self, *a, **k: (made.append(k["validate"]), make(self, *a, **k))[1]
    )
    layers = BackendLayers(named("TRITON_ATTN"), installed)
    for heads in range(1, 21):
        layer = Layer(num_heads=heads, num_kv_heads=1, head_size=16, scale=0.25, attn_type=AttentionType.ENCODER)
        layers._impl(layer, torch.zeros(1, heads, 16), None)
    assert 5 < sum(made) < 15


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(case=cases("reference-fp32", REFERENCE_FP32.support("cpu")))
def test_a_case_asks_for_what_its_layer_and_batch_ask_for(case):
    step = tensors.build(case)
    # a step that has nothing to write rotates nothing, and its layer does nevertheless
    rotates = any(write.rotation for write in step.writes) if written_slots(case) else case.rope is not None
    assert config_of(case) == AttentionConfig.of(
        step.layer,
        DTYPES[case.dtype],
        block_size=step.view.block_size if step.view else None,
        batch=step.batch,
        lse=step.lse is not None,
        output_dtype=step.out.dtype if case.output_dtype else None,
        rope=rotates,
    )
