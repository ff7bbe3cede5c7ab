"""ROCM_AITER_UNIFIED_ATTN on AITER's own kernel, where there is one."""

import pytest
import torch
from attn_optimized.backends import BACKENDS

UNIFIED = BACKENDS["ROCM_AITER_UNIFIED_ATTN"]
SINKS = [0.5, 3.0, -3.0, -torch.inf]
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}
SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.05])


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
