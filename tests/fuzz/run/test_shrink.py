"""Shrinking ends, stays within the support, keeps its failure, and where it ends no field can be lowered."""

import json
from dataclasses import replace
from typing import get_args, get_type_hints

import msgspec
import planted
import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case
from attn_fuzz.report.run import Found
from attn_fuzz.run import shard, shrink
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.strategies import cases
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import EVERYTHING, Support
from attn_fuzz.verdict.verdict import Verdict, VerdictKind, what_failed
from attn_lab.zoo import known_bugs as mutants
from attn_parity.commands.fuzz import failing
from hypothesis import HealthCheck, assume, given, settings

SUPPORT = replace(EVERYTHING, max_tokens=64, max_seq_len=200, dtypes=("float16", "bfloat16"))
few = settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def always() -> bool:
    return True


def is_within(support: Support, case: Case) -> bool:
    return support.not_drawn(case) is None and support.beyond(case) is None


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
def test_a_case_that_always_fails_shrinks_to_an_empty_step(case):
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


def test_a_case_that_fails_no_more_stays_as_it_is(step_case):
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


def test_a_rule_that_the_case_needs_stays(step_case):
    """Two bugs look alike. One needs a window; the other one is in every step of one row."""
    case = msgspec.structs.replace(step_case, window=(5, -1), lse=True)

    def fails(case: Case) -> bool:
        return case.window != (-1, -1) or tokens(case) == 1

    smallest, minimal = shrink.shrink(case, replace(EVERYTHING, head_sizes=(8,)), fails, always)
    assert minimal
    assert smallest.window != (-1, -1)
    assert not smallest.lse, "it fails without the LSE too"


LOWER = {
    "window": ((7, 2), [(-1, 2), (3, 2), (5, 2), (6, 2), (7, -1), (7, 1)]),
    "sink_tokens": (3, [0, 2]),
    "chunked_local": (16, [1, 9, 13, 15]),
    "logits_soft_cap": (50.0, [1.0]),
    "head_size_v": (8, [1, 5, 7]),
    "qq_bias": ("random", ["tree"]),
    "sinks": ("above", ["off", "zero", "near"]),
}


@pytest.mark.parametrize("name", LOWER)
def test_a_rule_is_lowered_by_its_declared_type(name):
    value, expected = LOWER[name]
    assert list(shrink.lower_values(value, get_type_hints(Case, include_extras=True)[name])) == expected


class Scripted:
    """Runs a case as an Executor does: each verdict is a function of the case."""

    def __init__(self, verdict_of) -> None:
        self.verdict_of = verdict_of
        self.cases: list[Case] = []

    def run(self, case: Case, *, exactly: bool = False, **options: object) -> Verdict:
        self.cases.append(case)
        return self.verdict_of(case)


def shrunk(verdict_of, case: Case, tmp_path, **fields) -> shard.Progress:
    """The end of a run whose past case is the given one."""
    case = msgspec.structs.replace(case, head_size=16)
    plan = FuzzPlan(target="reference-fp32", device="cpu", examples=0, seed=1, folder=tmp_path, past=(case,), **fields)
    return shard.fuzz(plan, Scripted(verdict_of))  # pyright: ignore[reportArgumentType]


def slips(case: Case) -> Verdict:
    """A stray write that becomes another failure where the step has no tokens."""
    if not tokens(case):
        return Verdict(kind="crashed", message="the process was killed by SIGSEGV")
    return Verdict(kind="guard", about="out", message=f"it wrote to out row {tokens(case)}")


def test_another_failure_on_the_way_is_a_second_one_and_does_not_replace_the_first(step_case, tmp_path):
    progress = shrunk(slips, step_case, tmp_path)
    assert progress.failure is not None
    assert (progress.failure.verdict.kind, tokens(progress.failure.case)) == ("guard", 1)
    assert progress.failure.minimal
    (other,) = progress.others
    assert (other.verdict.kind, tokens(other.case)) == ("crashed", 0)
    assert other.minimal, "it is shrunk in the time that is left"


def test_the_others_are_named_where_no_time_is_left(step_case, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "OTHERS_SECONDS", 0.0)
    progress = shrunk(slips, step_case, tmp_path)
    assert progress.failure is not None
    assert progress.failure.minimal
    assert [other.verdict.kind for other in progress.others] == ["crashed"]
    assert not progress.others[0].minimal


def test_a_mutant_is_one_bug_whatever_else_fails_on_the_way(step_case, tmp_path):
    progress = shrunk(slips, step_case, tmp_path, mutant=mutants.load(mutants.FOLDER / "diagonal.toml"))
    assert progress.failure is not None
    assert progress.others == ()


def test_the_first_case_is_reported_before_anything_is_shrunk(step_case, tmp_path):
    told: list[shard.Progress] = []
    executor = Scripted(slips)
    step_case = msgspec.structs.replace(step_case, head_size=16)
    plan = FuzzPlan(target="reference-fp32", device="cpu", examples=0, seed=1, folder=tmp_path, past=(step_case,))

    def report(progress: shard.Progress) -> None:
        if progress.failure is not None:
            told.append(progress)
            assert len(told) > 1 or executor.cases == [step_case]

    shard.fuzz(plan, executor, report)  # pyright: ignore[reportArgumentType]
    assert told[0].failure.case == told[-1].failure.first == step_case
    assert told[-1].failure.first_verdict.message == "it wrote to out row 5"
    assert len(told) > 2


SAME = [
    (("value", "out"), ("nan", "out")),
    (("value", "out"), ("bitwise", "out")),
    (("nan", "out"), ("unwritten", "out")),
    (("crashed", ""), ("crashed", "")),
    (("raised", "TypeError"), ("raised", "TypeError")),
    (("sanitizer", "load of kv_cache"), ("sanitizer", "load of kv_cache")),
    (("fence", "past the end of kv_cache"), ("fence", "past the end of kv_cache")),
]
DIFFERENT = [
    (("value", "out"), ("lse", "lse")),
    (("value", "out"), ("value", "sinks is beyond its support: out")),
    (("guard", "out"), ("guard", "lse")),
    (("guard", "out"), ("crashed", "")),
    (("guard", "out"), ("input", "q")),
    (("input", "q"), ("input", "seq_lens")),
    (("raised", "TypeError"), ("raised", "RuntimeError")),
    (("raised", "RuntimeError"), ("crashed", "")),
    (("served", "sinks"), ("served", "a sliding window")),
    (("sanitizer", "load of kv_cache"), ("sanitizer", "store of kv_cache")),
    (("sanitizer", "load of kv_cache"), ("sanitizer", "load of block_table")),
    (("fence", "past the end of kv_cache"), ("fence", "before the beginning of kv_cache")),
    (("property", "weights"), ("property", "wide window")),
    (("exact", "out"), ("exact", "lse")),
    (("exact", "out"), ("value", "out")),
    (("cache", "kv_cache"), ("cache", "kv_cache, by attention")),
    (("hung", ""), ("crashed", "")),
]


@pytest.mark.parametrize(("one", "other"), [*SAME, *DIFFERENT])
def test_which_failures_may_stand_for_each_other(one, other):
    first, second = (Verdict(kind=kind, about=about, message=f"at {i}") for i, (kind, about) in enumerate((one, other)))
    assert (what_failed(first) == what_failed(second)) == ((one, other) in SAME)


def test_every_kind_of_failure_has_been_thought_of():
    named = {kind for pair in (*SAME, *DIFFERENT) for kind, _ in pair}
    assert set(get_args(VerdictKind)) - named == {"agree", "refused", "limit", "rope"}, (
        "a query that is rotated wrongly is of one tensor"
    )


def test_a_wrong_number_may_become_nan_which_is_told(step_case, tmp_path, capsys):
    progress = shrunk(
        lambda case: Verdict(kind="value" if tokens(case) > 3 else "nan", about="out", message="wrong"), step_case, tmp_path
    )
    assert progress.failure is not None
    assert (progress.failure.first_verdict.kind, progress.failure.verdict.kind) == ("value", "nan")
    assert progress.failure.minimal
    assert progress.others == ()
    failing.tell(Found(progress.failure, tmp_path / "case.json", None), is_first=True)
    assert "it was found by another symptom, perhaps of another cause: value: wrong\n" in capsys.readouterr().out


def test_the_story_of_a_stray_write_that_ended_as_another_failure(attn_parity, tmp_path):
    """It ended as another failure on a batch without tokens, and the first failure was never shown."""
    run = attn_parity(
        *("fuzz", "--target", "planted:WRITES_INTO_A_NEIGHBOURS_ROW", "--examples", 60, "--seed", 1, "--workers", 1),
        *("--corpus", "none", "--json", "run.json"),
    )
    assert run.code == 1
    first, *others = json.loads((tmp_path / "run.json").read_text())["failures"]
    assert first["kind"] == first["first"]["kind"] == "guard"
    assert first["minimal"]
    assert sum(request["query_len"] for request in first["case"]["requests"]) > 0
    assert [other["kind"] for other in others] == ["raised"]
    assert others[0]["while_shrinking"]
    shown = run.out.index(first["first_file"])
    assert shown < run.out.index("smallest case")
    assert run.out.index("guard: it wrote to out row") < run.out.index("smallest case")
    for path in (first["first_file"], first["case_file"], first["script"], others[0]["case_file"], others[0]["script"]):
        assert (tmp_path / path).exists()
    assert attn_parity("replay", first["first_file"], "--target", "planted:WRITES_INTO_A_NEIGHBOURS_ROW").code == 1
