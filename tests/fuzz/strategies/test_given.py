"""Hypothesis tests that somebody writes for a kernel of his own."""

import dataclasses

import attn_reference
import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz import DisagreementError, check
from attn_fuzz.given import build, cases
from attn_fuzz.targets.support import Support
from hypothesis import Phase, given, settings

SUPPORT = Support(
    attn_types=(AttentionType.DECODER, AttentionType.ENCODER),
    dtypes=("float32", "bfloat16"),
    layouts=(Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_HND),
    rules=("window", "sinks"),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
)
FEW = settings(max_examples=25, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


def attend(call, layer):
    if call.kv_cache is None:
        return attn_reference.varlen_attention(call.q, call.k, call.v, layer, call.batch)
    return attn_reference.paged_attention(call.q, call.kv_cache, layer, call.batch)


def test_a_right_kernel_passes():
    @FEW
    @given(cases(SUPPORT))
    def a_test(case):
        call = build(case)
        check(call, attend(call, call.layer)).raise_for_differences()

    a_test()


def test_a_kernel_that_drops_the_sinks_fails():
    @FEW
    @given(cases(SUPPORT))
    def a_test(case):
        call = build(case)
        check(call, attend(call, dataclasses.replace(call.layer, sinks=None))).raise_for_differences()

    with pytest.raises(DisagreementError):
        a_test()
