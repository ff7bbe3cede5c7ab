"""Shrinking ends, stays within the support, and where it ends no field can be lowered."""

from dataclasses import replace

import planted
import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case
from attn_fuzz.run import shrink
from attn_fuzz.run.trial import try_case
from attn_fuzz.strategies import cases
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import EVERYTHING, Support
from hypothesis import HealthCheck, assume, given, settings

SUPPORT = replace(EVERYTHING, max_tokens=64, max_seq_len=200, dtypes=("float16", "bfloat16"))
few = settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def always() -> bool:
    return True


def is_within(support: Support, case: Case) -> bool:
    return support.limit(case) is None and support.beyond(case) is None


def tokens(case: Case) -> int:
    return sum(request.query_len for request in case.requests)


PREDICATES = {
    "anything": lambda case: True,
    "three rows": lambda case: tokens(case) >= 3,
    "a tail of a block": lambda case: any(case.cache and r.seq_len % case.cache.block_size for r in case.requests),
    "two requests of which one has context": lambda case: (
        len(case.requests) >= 2 and any(r.seq_len > r.query_len for r in case.requests)
    ),
    "a causal request of 20 keys": lambda case: any(r.causal and r.seq_len >= 20 for r in case.requests),
    "a shared block": lambda case: len(blocks := [b for r in case.requests for b in r.blocks]) > len(set(blocks)),
    "a block that is not its own index": lambda case: any(b != i for r in case.requests for i, b in enumerate(r.blocks)),
    "a window and sinks": lambda case: case.window[0] >= 2 and case.sinks is not None,
    "an odd seed": lambda case: case.values.seed % 2 == 1,
    "a cap and slopes": lambda case: case.logits_soft_cap is not None and case.alibi_slopes,
    "a range from 2 on": lambda case: any(2 <= a < b for r in case.requests for a, b in r.bidirectional_ranges),
    "chunks of 3 or more beside drafts": lambda case: (case.chunked_local or 0) >= 3 and case.qq_bias is not None,
    "sink tokens in a window": lambda case: case.sink_tokens >= 2 and case.window[0] >= 0,
    "an int8 cache": lambda case: case.cache is not None and case.cache.dtype == "int8",
    "scales of heads": lambda case: case.cache is not None and case.cache.scales == "head",
    "inline scales": lambda case: case.cache is not None and case.cache.layout.has_inline_scales,
    "x-packed": lambda case: case.cache is not None and case.cache.layout.is_x_packed,
    "interleaved layers": lambda case: case.cache is not None and case.cache.num_layers > 1,
    "scattered heads": lambda case: case.cache is not None and case.cache.order == "LHBNC",
    "a rotation of interleaved pairs": lambda case: case.rope is not None and not case.rope.neox,
    "a float8 output and a float8 cache": lambda case: case.output_dtype and case.cache and case.cache.dtype,
    "planes and a right window": lambda case: case.window[1] > 0 and case.cache is not None and case.cache.planes,
}


@pytest.mark.parametrize("name", PREDICATES)
def test_where_it_ends_no_field_can_be_lowered(name):
    fails = PREDICATES[name]
    seen: list[Case] = []

    @few
    @given(cases("anything", SUPPORT))
    def shrinks(case):
        assume(fails(case))
        smallest, minimal = shrink.shrink(case, SUPPORT, fails, always)
        assert minimal
        assert fails(smallest)
        contradictions.check(smallest)
        assert is_within(SUPPORT, smallest)
        assert not any(fails(candidate) for candidate in shrink.lowered(smallest, SUPPORT))
        seen.append(smallest)

    shrinks()
    assert seen


@few
@given(cases("anything", SUPPORT))
def test_candidates_are_valid_and_supported(case):
    for candidate in shrink.lowered(case, SUPPORT):
        assert candidate != case
        contradictions.check(candidate)
        assert is_within(SUPPORT, candidate)


@few
@given(cases("anything", SUPPORT))
def test_what_always_fails_ends_at_an_empty_step(case):
    smallest, minimal = shrink.shrink(case, SUPPORT, lambda case: True, always)
    assert minimal
    assert smallest.requests == ()
    assert (smallest.num_kv_heads, smallest.group_size, smallest.head_size) == (1, 1, 16)
    assert (smallest.values.kind, smallest.values.seed, smallest.sinks, smallest.window) == ("exact", 0, None, (-1, -1))
    assert (smallest.num_rows, smallest.kv_rows_past, smallest.slack, smallest.table_padding) == (0, 0, 0, 0)
    if smallest.cache is not None:
        assert smallest.cache == Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=1, num_blocks=1)
    assert smallest == Case(
        target=case.target,
        attn_type=case.attn_type,
        dtype=smallest.dtype,
        cache=smallest.cache,
        writes=case.writes,
        scale=smallest.scale,
    )


def test_what_fails_no_more_stays_as_it_is(step_case):
    assert shrink.shrink(step_case, replace(EVERYTHING, head_sizes=(8,)), lambda case: False, always) == (step_case, True)


def test_it_stops_when_told_and_does_not_claim_to_be_done(step_case):
    tried = []
    smallest, minimal = shrink.shrink(
        step_case, replace(EVERYTHING, head_sizes=(8,)), lambda case: not tried.append(case), lambda: len(tried) < 2
    )
    assert not minimal
    assert smallest == tried[-1]
    assert len(tried) == 2


def test_a_real_failure_ends_where_every_smaller_case_passes(fuzz_here):
    failure = fuzz_here("planted:ONE_KEY_SHORT")[0].failure
    target = registry.load("planted:ONE_KEY_SHORT")
    assert failure.minimal
    assert try_case(failure.case, target, "cpu").failed
    smaller = list(shrink.lowered(failure.case, planted.SMALL))
    assert smaller
    assert not any(try_case(candidate, target, "cpu").failed for candidate in smaller)
    assert failure.case.attn_type in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)
