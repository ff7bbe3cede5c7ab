"""ROCM_ATTN: its cache of packed planes, and what vLLM's backend of that name would lose."""

import pytest
import torch
from attn_contract import AttentionType, Layout, UnsupportedError
from attn_optimized.backends import BACKENDS

ROCM = BACKENDS["ROCM_ATTN"]
X_PACKED = {"layout": Layout.X_PACKED}


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"window": (9, 9)},
        {"causal": False},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05])},
        {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor(0.05), "v_scale": torch.tensor(0.04)},
        {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor([0.05, 0.03]), "v_scale": torch.tensor([0.04, 0.02])},
    ],
    ids=["plain", "window", "non-causal", "ALiBi", "float8", "float8, scales per head"],
)
def test_a_step_of_all_phases_agrees(rules, make_step, assert_agrees):
    assert_agrees(ROCM, make_step([7, 1, 0, 20, 2], [7, 40, 0, 90, 2], **X_PACKED, **rules))


@pytest.mark.parametrize("attn_type", [AttentionType.ENCODER, AttentionType.ENCODER_ONLY])
def test_encoders(attn_type, make_step, assert_agrees):
    assert_agrees(ROCM, make_step([7, 20], [7, 20], attn_type=attn_type))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attn_type": AttentionType.ENCODER_DECODER}, "one query token"),
        ({"sinks": [0.0] * 4}, "lose them"),
        ({"logits_soft_cap": 2.0}, "ignore it silently"),
        ({"window": (9, -1), "alibi_slopes": torch.ones(4)}, "takes no window"),
        ({"layout": Layout.BLOCKS_FIRST_NHD}, "packed keys"),
        ({"head_size": 72}, "head size 72"),
        ({"block_size": 8}, "units of 16 slots"),
    ],
)
def test_what_it_does_not_do_is_refused_when_it_is_made(options, reason, make_step, aiter):
    step = make_step([1], [9], **{**X_PACKED, **options})
    with pytest.raises(UnsupportedError, match=reason) as error:
        ROCM.impl(step.layer, aiter=aiter, **step.constructor)
    assert error.value.implementation == "ROCM_ATTN"
    assert "TRITON_ATTN" in error.value.instead


@pytest.mark.parametrize("attn_type", [AttentionType.ENCODER, AttentionType.ENCODER_ONLY])
def test_encoders_with_alibi_are_refused_when_they_are_made(attn_type, make_step, aiter):
    step = make_step([9], [9], attn_type=attn_type, alibi_slopes=torch.ones(4))
    with pytest.raises(UnsupportedError, match="ALiBi is causal"):
        ROCM.impl(step.layer, aiter=aiter, **step.constructor)


def test_a_refusal_has_all_its_reasons(make_step, aiter):
    step = make_step([1], [9], **X_PACKED, sinks=[0.0] * 4, logits_soft_cap=2.0, chunked_local=3)
    with pytest.raises(UnsupportedError) as error:
        ROCM.impl(step.layer, aiter=aiter, **step.constructor)
    message = str(error.value)
    assert all(words in message for words in ("a soft cap of the logits", "sinks", "chunked_local"))
