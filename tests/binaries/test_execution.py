"""Small cases of the launches that ship, and the error of their outputs."""

import pytest
from attn_binaries import execution
from attn_binaries.shipped_calls import CALLS, WRITES
from attn_binaries.small_cases import small_cases
from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import Verdict


@pytest.mark.parametrize("shipped", [call for call in CALLS if call.indexer is None], ids=lambda shipped: shipped.name)
def test_small_cases_are_ragged(shipped):
    random, signature = small_cases(shipped, queries=32, keys=64)
    assert random.rules.keys() - {"lse"} == signature.rules.keys() - {"lse"}
    for case in (random, signature):
        assert case.group_size == shipped.num_heads // shipped.num_kv_heads
        assert all(any(sizes) for sizes in zip(*([n % 16, n % 32, n % 64] for n in lengths(case)), strict=True))
        assert max(lengths(case)) > (64 if shipped.attn_type.reads_cache else 32)
    assert min(request.query_len for request in random.requests) == 0


@pytest.mark.parametrize("shipped", [call for call in CALLS if call.indexer], ids=lambda shipped: shipped.name)
def test_small_cases_of_index_layers_are_ragged(shipped):
    for case in small_cases(shipped, queries=16, keys=32):
        assert case.num_heads == shipped.indexer.num_heads
        assert max(lengths(case)) > 32 * shipped.indexer.selection_unit
        assert any(length % shipped.indexer.selection_unit for length in lengths(case)) or shipped.indexer.selection_unit == 1
        assert min(request.query_len for request in case.requests) == 0


def lengths(case: Case) -> list[int]:
    return [case.num_keys(request) for request in case.requests]


@pytest.mark.parametrize("shipped", CALLS, ids=lambda shipped: shipped.name)
def test_only_outputs_have_an_error(shipped):
    """A written cache is compared bitwise. The reference reads it then, and its error is not the launch's."""
    of_call = execution.Shipped(shipped, "gfx942", {}, [], lambda *_: None)
    target = execution.target_of(of_call)
    writes = any((target.write_kv_cache, target.write_latent_cache, target.rope_and_write_kv_cache))
    assert writes == (shipped.op in WRITES)
    error = execution.error_of(of_call, Verdict(kind="agree", ratio=0.5))
    assert error == (0 if writes or not target.oracle else 0.5)
