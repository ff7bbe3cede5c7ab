"""The dense attention kernel on cases chosen for where such kernels break; the fuzzer draws the rest."""

from dataclasses import replace

import attn_optimized
import pytest
import torch
from attn_contract.validation.values import MAX_LOGIT

CASES = {
    "ragged, with padding requests": {"query_lens": [1, 0, 65, 64, 0, 3]},
    "group of 3, head size 40": {"query_lens": [25, 70], "num_heads": 6, "head_size": 40},
    "no groups, head size 80": {"query_lens": [70, 2], "num_kv_heads": 4, "head_size": 80},
    "window": {"query_lens": [150, 9], "window": (10, 4)},
    "left edge only": {"query_lens": [130], "window": (3, -1)},
    "soft cap and ALiBi": {"query_lens": [70, 3], "logits_soft_cap": 0.5, "alibi_slopes": torch.tensor([1.0, 0.5, 0.1, 0.0])},
    "float8 output": {"query_lens": [9, 3], "output_scale": torch.tensor([0.125])},
    "sinks of the largest logit and of the least": {"query_lens": [70, 3, 0], "sinks": [MAX_LOGIT, -MAX_LOGIT] * 2},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case, dtype, varlen_call, assert_agrees):
    assert_agrees(varlen_call(**case, dtype=dtype))


def test_bits_do_not_depend_on_the_batch(varlen_call):
    call = varlen_call([70, 200])
    together = attn_optimized.varlen_attention(*call, batch_invariant=True)
    q, k, v = (x[:70] for x in (call.q, call.k, call.v))
    alone = replace(
        call.batch,
        query_start_loc=call.batch.query_start_loc[:2],
        seq_lens=call.batch.seq_lens[:1],
        max_query_len=70,
        num_actual_tokens=70,
    )
    assert torch.equal(attn_optimized.varlen_attention(q, k, v, call.layer, alone, batch_invariant=True), together[:70])
