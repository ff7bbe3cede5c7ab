"""ROCM_AITER_UNIFIED_ATTN: decoders on a double of AITER, the other types on the project's kernels."""

from dataclasses import replace

import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Layout, UnsupportedError
from attn_optimized.aiter_adapter import Aiter, recorded
from attn_optimized.backends import BACKENDS
from attn_optimized.backends.rocm_aiter_unified_attn import LAYOUTS_OF_ROWS

UNIFIED = BACKENDS["ROCM_AITER_UNIFIED_ATTN"]
SINKS = [0.5, 3.0, -3.0, -torch.inf]
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}
SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05])


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"sinks": SINKS},
        {"window": (9, 9), "dtype": torch.bfloat16},
        {"window": (0, -1), "sinks": SINKS},
        {"logits_soft_cap": 0.5},
        {"alibi_slopes": SLOPES},
        {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor(0.05), "v_scale": torch.tensor([0.04])},
    ],
    ids=["plain", "sinks", "window in bfloat16", "window of itself and sinks", "soft cap", "ALiBi", "float8"],
)
def test_decoders_run_on_aiter_in_every_phase(rules, make_step, assert_agrees, calls):
    assert_agrees(UNIFIED, make_step(**MIXED, **rules))
    assert [call.function for call in calls] == ["unified_attention"]


def test_a_window_in_float16_is_refused_without_sinks(make_step, aiter):
    """A known bug of AITER's kernel, which is silent: the finding aiter-hidden-tile."""
    step = make_step(**MIXED, window=(9, 9))
    with pytest.raises(UnsupportedError, match=r"aiter-hidden-tile.*use .*TRITON_ATTN"):
        UNIFIED.impl(step.layer, aiter=aiter, **step.constructor)


@pytest.mark.parametrize("layout", LAYOUTS_OF_ROWS)
def test_every_layout_of_rows(layout, make_step, assert_agrees):
    assert_agrees(UNIFIED, make_step(**MIXED, layout=layout))


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
    ("options", "reason"),
    [
        ({"dtype": torch.float32}, "TF32"),
        ({"head_size": 20}, "head size 20"),
        ({"block_size": 48}, "block size 48"),
        ({"layout": Layout.X_PACKED}, "rows"),
        ({"sink_tokens": 3}, "no other mask"),
        ({"chunked_local": 3}, "no other mask"),
        ({"ranges_clamped": True}, "asserts causal"),
        ({"alibi_slopes": SLOPES, "sinks": SINKS}, "against the sink"),
        (
            {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.ones(2), "v_scale": torch.ones(2)},
            "one k_scale and one v_scale",
        ),
    ],
)
def test_what_it_does_not_do_is_refused_when_it_is_made(options, reason, make_step, aiter):
    step = make_step([1], [9], **options)
    with pytest.raises(UnsupportedError, match=reason) as error:
        UNIFIED.impl(step.layer, aiter=aiter, **step.constructor)
    assert error.value.implementation == "ROCM_AITER_UNIFIED_ATTN"
    assert "TRITON_ATTN" in error.value.instead


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_it_does_not_promise_batch_invariance(batch_invariant, make_step, aiter):
    step = make_step([1], [9])
    refused = [
        refusal.property
        for refusal in UNIFIED.capabilities(aiter).refusals(
            UNIFIED.impl(step.layer, aiter=aiter, **step.constructor).config.with_rules(batch_invariant=batch_invariant)
        )
    ]
    assert refused == (["batch invariance"] if batch_invariant else [])


def test_a_step_that_wants_the_lse_is_refused(make_step, aiter, calls):
    step = make_step([3], [9])
    impl = UNIFIED.impl(step.layer, aiter=aiter, **step.constructor)
    metadata = UNIFIED.builder(AttentionType.DECODER).build(step.common)
    output, lse = torch.empty_like(step.query), torch.empty(4, len(step.query), device=step.query.device)
    with pytest.raises(UnsupportedError, match="the LSE"):
        impl.forward(step.query, None, None, step.kv_cache, metadata, output=output, lse=lse)
    assert not calls


@pytest.mark.parametrize(("argument", "options"), [("sinks", {"sinks": SINKS}), ("alibi_slopes", {"alibi_slopes": SLOPES})])
def test_an_argument_that_this_aiter_lacks_is_a_capability_that_it_lacks(argument, options, make_step):
    newest = recorded("2026-08")
    older = newest.signatures["unified_attention"]
    older = replace(older, arguments=tuple(name for name in older.arguments if name != argument))
    aiter = replace(newest, signatures={**newest.signatures, "unified_attention": older})
    step = make_step([1], [9], **options)
    with pytest.raises(UnsupportedError, match=f"has no argument `{argument}`"):
        UNIFIED.impl(step.layer, aiter=aiter, **step.constructor)


def test_a_missing_aiter_is_the_only_reason(make_step):
    step = make_step([1], [9], sinks=SINKS, window=(9, -1))
    with pytest.raises(UnsupportedError) as error:
        UNIFIED.impl(step.layer, aiter=Aiter(missing="AITER is not installed"), **step.constructor)
    assert (error.value.feature, error.value.reason) == ("any layer", "AITER is not installed")
    assert error.value.instead == "TRITON_ATTN"


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
