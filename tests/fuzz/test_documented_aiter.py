"""The adapter of AITER, and its backends agree on the documented AITER, and faults in them are found."""

from types import SimpleNamespace

import pytest
import torch
from attn_fuzz.targets.documented_aiter import DOCUMENTED_AITER_UNIFIED
from attn_fuzz.targets.found_aiter import FOUND_AITER
from attn_fuzz.zoo.mutants import Mutant
from attn_fuzz.zoo.patches import Patch

TARGETS = ("unified", "prefill", "decode", "decode-assembly", "fa", "unified-backend")
ADAPTER = "attn_optimized.aiter_adapter"
OFF_BY_ONE = "edges = (max(layer.window[0] - 1, -1), layer.window[1])"
PREFILL = f"{ADAPTER}.flash_attn_varlen.flash_attn_varlen"
UNIFIED = f"{ADAPTER}.unified_attention.unified_attention"
DECLARES_UNIFIED = "attn_optimized.backends.rocm_aiter_unified_attn.RocmAiterUnifiedAttentionBackend.capabilities"
BARE_WINDOW = "attn_optimized.backends.rocm_aiter_unified_attn._has_bare_window_in_float16"
CHUNKS = "attn_optimized.backends.rocm_aiter_fa.metadata.AiterFlashAttentionMetadataBuilder._with_context"
FORWARD = "attn_optimized.backends.rocm_aiter_unified_attn.RocmAiterUnifiedAttentionImpl.forward"
CHECK_STEP = "attn_optimized.backends.base.AttentionImplBase._check_step"
EXTEND = "attn_optimized.backends.rocm_aiter_fa.impl.AiterFlashAttentionImpl._extend"


@pytest.mark.parametrize("target", [f"documented-aiter-{name}" for name in TARGETS])
def test_the_target_agrees_and_refuses_the_rest(target, fuzz_apart):
    progress = fuzz_apart(target, examples=20)
    assert progress.failure is None, progress.failure.verdict.message


@pytest.mark.parametrize("architecture", ["", "gfx942", "gfx950"])
def test_the_double_reads_both_types_of_float8_on_every_gpu(architecture, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(gcnArchName=architecture))
    for target in (DOCUMENTED_AITER_UNIFIED, FOUND_AITER):
        assert set(target.support("cuda").cache_dtypes) == {"fp8_e4m3fn", "fp8_e4m3fnuz"}


@pytest.mark.parametrize(
    ("target", "place", "find", "replace"),
    [
        ("documented-aiter-unified", UNIFIED, "layer.k_scale", "layer.v_scale"),
        ("documented-aiter-unified", UNIFIED, "batch.num_requests == 0 or batch.num_actual_tokens == 0", "False"),
        ("documented-aiter-unified", f"{ADAPTER}.unified_attention._readable", "more + 1", "more"),
        ("documented-aiter-decode", f"{ADAPTER}.paged_attention_v1.paged_attention_v1", "layer.logits_soft_cap or 0.0", "0.0"),
        ("documented-aiter-prefill", PREFILL, "edges = layer.window", OFF_BY_ONE),
        ("documented-aiter-prefill", f"{ADAPTER}.flash_attn_varlen._bound_that_keeps", "right < max_query_len - 1", "False"),
        ("documented-aiter-prefill", PREFILL, "layer.sinks.float()[:, None]", "0.0"),
        ("documented-aiter-prefill", PREFILL, "result[1] == torch.inf", "result[1] == 1.0"),
        ("documented-aiter-prefill", f"{ADAPTER}.installation.Aiter.call", "name not in signature", "name == 'sink_ptr'"),
        ("documented-aiter-fa", EXTEND, "sinks=None", "sinks=self.layer.sinks"),
        ("documented-aiter-unified-backend", UNIFIED, '"sinks": layer.sinks', '"sinks": None'),
        ("documented-aiter-decode-assembly", f"{ADAPTER}.key_values.shuffled_pages", "kv_cache[1]", "kv_cache[0]"),
        (
            "documented-aiter-unified-backend",
            DECLARES_UNIFIED,
            '"qq_bias": answer(features.unified_qq_bias)',
            '"qq_bias": _CAUSAL_ONLY',
        ),
        ("documented-aiter-unified-backend", BARE_WINDOW, "config.value_of('window')[0]", "config.value_of('window')[1]"),
        ("documented-aiter-unified-backend", FORWARD, "self._check_step(query, attn_metadata, output, lse)", "pass"),
        ("documented-aiter-fa", CHECK_STEP, "key in self._served", "bool(self._served)"),
        ("documented-aiter-unified-backend", BARE_WINDOW, "config.dtype == torch.float16", "False"),
        ("documented-aiter-decode-assembly", f"{ADAPTER}.pa_fwd_asm.pa_fwd_asm", "group > _MAX_ROWS", "group >= _MAX_ROWS"),
        ("documented-aiter-decode-assembly", f"{ADAPTER}.features", "(16,)", "(16, 32)"),
        ("documented-aiter-fa", CHUNKS, "context_lens.clamp(max=begin + chunk)", "context_lens"),
        ("documented-aiter-fa", CHUNKS, "max(1, self.context_chunk_keys // len(context_lens))", "self.context_chunk_keys"),
    ],
    ids=lambda value: value if value.startswith("documented") else "",
)
def test_a_fault_is_found(target, place, find, replace, fuzz_apart):
    fault = Mutant(name="fault", patches=(Patch(place, find, replace),), raises="")
    progress = fuzz_apart(target, examples=300, mutant=fault, on_failure="stop")
    assert progress.failure is not None, f"survived {progress.examples} examples"
