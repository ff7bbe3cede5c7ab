"""TRITON_MLA over ranks that are processes: whole steps, through the builder, against the undivided attention."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from attn_fuzz.targets.backend_mla import BACKEND_TRITON_MLA

from tests.agreement import assert_within_bound
from tests.optimized.backends import mla_ranks_worker
from tests.optimized.backends.mla_ranks_worker import Case
from tests.optimized.ranks_worker import over_ranks

MIXED = Case(query_lens=[1, 5, 2, 6, 1, 4], seq_lens=[20, 5, 2, 40, 1, 19])
STEPS = {
    "decodes, a prefill and extends": MIXED,
    "cut contexts": replace(MIXED, context_chunk_keys=20),
    "decodes of a few keys": Case(query_lens=[1, 1, 1], seq_lens=[1, 40, 17]),
    "drafts": Case(query_lens=[1, 3, 2], seq_lens=[30, 5, 20], num_speculative_tokens=2),
    "a draft beside prefills": Case(query_lens=[2, 9, 1], seq_lens=[30, 20, 3], num_speculative_tokens=1),
    "prefills without a context": Case(query_lens=[5, 3], seq_lens=[5, 3]),
    "contexts of which some ranks have nothing": Case(query_lens=[4, 6, 3], seq_lens=[5, 8, 3]),
    "requests without a query, or without a key": Case(query_lens=[3, 0, 0, 1], seq_lens=[20, 9, 0, 5]),
    "a step that is not causal": Case(query_lens=[4, 4], seq_lens=[30, 12], causal=False),
    "a float8 cache": replace(MIXED, is_quantized=True, context_chunk_keys=40),
}
DEALINGS = {
    "1 token at a time": {"interleave": 1, "exchange": "reduce_scatter"},
    "16 tokens at a time": {"interleave": 16, "exchange": "all_to_all", "validate": False, "batch_invariant": True},
}


def judge(case: Case, results: list) -> None:
    """Hold the results of all ranks to the bound of the undivided attention, and each rank's cache to what it should hold.

    The reference attends to the whole cache, whoever has which key.
    """
    for result in results:
        assert isinstance(result[0], torch.Tensor), result
    outs, lses, are_right = zip(*results, strict=True)
    assert all(are_right), "a rank's cache has not the rank's own tokens alone"
    call = mla_ranks_worker.whole_call(case)
    assert_within_bound(call, torch.cat(outs, dim=1), torch.cat(lses), rounding=BACKEND_TRITON_MLA.rounding("cpu"))


@pytest.mark.parametrize("dealing", DEALINGS)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_is_the_undivided_attention(num_ranks, dealing, tmp_path):
    cases = {name: replace(case, **DEALINGS[dealing]) for name, case in STEPS.items()}
    results = over_ranks(
        num_ranks, tmp_path, {name: partial(mla_ranks_worker.attends, case=case) for name, case in cases.items()}
    )
    for name, case in cases.items():
        judge(case, [result[name] for result in results])
