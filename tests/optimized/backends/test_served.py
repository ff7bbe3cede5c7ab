"""Every backend on one list of layers: each is served as the reference attends, or refused as the backend declares."""

from dataclasses import replace

import attn_reference
import pytest
import torch
from attn_contract import AttentionConfig, AttentionType, Layout, UnsupportedError
from attn_optimized.aiter_adapter import recorded
from attn_optimized.backends import BACKENDS

from tests.optimized.backends.conftest import FORMS, PLAIN, ROTATING

SINKS = [0.5, 3.0, -3.0, -torch.inf]
SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05])
ONE, HEADS = (torch.tensor(0.05), torch.tensor([0.04])), (torch.tensor([0.05, 0.03]), torch.tensor([0.04, 0.02]))
# prefill, decode, padding, extend, and a prompt of two tokens
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}
DECODES = {"query_lens": [1, 1], "seq_lens": [40, 17]}
LENGTHS = {
    AttentionType.DECODER: MIXED,
    AttentionType.ENCODER_DECODER: {"query_lens": [1, 5], "seq_lens": [40, 17]},
    AttentionType.ENCODER: {"query_lens": [7, 20], "seq_lens": [7, 20]},
    AttentionType.ENCODER_ONLY: {"query_lens": [7, 20], "seq_lens": [7, 20]},
}


def float8(scales, dtype=torch.float8_e4m3fn):
    return {"kv_cache_dtype": dtype, "k_scale": scales[0], "v_scale": scales[1]}


LAYERS = {
    "plain": {},
    "window": {"window": (9, 9)},
    "window in bfloat16": {"window": (9, 9), "dtype": torch.bfloat16},
    "window of itself and sinks": {"window": (0, -1), "sinks": SINKS},
    "right edge and sinks": {"window": (-1, 3), "sinks": SINKS},
    "sinks": {"sinks": SINKS},
    "sinks in decodes": {"sinks": SINKS, **DECODES},
    "soft cap": {"logits_soft_cap": 0.5},
    "ALiBi": {"alibi_slopes": SLOPES},
    "ALiBi and a soft cap": {"alibi_slopes": SLOPES, "logits_soft_cap": 2.0},
    "ALiBi and sinks": {"alibi_slopes": SLOPES, "sinks": SINKS},
    "ALiBi and a window": {"alibi_slopes": SLOPES, "window": (9, -1)},
    "not causal": {"causal": False},
    "a causal flag for each request": {"causal": torch.tensor([True, False, True, True, False])},
    # what AITER's newest record takes for the own type of an interpreter
    "float8": float8(ONE, torch.float8_e4m3fnuz),
    "float8 by heads": float8(HEADS),
    "float32": {"dtype": torch.float32},
    "one KV head": {"num_kv_heads": 1},
    **{
        f"layout {layout}": {"layout": layout} for layout in Layout if not (layout.has_inline_scales or layout.has_latent_value)
    },
    **{str(kind): {"attn_type": kind} for kind in AttentionType if kind is not AttentionType.DECODER},
    "encoder with ALiBi": {"attn_type": AttentionType.ENCODER, "alibi_slopes": SLOPES},
}


def form_of(name, fields):
    """The layer in the form of cache that the backend has, and with its width of V, where there can be one."""
    fields = {**FORMS[name], **fields}
    attn_type = fields.get("attn_type", AttentionType.DECODER)
    if not attn_type.reads_cache:
        del fields["layout"]
    if fields.get("layout", Layout.CONTENT_PACKED) is not Layout.CONTENT_PACKED or attn_type is AttentionType.ENCODER_DECODER:
        fields.pop("head_size_v", None)
    return fields


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_is_served_as_the_reference_attends_or_refused(name, layer, make_step, forward, assert_agrees, aiter, calls):
    fields = form_of(name, LAYERS[layer])
    lengths = {} if "query_lens" in fields else LENGTHS[fields.get("attn_type", AttentionType.DECODER)]
    if name == "ROCM_AITER_FA" and "kv_cache_dtype" in fields:
        lengths = DECODES  # its prefills and extends attend to their own tokens before they are quantized
    step = make_step(**lengths, **fields)
    config = AttentionConfig.of(step.layer, step.query.dtype, block_size=step.block_size, batch=step.batch)
    if not BACKENDS[name].capabilities(aiter).refusals(config):
        assert_agrees(BACKENDS[name], step, validate=layer == "plain")
        assert step.layer.attn_type is AttentionType.DECODER or not calls, "AITER's kernels are decoders'"
        return
    with pytest.raises(UnsupportedError) as refused:
        forward(BACKENDS[name], step)
    assert refused.value.implementation == name
    assert not calls


def test_the_widths_of_mimo(make_step, assert_agrees):
    widths = {"layout": Layout.CONTENT_PACKED, "head_size": 192, "head_size_v": 128}
    assert_agrees(BACKENDS["TRITON_ATTN_DIFFKV"], make_step(**MIXED, **widths, window=(127, 0), sinks=SINKS))


@pytest.mark.parametrize("name", PLAIN)
def test_a_reader_of_another_layers_cache_writes_nothing_or_is_refused(name, make_step, forward, aiter, device):
    step = make_step(**MIXED, **FORMS[name])
    if name == "ROCM_AITER_FA":
        with pytest.raises(UnsupportedError, match=f"^{name}: a cache that another layer writes .*; use .*TRITON_ATTN"):
            BACKENDS[name].impl(step.layer, aiter=aiter, kv_sharing_target_layer_name="layers.3", **step.constructor)
        return
    first, before = forward(BACKENDS[name], step), step.kv_cache.clone()
    reader = replace(step, key=torch.zeros_like(step.key), value=torch.zeros_like(step.value))
    second = forward(BACKENDS[name], reader, kv_sharing_target_layer_name="layers.3")
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))
    if name in ROTATING:
        impl = BACKENDS[name].impl(step.layer, aiter=aiter, kv_sharing_target_layer_name="layers.3", **step.constructor)
        slots, cos_sin_cache = step.common.slot_mapping, torch.randn(16, 64, device=device)
        rope = step.query, step.key, step.value, torch.zeros_like(slots), cos_sin_cache, step.kv_cache, slots
        with pytest.raises(UnsupportedError, match=r"layers\.3 writes it"):
            impl.do_rope_and_kv_cache_update(*rope, is_neox=True)


@pytest.mark.parametrize("name", PLAIN)
def test_rope_and_cache_update_rotate_query_and_key_or_are_refused(name, make_step, aiter, device):
    step = make_step([7], [7], **FORMS[name])
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor)
    expected_query, expected_cache, slots = step.query.clone(), step.kv_cache.clone(), step.common.slot_mapping
    rope = step.key, step.value, torch.arange(7, device=device), torch.randn(16, 64, device=device)
    if name not in ROTATING:
        with pytest.raises(UnsupportedError):
            impl.do_rope_and_kv_cache_update(step.query, *rope, step.kv_cache, slots, is_neox=True)
        return
    attn_reference.rope_and_write_kv_cache(expected_query, *rope, expected_cache, step.layer, slots, is_neox=True)
    impl.do_rope_and_kv_cache_update(step.query, *rope, step.kv_cache, slots, is_neox=True)
    torch.testing.assert_close(step.query, expected_query, equal_nan=True)
    torch.testing.assert_close(step.kv_cache, expected_cache, equal_nan=True)


@pytest.mark.parametrize("name", ["TRITON_ATTN", "ROCM_AITER_UNIFIED_ATTN"])
def test_cross_attention_writes_the_encoders_tokens_once(name, make_step, aiter, forward):
    step = make_step([1, 1], [40, 17], attn_type=AttentionType.ENCODER_DECODER)
    first, written = forward(BACKENDS[name], step), step.kv_cache.clone()
    impl = BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor)
    impl.do_kv_cache_update(None, None, step.kv_cache, step.common.slot_mapping)
    assert torch.equal(step.kv_cache.view(torch.int16), written.view(torch.int16))
    second = torch.full_like(first, torch.nan)
    metadata = BACKENDS[name].builder(AttentionType.ENCODER_DECODER).build(step.common)
    impl.forward(step.query, None, None, step.kv_cache, metadata, output=second)
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("causal", [False, torch.tensor([True, False])], ids=["step", "one request"])
def test_two_widths_are_refused_a_step_that_is_not_causal(causal, make_step, refuses):
    """vLLM's backend declares non-causal attention, which it has from TRITON_ATTN, and would attend causally."""
    step = make_step([7, 1], [9, 40], **form_of("TRITON_ATTN_DIFFKV", {"causal": causal}))
    refuses(BACKENDS["TRITON_ATTN_DIFFKV"], step, UnsupportedError, "attends causally in every step")


def test_an_argument_that_an_aiter_lacks_is_named_with_its_version(make_step):
    step = make_step([1], [9], sinks=SINKS)
    lacking = r"sinks not supported: flash_attn_varlen_func of AITER 0\.1\.7\S* has no argument `sink_ptr`"
    with pytest.raises(UnsupportedError, match=lacking):
        BACKENDS["ROCM_AITER_FA"].impl(step.layer, aiter=recorded("0.1.7"), **step.constructor)
