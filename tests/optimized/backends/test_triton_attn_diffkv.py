"""TRITON_ATTN_DIFFKV: rows of K and V of two widths, and what vLLM's backend of that name would lose."""

from dataclasses import replace

import pytest
import torch
from attn_contract import AttentionType, ContractError, Layout, UnsupportedError
from attn_optimized.backends import BACKENDS

DIFFKV = BACKENDS["TRITON_ATTN_DIFFKV"]
MIMO = {"layout": Layout.CONTENT_PACKED, "head_size": 192, "head_size_v": 128}
NARROW = {**MIMO, "head_size": 64, "head_size_v": 48}
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}


@pytest.mark.parametrize(
    "rules",
    [
        MIMO,
        {**MIMO, "window": (127, 0), "sinks": [0.5, 3.0, -3.0, -torch.inf]},
        {**MIMO, "num_kv_heads": 1},
        {**NARROW, "logits_soft_cap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05])},
        {
            **NARROW,
            "kv_cache_dtype": torch.float8_e4m3fn,
            "k_scale": torch.tensor(0.05),
            "v_scale": torch.tensor(0.04),
        },
    ],
    ids=["MiMo-V2", "its layers with a window and sinks", "one KV head", "a soft cap and ALiBi", "float8"],
)
def test_a_step_of_all_phases_agrees(rules, make_step, assert_agrees):
    assert_agrees(DIFFKV, make_step(**MIXED, **rules))


def test_a_reader_of_another_layers_cache_writes_nothing_and_agrees(make_step, forward, aiter):
    step = make_step(**MIXED, **NARROW)
    first = forward(DIFFKV, step)
    before = step.kv_cache.clone()
    reader = replace(step, key=torch.zeros_like(step.key), value=torch.zeros_like(step.value))
    second = forward(DIFFKV, reader, kv_sharing_target_layer_name="layers.3")
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head_size_v": None}, "V of another width than K, and TRITON_ATTN for all other layers"),
        ({"head_size": 24, "head_size_v": 48}, "head sizes from 32 on"),
        ({"block_size": 8}, "units of 16 slots"),
        ({"chunked_local": 16}, "in metadata that this backend does not build"),
        ({"sink_tokens": 2}, "hands none to its kernel"),
        ({"output_scale": torch.tensor(0.5)}, "refuses to quantize the output"),
        ({"kv_cache_dtype": torch.int8}, "no other quantized cache"),
        (
            {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.ones(2), "v_scale": torch.ones(2)},
            "one scale of K and one of V",
        ),
    ],
)
def test_what_it_does_not_do_is_refused_when_it_is_made(options, reason, make_step, aiter):
    step = make_step([1], [9], **{**NARROW, **options})
    with pytest.raises(UnsupportedError, match=reason) as error:
        DIFFKV.impl(step.layer, aiter=aiter, **step.constructor)
    assert error.value.implementation == "TRITON_ATTN_DIFFKV"


@pytest.mark.parametrize("attn_type", [AttentionType.ENCODER, AttentionType.ENCODER_ONLY, AttentionType.ENCODER_DECODER])
def test_other_types_are_refused(attn_type, make_step, aiter):
    layout = {"layout": Layout.CONTENT_PACKED} if attn_type.reads_cache else {}
    options = {"head_size": 64, "head_size_v": 48, **layout}
    step = make_step([7, 20], [7, 20], attn_type=attn_type, **options)
    with pytest.raises(UnsupportedError, match="decoders alone"):
        DIFFKV.impl(step.layer, aiter=aiter, **step.constructor)


@pytest.mark.parametrize(
    ("causal", "reason"), [(False, "attends causally in every step"), (torch.tensor([True, False]), "attends causally")]
)
def test_a_step_that_is_not_causal_is_refused(causal, reason, make_step, refuses):
    """vLLM's backend declares non-causal attention, which it has from TRITON_ATTN, and would attend causally."""
    refuses(DIFFKV, make_step([7, 1], [9, 40], causal=causal, **NARROW), UnsupportedError, reason)


def test_ranges_are_refused(make_step, refuses):
    ranges = torch.tensor([[[0, 3]]], dtype=torch.int32)
    step = make_step([9], [9], **NARROW)
    step = replace(step, common=replace(step.common, bidirectional_ranges=ranges.to(step.query.device)))
    refuses(DIFFKV, step, UnsupportedError, "would ignore it silently")


def test_a_cache_of_one_width_is_refused(make_step, refuses):
    step = make_step([9], [9], **NARROW)
    of_one_width = step.kv_cache.new_zeros(*step.kv_cache.shape[:-1], 128)
    refuses(DIFFKV, step, ContractError, "kv_cache", {"kv_cache": of_one_width})


def test_an_output_as_wide_as_k_is_refused(make_step, refuses):
    step = make_step([9], [9], **NARROW)
    refuses(DIFFKV, step, ContractError, "out", {"output": torch.full_like(step.query, torch.nan)})


def test_triton_attn_says_which_backend_serves_two_widths(make_step, aiter):
    step = make_step([1], [9], **NARROW)
    with pytest.raises(UnsupportedError, match="engines ask TRITON_ATTN_DIFFKV") as error:
        BACKENDS["TRITON_ATTN"].impl(step.layer, aiter=aiter, **step.constructor)
    assert error.value.instead == "TRITON_ATTN_DIFFKV"
