"""`fuzz --keep-going` tells faults of one target apart, hides none, and finds the same with any number of workers."""

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aspects import ASPECTS, aspects
from attn_fuzz.run import needs, runner, shrink
from attn_fuzz.run.distinct import SHARD_EXAMPLES, DistinctFailures, Entry
from attn_fuzz.run.shard import Failure, FuzzPlan, Progress
from attn_fuzz.strategies import cases
from attn_fuzz.targets import needing
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.verdict.verdict import Verdict, what_failed
from hypothesis import HealthCheck, assume, given, settings

from tests.fuzz.report.reported import failure_of
from tests.support import processes
from tests.support.json_schemas import check

THREE, HIDING = "planted_hunt:THREE", "planted_hunt:HIDING"
CAP_AND_SINKS = {"logits_soft_cap", "sinks"}
Runs = Callable[[FuzzPlan], Progress]


@pytest.fixture(scope="module")
def run_of(fuzz_in, tmp_path_factory) -> Runs:
    """Runs a plan in this process, once."""
    folder, ran = tmp_path_factory.mktemp("hunt"), {}

    def run(plan: FuzzPlan) -> Progress:
        if plan not in ran:
            fields = {name: getattr(plan, name) for name in plan.__struct_fields__ if name not in ("target", "folder")}
            ran[plan] = fuzz_in(folder, plan.target, **fields)[0]
        return ran[plan]

    return run


def draws(*targets: str, examples: int, seed: int = 1, folder: Path = Path()) -> list[list[FuzzPlan]]:
    plans = [
        FuzzPlan(target=name, device="cpu", examples=examples, seed=seed, folder=folder, on_failure="go on") for name in targets
    ]
    return [runner.shards(plan, SHARD_EXAMPLES) for plan in plans]


def hunted(run_of: Runs, *targets: str, examples: int, seed: int = 1, order: random.Random | None = None) -> DistinctFailures:
    """A hunt whose plans run one after the other, in their order or in a random one."""
    hunt = DistinctFailures(draws(*targets, examples=examples, seed=seed))
    waiting = list(range(len(hunt.plans)))
    while waiting:
        index = waiting.pop(order.randrange(len(waiting)) if order else 0)
        before, progress = len(hunt.plans), run_of(hunt.plans[index])
        hunt.report(index, progress)
        hunt.ended(index, progress)
        waiting[:0] = range(before, len(hunt.plans))
    hunt.finish()
    return hunt


def found(hunt: DistinctFailures) -> list[tuple]:
    return [
        (entry.target, entry.way, entry.number, entry.after, entry.explained, entry.needs, entry.failure.case)
        for entry in hunt.entries
    ]


def test_it_finds_three_faults_of_one_target_and_counts_what_they_explain(run_of):
    hunt = hunted(run_of, THREE, examples=50)
    needed = {(entry.failure.verdict.kind, *sorted(entry.needs)) for entry in hunt.entries}
    assert needed == {
        ("nan", "alibi_slopes of any kind", "several requests"),
        ("value", "logits_soft_cap"),
        ("value", "sinks"),
    }
    failing = sum(len(progress.passed) for progress in hunt.of_target(THREE))
    assert sum(1 + entry.explained for entry in hunt.entries) == failing > 20
    assert all(entry.failure.minimal and entry.again for entry in hunt.entries)


@pytest.mark.nightly
def test_it_does_not_hide_a_fault_behind_a_predicate_that_is_too_broad(run_of):
    """Each case of the second fault has a soft cap, which is what the first fault needs. With seed 1 the second comes first."""
    hunt = hunted(run_of, HIDING, examples=50, seed=3)
    first, second = hunt.entries
    assert (first.needs, second.needs) == ({"logits_soft_cap"}, CAP_AND_SINKS)
    broad = needing("logits_soft_cap", kinds=first.kinds, about="out")
    hidden = second.failure
    assert broad(hidden.first, hidden.first_verdict), "the fault would be taken for the first one"
    assert not first.explains(hidden.first, hidden.first_verdict, hidden.needed_parts)
    assert hidden.needed_parts == CAP_AND_SINKS


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_shards_that_end_in_another_order_lead_to_the_same_entries(seed, run_of):
    in_order, shuffled = (hunted(run_of, THREE, HIDING, examples=75, order=order) for order in (None, random.Random(seed)))
    assert found(in_order) == found(shuffled)
    assert len(in_order.entries) == 5


def entry_of(case: Case, verdict: Verdict, **fields) -> Entry:
    needed = {"needed_parts": frozenset({"sinks"}), "needs": frozenset({"sinks", "decode"})}
    failure = failure_of(case, verdict, kinds=frozenset({verdict.kind}), **{**needed, **fields})
    return Entry("a target", what_failed(verdict), 1, 1, failure)


@pytest.fixture
def sink_case(step_case) -> Case:
    """One request that decodes, in a layer with sinks."""
    request = msgspec.structs.replace(step_case.requests[0], query_len=1)
    return msgspec.structs.replace(step_case, sinks="zero", requests=(request,), head_size=16)


WRONG = Verdict(kind="value", about="out", message="wrong")


@pytest.mark.parametrize(
    ("changes", "verdict", "parts", "explained"),
    [
        ({}, WRONG, {"sinks"}, True),
        ({"logits_soft_cap": 2.0}, WRONG, {"sinks"}, True),
        ({}, Verdict(kind="bitwise", about="out"), {"sinks"}, True),
        ({}, Verdict(kind="nan", about="out"), {"sinks"}, False),
        ({}, Verdict(kind="value", about="lse"), {"sinks"}, False),
        ({}, Verdict(kind="guard", about="out"), {"sinks"}, False),
        ({}, Verdict(kind="raised", about="ValueError"), {"sinks"}, False),
        ({"logits_soft_cap": 2.0}, WRONG, {"sinks", "logits_soft_cap"}, False),
        ({}, WRONG, set(), False),
        ({"sinks": None}, WRONG, set(), False),
        ({"requests": ()}, WRONG, {"sinks"}, False),
    ],
)
def test_an_entry_explains_failures_with_all_of_its_parts(changes, verdict, parts, explained, sink_case):
    entry = entry_of(sink_case, WRONG)
    assert entry.explains(msgspec.structs.replace(sink_case, **changes), verdict, frozenset(parts)) == explained


def test_a_case_that_became_nan_while_it_was_shrunk_explains_both(sink_case):
    failure = entry_of(sink_case, WRONG).failure
    entry = Entry("a target", what_failed(WRONG), 1, 1, msgspec.structs.replace(failure, kinds=frozenset({"value", "nan"})))
    assert entry.explains(sink_case, Verdict(kind="nan", about="out"), frozenset({"sinks"}))


def noted(*failures: Failure) -> Progress:
    return Progress(examples=25, passed=failures)


def start(sink_case, *changes: dict) -> tuple[DistinctFailures, list[Entry], list[Entry]]:
    """A hunt whose only shard has ended, with a failure for each change of the case; entries that changed, and dropped ones."""
    changed, dropped = [], []
    hunt = DistinctFailures([draws("a target", examples=25)[0]], None, changed.append, dropped.append)
    passed = [entry_of(msgspec.structs.replace(sink_case, **each), WRONG, needs=None).failure for each in changes]
    hunt.report(0, noted(*passed))
    hunt.ended(0, noted(*passed))
    return hunt, changed, dropped


def test_a_failure_that_does_not_come_again_is_kept_and_said_to_be(sink_case):
    hunt, _, _ = start(sink_case, {})
    hunt.ended(1, Progress(replayed=1))
    (entry,) = hunt.entries
    assert (entry.again, entry.failure.case) == (False, sink_case)


@pytest.mark.parametrize(("kind", "exact_every"), [("exact", 1), ("value", 25)])
def test_a_failure_runs_again_in_its_own_mode(kind, exact_every, sink_case):
    (drawn,) = draws("a target", examples=25)
    hunt = DistinctFailures([[msgspec.structs.replace(each, exact_every=25) for each in drawn]])
    hunt.ended(0, noted(entry_of(sink_case, Verdict(kind=kind, about="out"), needs=None).failure))
    assert hunt.plans[1].exact_every == exact_every


def test_a_failure_that_shrinks_to_a_known_one_widens_its_entry(sink_case):
    """Its dtype is another one than the entry seemed to need, so the entry does not need it."""
    hunt, _, dropped = start(sink_case, {"dtype": "float16"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "slack": 3})
    small = entry_of(msgspec.structs.replace(sink_case, dtype="float16"), WRONG, needs=frozenset({"sinks", "float16"})).failure
    hunt.ended(1, Progress(failure=small))
    first = hunt.plans[2].past[0]
    assert first.dtype == "bfloat16"
    hunt.ended(2, Progress(failure=msgspec.structs.replace(small, first=first)))
    (entry,) = hunt.entries
    assert (entry.needs, entry.explained) == ({"sinks"}, 2), "the third failure is explained by the wider entry"
    assert len(dropped) == 1
    assert len(hunt.plans) == 3


def test_a_failure_that_the_run_did_not_shrink_is_reported_as_it_was_found(sink_case):
    hunt, changed, _ = start(sink_case, {}, {"slack": 1})
    assert [entry.is_open for entry in hunt.entries] == [True]
    hunt.finish()
    (entry,) = hunt.entries
    assert (entry.is_open, entry.failure.minimal, entry.explained) == (False, True, 1)
    assert changed[-1] is entry


def test_another_failure_met_while_shrinking_is_an_entry_only_if_no_drawn_case_is(sink_case):
    other = entry_of(sink_case, Verdict(kind="crashed"), needs=frozenset()).failure
    hunt, _, _ = start(sink_case, {})
    hunt.ended(1, Progress(failure=entry_of(sink_case, WRONG).failure, others=(other, other)))
    hunt.finish()
    wrong, crash = hunt.entries
    assert (crash.way[0], crash.met_in, crash.explained) == ("crashed", wrong, 0)


class AtOnce:
    """Workers of which each is itself, and runs each plan at once: it says that it replayed the plan's past cases."""

    lives = 1

    def start(self) -> "AtOnce":
        return AtOnce()

    def ready(self, busy: Sequence["AtOnce"], seconds: float) -> Sequence["AtOnce"]:
        return [worker for worker in busy if worker.messages]

    def run(self, plan: FuzzPlan) -> None:
        self.messages = [Progress(replayed=len(plan.past)), None]

    def receive(self) -> Progress | None:
        return self.messages.pop(0)

    def acknowledge(self) -> None:
        pass


def test_plans_that_join_a_run_run_after_the_next_one(step_case):
    """A plan that is added while the first one runs comes before the third one."""
    plan = FuzzPlan(target="a target", device="cpu", examples=0, seed=0, folder=Path(), past=(step_case,))
    plans, ended = [plan] * 3, []

    def end(index: int, progress: Progress) -> None:
        ended.append(index)
        if len(plans) == 3:
            plans.append(plan)

    place = contextlib.nullcontext(AtOnce())
    outcome = runner.run(plans, 1, stop_at_failure=False, ended=end, place=lambda plans: place)
    assert ended == [0, 1, 3, 2]
    assert [progress.replayed for progress in outcome.progress] == [1, 1, 1, 1]


def test_a_plan_whose_time_is_over_does_not_begin(step_case):
    plan = FuzzPlan(target="a target", device="cpu", examples=0, seed=0, folder=Path(), past=(step_case,))
    plans = [plan, msgspec.structs.replace(plan, until=time.time() - 1), plan]
    outcome = runner.run(plans, 1, stop_at_failure=False, place=lambda plans: contextlib.nullcontext(AtOnce()))
    assert outcome.finished == {0, 2}


def test_a_shard_that_goes_on_notes_each_failure_with_the_parts_that_it_needs(run_of):
    progress = run_of(draws(THREE, examples=50)[0][0])
    assert progress.examples == 25
    assert progress.failure is None
    assert len(progress.passed) > 5
    for failure in progress.passed:
        assert failure.needed_parts <= {"sinks", "logits_soft_cap", "alibi_slopes"}
        assert len(failure.needed_parts) == 1, "one fault is enough to fail, and a rule that is not needed is turned off"


NEEDS = {
    "decodes": (lambda case: any(r.query_len == 1 and r.context_len > 0 for r in case.requests), {"decode"}),
    "float16": (lambda case: case.dtype == "float16", {"float16"}),
    "recycled": (lambda case: case.recycled, {"NaN in keys that no query sees"}),
    "several requests": (lambda case: len(case.requests) > 1, {"several requests"}),
    "sinks and a cap": (lambda case: case.sinks is not None and case.logits_soft_cap is not None, CAP_AND_SINKS),
    "slopes": (lambda case: case.alibi_slopes, {"alibi_slopes of any kind"}),
    "an int8 cache": (lambda case: case.cache is not None and case.cache.dtype == "int8", {"cache int8"}),
}


@pytest.mark.parametrize("name", NEEDS)
def test_the_aspects_that_a_smallest_case_needs_are_found(name):
    """Beside it may stand what comes with it, such as the scales of an int8 cache."""
    fails, expected = NEEDS[name]

    @settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases("anything", EVERYTHING))
    def holds(case):
        assume(fails(case))
        smallest, minimal = shrink.shrink(case, EVERYTHING, fails, lambda: True)
        needed = needs.needed(smallest, EVERYTHING, fails, lambda: True, is_minimal=minimal)
        assert expected <= needed <= aspects(smallest)
        assert not needed & {"float32", "decoder, causal", "unequal logits"}

    holds()


def test_aspects_that_are_undecided_when_time_is_over_count_as_needed(sink_case):
    assert needs.needed(sink_case, EVERYTHING, lambda case: True, lambda: False, is_minimal=False) == aspects(sink_case)


def test_aspects_have_names_of_their_own_and_a_predicate_knows_them(sink_case):
    names = [aspect.name for aspect in ASPECTS]
    assert len(set(names)) == len(names)
    explains = needing("sinks", "decode", kinds=("value",), about="out")
    assert explains(sink_case, WRONG)
    assert not explains(msgspec.structs.replace(sink_case, sinks=None), WRONG)
    assert not explains(sink_case, Verdict(kind="nan", about="out"))
    with pytest.raises(ValueError, match="needing: got 'sink', expected names of"):
        needing("sink", kinds=("value",), about="out")


OWN = """
import dataclasses, sys
sys.path.append("attn-parity-runs")
from findings_planted_three_1 import FINDINGS
from planted_hunt import THREE
TARGET = dataclasses.replace(THREE, findings=FINDINGS)
"""


@pytest.mark.nightly
def test_two_workers_find_what_one_finds_and_its_declarations_are_findings(run_of, attn_parity, tmp_path):
    options = ("--examples", 50, "--seed", 1, "--workers", 2, "--corpus", "none", "--json", "run.json")
    run = attn_parity("fuzz", "--keep-going", "--target", THREE, *options)
    assert run.code == 1
    result = check("fuzz", (tmp_path / "run.json").read_text())
    expected = [(entry.after, entry.explained, entry.needs) for entry in hunted(run_of, THREE, examples=50).entries]
    assert [(each["found_after"], each["later"], set(each["needs"])) for each in result["failures"]] == expected
    for each in result["failures"]:
        assert case_file.load(tmp_path / each["case_file"]) == msgspec.convert(each["case"], Case, strict=False)
        assert (tmp_path / each["script"]).exists()
        assert each["name"] in run.out
    (tmp_path / "own.py").write_text(OWN)
    again = attn_parity("fuzz", "--target", "own:TARGET", *options[:-2])
    assert again.code == 0, again.out
    assert "fail by known findings" in again.out


def test_where_nothing_fails_it_ends_with_0(attn_parity, tmp_path):
    options = ("--minutes", 0.01, "--seed", 1, "--workers", 1, "--json", "run.json")
    run = attn_parity("fuzz", "--keep-going", "--target", "planted_hunt:SOUND", *options)
    assert run.code == 0
    assert "planted-sound on CPU, 0.01 minutes, " in run.out
    assert check("fuzz", (tmp_path / "run.json").read_text())["failures"] == []


def test_several_targets_take_turns_and_each_has_its_results(attn_parity, tmp_path):
    options = ("--examples", 25, "--seed", 1, "--workers", 1, "--corpus", "none", "--json", "run.json", "--report", "here")
    run = attn_parity("fuzz", "--keep-going", "--target", "planted_hunt:SOUND", "--target", "planted_hunt:PICKY", *options)
    runs = {run["target"]: run for run in check("fuzz-runs", (tmp_path / "run.json").read_text())["runs"]}
    lost = runs["planted-picky"]["drawn"]["rejected"]["excluded: fused qkv"]
    assert lost > 0
    assert f"planted-picky: thrown away: {lost} of {25 + lost} cases drawn: {lost} excluded: fused qkv" in run.err
    assert "planted-sound: thrown away" not in run.err
    assert "excluded: fused qkv" not in runs["planted-sound"]["drawn"]["rejected"]
    assert [path.name for path in sorted((tmp_path / "here").iterdir())] == ["planted-picky-1.html", "planted-sound-1.html"]


@pytest.mark.nightly
def test_one_that_is_interrupted_reports_what_it_found(tmp_path, child_environment):
    program = ["-m", "attn_parity", "fuzz", "--keep-going", "--target", THREE, "--minutes", 60, "--seed", 1, "--workers", 1]
    ended = processes.signalled(
        [*program, "--json", "run.json", "--report", "found", "--corpus", "none"],
        lambda _: list(tmp_path.glob("found/*-first.json")),
        signal.SIGTERM,
        cwd=tmp_path,
        env=child_environment,
    )
    assert ended.returncode == 1, ended.stderr
    assert "interrupted: " in ended.stdout
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["interrupted"]
    assert result["failures"]
    for each in result["failures"]:
        assert (tmp_path / each["case_file"]).exists()
        assert each["case_file"] in ended.stdout
