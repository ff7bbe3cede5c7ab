"""ROCM_AITER_UNIFIED_ATTN: decoders on a double of AITER, the other types on the project's kernels."""

import attn_reference
import pytest
import torch
from attn_contract import AttentionType
from attn_optimized.backends import BACKENDS

UNIFIED = BACKENDS["ROCM_AITER_UNIFIED_ATTN"]
SINKS = [0.5, 3.0, -3.0, -torch.inf]
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}
SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05])


@pytest.mark.parametrize(
    ("attn_type", "lens"),
    [
        (AttentionType.ENCODER, {"query_lens": [7, 20], "seq_lens": [7, 20]}),
        (AttentionType.ENCODER_ONLY, {"query_lens": [7, 20], "seq_lens": [7, 20]}),
        (AttentionType.ENCODER_DECODER, {"query_lens": [1, 5], "seq_lens": [40, 17]}),
    ],
)
def test_other_types_do_not_touch_aiter(attn_type, lens, make_step, assert_agrees, calls):
    assert_agrees(UNIFIED, make_step(**lens, attn_type=attn_type))
    assert not calls


def test_rope_and_cache_update_rotate_query_and_key(make_step, aiter, device):
    step = make_step([7], [7])
    impl = UNIFIED.impl(step.layer, aiter=aiter, **step.constructor)
    positions, cos_sin_cache = torch.arange(7, device=device), torch.randn(16, 64, device=device)
    expected_query, expected_cache = step.query.clone(), step.kv_cache.clone()
    rope = step.key, step.value, positions, cos_sin_cache
    options = {"is_neox": True}
    attn_reference.rope_and_write_kv_cache(
        expected_query, *rope, expected_cache, step.layer, step.common.slot_mapping, **options
    )
    impl.do_rope_and_kv_cache_update(step.query, *rope, step.kv_cache, step.common.slot_mapping, **options)
    torch.testing.assert_close(step.query, expected_query, equal_nan=True)
    torch.testing.assert_close(step.kv_cache, expected_cache, equal_nan=True)


@pytest.mark.parametrize(
    "rules",
    [{}, {"sinks": SINKS}, {"window": (9, -1), "sinks": SINKS}, {"logits_soft_cap": 2.0}, {"alibi_slopes": SLOPES}],
    ids=["plain", "sinks", "window and sinks", "soft cap", "ALiBi"],
)
def test_decoders_on_aiters_own_kernel(rules, make_step, assert_agrees, installed_aiter):
    step = make_step(**MIXED, **rules)
    # the kernel multiplies what lies past a sequence by 0, so that it must be finite: finding aiter-unused-slots
    step.kv_cache.nan_to_num_(0.0)
    assert_agrees(UNIFIED, step, aiter=installed_aiter)
