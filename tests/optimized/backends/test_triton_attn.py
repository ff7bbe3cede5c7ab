"""TRITON_ATTN: a layer over several steps, as an engine drives it."""

from dataclasses import replace

import pytest
import torch
from attn_contract import AttentionType, ContractError, UnsupportedError
from attn_optimized.backends import BACKENDS

TRITON = BACKENDS["TRITON_ATTN"]


def test_cross_attention_writes_the_encoders_tokens_once(make_step, aiter, forward):
    step = make_step([1, 1], [40, 17], attn_type=AttentionType.ENCODER_DECODER)
    first = forward(TRITON, step)
    written = step.kv_cache.clone()
    impl = TRITON.impl(step.layer, aiter=aiter, **step.constructor)
    impl.do_kv_cache_update(None, None, step.kv_cache, step.common.slot_mapping)
    assert torch.equal(step.kv_cache.view(torch.int16), written.view(torch.int16))
    second = torch.full_like(first, torch.nan)
    metadata = TRITON.builder(AttentionType.ENCODER_DECODER).build(step.common)
    impl.forward(step.query, None, None, step.kv_cache, metadata, output=second)
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)


def test_a_key_without_its_value_is_refused(make_step, aiter):
    step = make_step([1], [9])
    impl = TRITON.impl(step.layer, aiter=aiter, **step.constructor)
    with pytest.raises(ContractError, match="value: got None"):
        impl.do_kv_cache_update(step.key, None, step.kv_cache, step.common.slot_mapping)


def test_a_layer_that_shares_a_cache_writes_nothing(make_step, aiter, device):
    step = make_step([3], [9])
    before = step.kv_cache.clone()
    impl = TRITON.impl(step.layer, aiter=aiter, kv_sharing_target_layer_name="layers.3", **step.constructor)
    impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
    assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))
    positions, cos_sin_cache = torch.arange(3, device=device), torch.randn(16, 64, device=device)
    rope = step.query, step.key, step.value, positions, cos_sin_cache, step.kv_cache, step.common.slot_mapping
    with pytest.raises(UnsupportedError, match=r"layers\.3 writes it"):
        impl.do_rope_and_kv_cache_update(*rope, is_neox=True)


@pytest.mark.parametrize("attn_type", [AttentionType.DECODER, AttentionType.ENCODER])
def test_what_a_type_reads_must_be_there(attn_type, make_step, aiter):
    step = make_step([3], [3], attn_type=attn_type)
    impl = TRITON.impl(step.layer, aiter=aiter, **step.constructor)
    metadata = TRITON.builder(attn_type).build(step.common)
    with pytest.raises(ContractError, match="got None"):
        impl.forward(step.query, None, None, None, metadata, output=torch.empty_like(step.query))


def test_cross_attention_without_the_encoders_lengths_is_refused(make_step):
    step = make_step([1], [9], attn_type=AttentionType.ENCODER_DECODER)
    with pytest.raises(ContractError, match="encoder_seq_lens: got None"):
        TRITON.builder(AttentionType.ENCODER_DECODER).build(replace(step.common, encoder_seq_lens=None))
