"""The adapter of AITER, and its backends, agree on a double of AITER, and faults in them are found."""

import pytest

TARGETS = ("UNIFIED", "PREFILL", "DECODE", "DECODE_ASSEMBLY", "FA", "UNIFIED_BACKEND")
ADAPTER = "attn_optimized.aiter_adapter"
OFF_BY_ONE = "edges = (max(layer.window[0] - 1, -1), layer.window[1])"
PREFILL = f"{ADAPTER}.flash_attn_varlen.flash_attn_varlen"
UNIFIED = f"{ADAPTER}.unified_attention.unified_attention"
DECLARES_UNIFIED = "attn_optimized.backends.rocm_aiter_unified_attn.RocmAiterUnifiedAttentionBackend.capabilities"
BARE_WINDOW = "attn_optimized.backends.rocm_aiter_unified_attn._has_bare_window_in_float16"
CHUNKS = "attn_optimized.backends.rocm_aiter_fa.metadata.AiterFlashAttentionMetadataBuilder._with_context"
EXTEND = "attn_optimized.backends.rocm_aiter_fa.impl.AiterFlashAttentionImpl._extend"


@pytest.mark.parametrize("target", [f"planted_aiter:{name}" for name in TARGETS])
def test_the_target_agrees_and_refuses_the_rest(target, fuzz_apart):
    progress = fuzz_apart(target, examples=20)
    assert progress.failure is None, progress.failure.verdict.message
    assert 0 < progress.refused < progress.examples


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("target", "place", "find", "replace"),
    [
        ("planted_aiter:UNIFIED", UNIFIED, "layer.k_scale", "layer.v_scale"),
        ("planted_aiter:DECODE", f"{ADAPTER}.paged_attention_v1.paged_attention_v1", "layer.logits_soft_cap or 0.0", "0.0"),
        ("planted_aiter:PREFILL", PREFILL, "edges = layer.window", OFF_BY_ONE),
        ("planted_aiter:PREFILL", f"{ADAPTER}.installation.Aiter.call", "name not in signature", "name == 'sink_ptr'"),
        ("planted_aiter:FA", EXTEND, "sinks=None", "sinks=self.layer.sinks"),
        ("planted_aiter:UNIFIED_BACKEND", UNIFIED, '"sinks": layer.sinks', '"sinks": None'),
        ("planted_aiter:DECODE_ASSEMBLY", f"{ADAPTER}.key_values.shuffled_pages", "kv_cache[1]", "kv_cache[0]"),
        (
            "planted_aiter:UNIFIED_BACKEND",
            DECLARES_UNIFIED,
            '"qq_bias": answer(features["unified_qq_bias"])',
            '"qq_bias": no_such_mask',
        ),
        ("planted_aiter:UNIFIED_BACKEND", BARE_WINDOW, "config.value_of('window')[0]", "config.value_of('window')[1]"),
        ("planted_aiter:UNIFIED_BACKEND", BARE_WINDOW, "config.dtype == torch.float16", "False"),
        ("planted_aiter:DECODE_ASSEMBLY", f"{ADAPTER}.pa_fwd_asm.pa_fwd_asm", "group > _MAX_ROWS", "group >= _MAX_ROWS"),
        ("planted_aiter:FA", CHUNKS, "context_lens.clamp(max=begin + chunk)", "context_lens"),
    ],
    ids=lambda value: value if value.startswith("planted") else "",
)
def test_a_fault_is_found(target, place, find, replace, finds_fault):
    finds_fault(target, place, find, replace, examples=300)
