"""A target that reads this step's keys from k and v is judged by them, and not by what a quantized cache made of them."""

import pytest


def test_it_is_judged_by_what_it_reads(fuzz_here):
    progress, cases = fuzz_here("planted_dense:DENSE", examples=40)
    assert progress.failure is None
    quantized = [case for case in cases if case.cache.dtype is not None]
    assert any(request.query_len > request.seq_len > 0 for case in quantized for request in case.requests)
    assert any(1 < request.query_len < request.seq_len for case in quantized for request in case.requests)


@pytest.mark.parametrize("target", ["planted_dense:CACHED", "planted_dense:UNSAID"])
def test_reading_the_other_place_fails_where_the_cache_rounds(target, fuzz_here):
    progress, _ = fuzz_here(target, examples=80)
    assert progress.failure is not None
    assert progress.failure.verdict.kind in ("value", "bitwise")
    assert progress.failure.case.cache.dtype == "fp8_e4m3fn"
