"""The dense attention kernel on cases chosen for where such kernels break; the fuzzer draws the rest."""

import pytest
import torch
from attn_contract import AttentionType

CASES = {
    "several tiles": {"query_lens": [150]},
    "ragged, with padding requests": {"query_lens": [1, 0, 65, 64, 0, 3]},
    "no query at all": {"query_lens": [0, 0]},
    "group of 3, head size 40": {"query_lens": [25, 70], "num_heads": 6, "head_size": 40},
    "no groups, head size 80": {"query_lens": [70, 2], "num_kv_heads": 4, "head_size": 80},
    "encoder only": {"query_lens": [5, 66], "attn_type": AttentionType.ENCODER_ONLY},
    "window": {"query_lens": [150, 9], "window": (10, 4)},
    "window of itself": {"query_lens": [70, 1], "window": (0, 0)},
    "left edge only": {"query_lens": [130], "window": (3, -1)},
    "sinks and window": {"query_lens": [70, 3], "window": (5, 5), "sinks": [3.0, 100.0, -100.0, -torch.inf]},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case, dtype, varlen_call, assert_agrees):
    assert_agrees(varlen_call(**case, dtype=dtype))
