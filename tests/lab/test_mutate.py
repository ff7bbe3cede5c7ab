"""Generated mutants have names that last; a campaign goes on where it ended; rates count what they say."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.patches.source import patched_sources
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import Failure, FuzzPlan, Progress
from attn_fuzz.verdict.verdict import Verdict
from attn_lab import results_file
from attn_lab.mutate import campaign, generate, line_coverage, reasons, suite
from attn_lab.mutate import page as mutants_page
from attn_lab.mutate import results as mutants_results
from attn_lab.mutate.line_coverage import Reach, RecordedTests, targets_of
from attn_lab.mutate.log import PROBE, Key, Log, Trial
from attn_lab.mutate.page import PAGE
from attn_lab.mutate.reasons import EQUIVALENT, NOT_FOUND
from attn_lab.mutate.results import BROKEN, NOT_RUN_BY_ANY, UNFINISHED, Results
from attn_lab.mutate.suite import TESTS

replace = msgspec.structs.replace
DATA = results_file.data_of(PAGE)

SUMS = """\
def add(a, b):
    if a < b:
        return a + b
    return a - b


def harmless(a):
    return [a for _ in range(1)]
"""


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """The package `plain`, which nobody imports; returns the names of its mutants."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").write_text("")
    (tmp_path / "plain" / "sums.py").write_text(SUMS)
    monkeypatch.syspath_prepend(tmp_path)
    generate.of_module.cache_clear()
    yield lambda: [mutant.name for mutant in generate.of_package("plain")]
    generate.of_module.cache_clear()


def test_a_name_says_where_a_mutant_is_and_which(sums):
    names = sums()
    assert "plain.sums.add:edge:1" in names
    assert [name.rpartition(":")[2] for name in names if name.startswith("plain.sums.add:forced")] == ["1", "2"]
    assert len(set(names)) == len(names)
    (mutant,) = generate.by_name(["plain.sums.add:edge:1"], "plain")
    assert (mutant.change, mutant.line) == ("a < b -> a <= b", 2)
    assert "if (a <= b):" in patched_sources([mutant.patch])["plain.sums"]


def test_a_change_of_a_function_renames_no_mutant_of_another(sums, tmp_path):
    names = sums()
    (tmp_path / "plain" / "sums.py").write_text("def first(a):\n    return a < 1 and a + 1\n\n\n" + SUMS)
    generate.of_module.cache_clear()
    assert [name for name in sums() if not name.startswith("plain.sums.first")] == names


def test_a_name_that_no_operator_makes_is_an_error(sums):
    with pytest.raises(MutantError, match=r"got plain.sums.add:edge:2, which no operator makes, expected .*add:edge:1"):
        generate.by_name(["plain.sums.add:edge:2"], "plain")


def test_a_sample_is_of_its_seed_and_of_all_modules_and_operators():
    taken = generate.sample(60, 0)
    assert taken[:20] == generate.sample(20, 0)
    assert taken[:20] != generate.sample(20, 1)
    assert len({mutant.module for mutant in taken}) > 25
    assert len({mutant.operator for mutant in taken}) >= 10
    assert max(Counter(mutant.module for mutant in taken).values()) < 8


def test_a_sample_holds_no_mutant_that_is_the_same_code(sums):
    taken = generate.sample(100, 0, "plain")
    codes = [generate.compiled(mutant) for mutant in taken]
    assert None not in codes
    assert len(set(codes)) == len(codes)


MUTANT = generate.by_name(["attn_optimized.kernels.visibility.in_window:min-max:1"])[0]
OTHER = generate.by_name(["attn_optimized.kernels.visibility.in_window:min-max:2"])[0]
LINES = {MUTANT.module: {MUTANT.line: 3, OTHER.line: 3}}
PLAN = FuzzPlan(target="", device="cpu", examples=300, seed=0, folder=Path("unused"))


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "mutants.jsonl", generate.PACKAGE)
    for name, seconds in (("slow", 1.0), ("quick", 0.1)):
        made.add(Reach(name, seconds, LINES))
    return made


class Ran(NamedTuple):
    """A plan's work: its mutants, its target, and "cases" of a shard alone, or a whole "shard"."""

    mutants: set[str]
    target: str
    part: str


@pytest.fixture
def ran(monkeypatch):
    """Replace the runner. Returns the plans that ran, and the ends of plans with mutants, by the mutant's name."""
    ran: list[Ran] = []
    answers: dict[str, Progress] = {}

    def run(plans, workers, *, stop_at_failure, ended):
        outcome = Outcome([])
        for index, plan in enumerate(plans):  # `ended` adds plans
            if len(ran) == answers.get("interrupted after"):
                outcome.interrupted = True
                return outcome
            names = {each.name for each in (MUTANT, OTHER) if each.patch in plan.mutant.patches}
            ran.append(Ran(names, plan.target, "cases" if plan.first else "shard"))
            endings = [answers[name] for name in sorted(names) if name in answers]
            ended(index, endings[0] if endings and not plan.first else Progress(examples=plan.first or plan.examples))
        return outcome

    monkeypatch.setattr(runner, "run", run)
    return ran, answers


def test_targets_are_those_that_run_the_statement_and_the_quickest_comes_first():
    reaches = [Reach("slow", 1.0, LINES), Reach("quick", 0.1, LINES), Reach("elsewhere", 0.1, {})]
    assert targets_of(MUTANT.module, MUTANT.line, reaches) == ["quick", "slow"]


def test_a_record_counts_cases_that_run_a_kernel(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")  # as for a user
    plan = FuzzPlan(target="triton", device="cpu", examples=6, seed=0, folder=tmp_path)
    found = line_coverage.record(plan, generate.PACKAGE)
    assert max(found.cases["attn_optimized.kernels.attention"].values()) > 1, "at import each statement counts once"


def test_shards_of_ci_come_before_those_of_nightly():
    keys = campaign.order(MUTANT, 0, ["a", "b"], 450)
    assert [(key.target, key.shard) for key in keys] == [(target, i) for i in (PROBE, 0, 1, 2) for target in "ab"]
    assert keys[:6] == campaign.order(MUTANT, 0, ["a", "b"], 300)


BOTH = {MUTANT.name, OTHER.name}


def failing(case) -> Progress:
    verdict = Verdict(kind="value", message="wrong")
    failure = Failure(
        case=case, verdict=verdict, first=case, first_verdict=verdict, found_after=7, found_seconds=1.0, minimal=False
    )
    return Progress(examples=7, failure=failure)


def test_a_campaign_goes_on_where_it_was_interrupted(log, ran):
    done, answers = ran
    answers["interrupted after"] = 5
    assert campaign.run([MUTANT, OTHER], [0], PLAN, log, 1).interrupted
    alone = [Ran({name}, target, "cases") for target in ("quick", "slow") for name in (MUTANT.name, OTHER.name)]
    assert done == [*alone, Ran(BOTH, "quick", "shard")]
    row = mutants_results.row(OTHER, log, [0], 300, {})
    assert (row.state, row.counts) == (UNFINISHED, False)
    again = Log(log.path, generate.PACKAGE)
    del answers["interrupted after"]
    campaign.run([MUTANT, OTHER], [0], PLAN, again, 1)
    assert done[4:] == [Ran(BOTH, target, "shard") for target in ("quick", "slow", "quick", "slow")]
    row = mutants_results.row(OTHER, again, [0], 300, {})
    assert (row.examples, row.state) == ((None,), "")


def test_what_the_first_cases_find_joins_no_group(log, monkeypatch, step_case):
    done = []

    def run(plans, workers, *, stop_at_failure, ended):
        for index, plan in enumerate(plans):
            done.append((plan.mutant.name, plan.first))
            ended(index, failing(step_case) if plan.mutant.name == MUTANT.name else Progress(examples=plan.examples))
        return Outcome([])

    monkeypatch.setattr(runner, "run", run)
    campaign.run([MUTANT, OTHER], [0], PLAN, log, 1)
    assert done == [(MUTANT.name, 20), (OTHER.name, 20), (OTHER.name, 20), *[(OTHER.name, None)] * 4]
    assert mutants_results.row(MUTANT, log, [0], 300, {}).examples == (7,)


@pytest.mark.parametrize("guilty", [MUTANT, OTHER])
def test_a_failing_group_is_halved_and_the_others_go_on(guilty, log, ran, step_case):
    done, answers = ran
    answers[guilty.name] = failing(step_case)
    campaign.run([MUTANT, OTHER], [0], PLAN, log, 1)
    (innocent,) = BOTH - {guilty.name}
    of_quick = [run.mutants for run in done if run.target == "quick" and run.part == "shard"]
    assert of_quick == [BOTH, {MUTANT.name}, {OTHER.name}, {innocent}]
    assert [run.mutants for run in done if (run.target, run.part) == ("slow", "shard")] == [{innocent}] * 2
    assert mutants_results.row(guilty, log, [0], 300, {}).examples == (20 + 20 + 7,)
    assert [mutants_results.row(each, log, [0], 300, {}).examples for each in (MUTANT, OTHER)].count((None,)) == 1


def test_mutants_that_fail_together_only_survive_alone(log, ran, step_case, monkeypatch):
    run = runner.run

    def together_only(plans, workers, *, stop_at_failure, ended):
        def end(index, progress):
            ended(index, failing(step_case) if len(plans[index].mutant.patches) > 1 else progress)

        return run(plans, workers, stop_at_failure=stop_at_failure, ended=end)

    monkeypatch.setattr(runner, "run", together_only)
    campaign.run([MUTANT, OTHER], [0], PLAN, log, 1)
    assert all(trial.by is None and trial.together == 1 for trial in log.trials.values())
    assert len(log.trials) == 2 * 2 * 3
    of_quick = [run.mutants for run in ran[0] if run.target == "quick" and run.part == "shard"][:3]
    assert of_quick == [BOTH, {MUTANT.name}, {OTHER.name}]


def test_a_mutant_that_does_not_import_is_no_kill_and_ends_no_run(log, ran):
    done, answers = ran
    answers[MUTANT.name] = Progress(broken="it does not import")
    campaign.run([MUTANT, OTHER], [0], PLAN, log, 1)
    assert done.count(Ran({MUTANT.name}, "quick", "shard")) == 1
    row = mutants_results.row(MUTANT, log, [0], 300, {})
    assert (row.state, row.why, row.counts) == (BROKEN, "it does not import", False)


def test_only_the_first_cases_run_if_a_plan_asks_for_them(fuzz_here):
    progress, whole = fuzz_here("planted:FLASH", examples=12)
    progress, cases = fuzz_here("planted:FLASH", examples=12, first=5)
    assert progress.examples == 5
    assert cases == whole[:5]


@pytest.mark.parametrize(
    ("message", "by", "broken"), [("TypeError: no", "raised", False), ("InterpreterError: no", None, True)]
)
def test_an_exception_in_every_case_is_a_kill_unless_the_kernel_does_not_compile(message, by, broken):
    trial = Trial.of(Key("m", 0, "t", 0), Progress(broken=f"it ran none, and raised {message}", never_ran=True))
    assert (trial.by, trial.always, trial.broken) == (by, not broken, broken)


def test_a_log_of_other_sources_is_an_error(tmp_path, log):
    with pytest.raises(ValueError, match="it is of other sources"):
        Log(log.path, "attn_reference")


@pytest.mark.parametrize("content", ["\n", "\xff", "[" * 100_000, '{"schema": 3}'])
def test_a_file_that_is_no_log_is_refused_before_mutants_are_made(content, attn_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "sample", lambda *arguments: pytest.fail("mutants were made"))
    path = tmp_path / "log.jsonl"
    path.write_text(content, encoding="latin-1")
    run = attn_lab("mutate", "run", "--log", "log.jsonl")
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert run.err.startswith("python -m attn_lab: log.jsonl: no results of mutants: ")
    assert path.read_text(encoding="latin-1") == content


def test_a_line_that_was_cut_off_is_run_again(log):
    key = Key(MUTANT.name, 0, "quick", 0)
    log.add(Trial(key, 150, 1.0))
    log.path.write_bytes(log.path.read_bytes()[:-5])
    again = Log(log.path, generate.PACKAGE)
    assert key not in again.trials
    with again.alone():
        again.add(Trial(key, 150, 1.0))
    assert key in Log(log.path, generate.PACKAGE).trials


@pytest.mark.usefixtures("generated")
def test_a_part_of_a_sample_does_not_replace_the_results(attn_lab, log):
    DATA.write_text("results of a whole sample")
    run = attn_lab("mutate", "run", "--read", "--only", MUTANT.name, "--log", log.path, "--write")
    assert (run.code, DATA.read_text()) == (2, "results of a whole sample")
    assert "--write: expected no --only: the page has a whole sample" in run.err


@pytest.mark.usefixtures("generated")
def test_two_runs_do_not_write_one_log(attn_lab, log):
    before = log.path.read_bytes()
    with log.alone():
        run = attn_lab("mutate", "run", "--log", log.path, "--only", MUTANT.name)
        told = f"python -m attn_lab: {log.path}: another run writes it; wait for its end, or give another file or folder"
        assert (run.code, run.err.splitlines()[-1]) == (2, told)
        # its results can be read meanwhile
        assert attn_lab("mutate", "run", "--read", "--only", MUTANT.name, "--log", log.path).code == 0
    assert log.path.read_bytes() == before
    with log.alone():
        log.add(Trial(Key(MUTANT.name, 0, "quick", 0), 150, 1.0))


def test_rates_count_seeds_and_tests_and_leave_out_what_does_not_run(log):
    log.add(Trial(Key(MUTANT.name, 0, "quick", PROBE), 7, 1.0, "value"))
    for target, number in itertools.product(("quick", "slow"), (PROBE, 0, 1)):
        log.add(Trial(Key(MUTANT.name, 1, target, number), 7, 1.0))
    log.add(recorded({"test_a.py::test_1": 0.1}, {MUTANT.module: {MUTANT.line: [0]}}))
    log.add(Trial(Key(MUTANT.name, TESTS, "tests", 1), 1, 1.0, "test"))
    log.add(Trial(Key(OTHER.name, 0, "quick", 0), 0, 1.0, broken=True, message="no"))
    elsewhere = generate.by_name(["attn_optimized.selector.model._check_known:edge:1"])[0]
    log.add(Trial(Key(elsewhere.name, TESTS, "tests", 0), 0, 0.0))
    rows = [mutants_results.row(each, log, [0, 1], 300, {}) for each in (MUTANT, OTHER, elsewhere)]
    assert [row.state for row in rows] == ["", BROKEN, NOT_RUN_BY_ANY]
    assert rows[0].examples == (7, None)
    assert mutants_page.rate(rows, "fuzzer") == "25 % of 2"
    assert mutants_page.rate(rows, "tests") == "50 % of 2"
    assert mutants_page.rate(rows, "fuzzer and tests") == "50 % of 2"
    raised = [msgspec.structs.replace(row, by="raised") for row in rows]
    assert mutants_page.rate(raised, "judge, property and sanitizer") == "0 % of 2"


def test_an_equivalent_mutant_is_in_no_rate_and_needs_a_reason(tmp_path, log):
    row = mutants_results.row(MUTANT, log, [0], 300, {MUTANT.name: "the same sums"})
    assert (row.counts, row.why) == (False, "the same sums")
    path = tmp_path / "equivalent.toml"
    for entry, message in (
        (f'name = "{MUTANT.name}"\nchange = "{MUTANT.change}"\nreason = " "', "has no reason"),
        ('name = "attn_optimized.nothing:edge:1"\nchange = "1 -> 2"\nreason = "gone"', "no operator makes"),
        (f'name = "{MUTANT.name}"\nchange = "1 -> 2"\nreason = "moved"', "its change is .* now, and not '1 -> 2'"),
    ):
        path.write_text(f"[[mutant]]\n{entry}\n")
        with pytest.raises(MutantError, match=message):
            reasons.load(path)


def test_the_shipped_reasons_are_of_mutants_that_exist():
    assert not reasons.load(EQUIVALENT).keys() & reasons.load(NOT_FOUND).keys()


def results_of(rows: list[mutants_results.Row]) -> Results:
    return Results("CPU", "6.170", len(rows), 0, (0,), 300, None, tuple(rows))


@pytest.fixture
def generated(tmp_path):
    """The folder of the page, which is empty."""
    (tmp_path / PAGE).parent.mkdir(parents=True)


LINES_OF_TEST = {MUTANT.module: {MUTANT.line: [0], OTHER.line: [0]}}


def recorded(tests: dict[str, float], runs: dict[str, dict[int, list[int]]], **changes) -> RecordedTests:
    file = "".join(tests)[:1]
    fields = {"file": file, "part": 0, "count": len(tests), "under": {"Python": "3.12.3"}, "imported": {}}
    return RecordedTests(**{**fields, **changes}, tests=tests, runs=runs)


def test_a_mutant_meets_the_tests_that_run_its_statement_and_the_cheap_ones_come_first():
    of_a = {"a::slow": 3.0, "a::quick": 0.001, "a::another": 0.004}
    of_b = {"b::quick": 0.002, "b::elsewhere": 0.001}
    runs = [recorded(of_b, {MUTANT.module: {MUTANT.line: [0]}}), recorded(of_a, {MUTANT.module: {MUTANT.line: [0, 1, 2]}})]
    assert [*suite.tests_of(MUTANT, runs)] == ["a::quick", "a::another", "b::quick", "a::slow"]
    at_import = recorded(of_b, {}, imported={MUTANT.module: [MUTANT.line]})
    assert [*suite.tests_of(MUTANT, [at_import])] == [*of_b], "what runs at import is for all tests of the file"


def test_a_suite_finds_a_mutant_survives_or_has_not_ended(log):
    assert mutants_results.of_tests(MUTANT, log) is None, "no test ran"
    log.add(recorded({"a::1": 0.1, "a::2": 0.1}, {MUTANT.module: {MUTANT.line: [0, 1]}}))
    assert mutants_results.of_tests(OTHER, log) is None, "perhaps not all tests are recorded"
    suite.run([OTHER], log, 1, 1.0)
    assert mutants_results.of_tests(OTHER, log) is False, "no test runs its statement"
    for trial, found in (((1,), None), ((2,), False), ((1, 1.0, "hung"), True)):
        log.add(Trial(Key(MUTANT.name, TESTS, "tests", 2), trial[0], 1.0, *trial[2:]))
        assert mutants_results.of_tests(MUTANT, log) is found
    log.add(recorded({"b::1": 0.1}, {MUTANT.module: {MUTANT.line: [0]}}))
    assert mutants_results.of_tests(MUTANT, log) is None, "there is another test"


SUITE = """\
from attn_optimized.launch.units import in_units
SEEN = []

def test_first():
    SEEN.append(in_units(2, stride=16)[0])

def test_that_needs_the_first():
    assert SEEN and in_units(2, stride=16)[0] == 8

def test_that_fails_anyway():
    assert in_units(2, stride=16)[0] == 1

def test_units():
    assert in_units(2, stride=16)[0] == 8
"""


@pytest.mark.nightly
@pytest.mark.usefixtures("generated")
@pytest.mark.timeout(300)  # processes that import torch, and a file of tests
def test_a_mutant_is_found_by_the_fuzzer_and_by_tests(attn_lab, tmp_path, monkeypatch):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_units.py").write_text(SUITE)
    strides, units = "attn_optimized.launch.call.DenseKeys.form:constant:7", "attn_optimized.launch.units.in_units:edge:1"
    monkeypatch.setattr(generate, "sample", lambda *_: generate.by_name([strides, units]))
    run = attn_lab(
        *("mutate", "run", "--target", "triton-varlen", "--recorded", 10, "--examples", 25),
        *("--workers", 1, "--log", "log.jsonl", "--tests", "suite", "--json", "out.json"),
        "--write",
    )
    assert run.code == 0, run.err
    rows = {row["name"]: row for row in json.loads(Path("out.json").read_text())["mutants"]}
    assert rows[strides]["examples"][0] <= 25
    assert rows[units]["tests"] is True, "a test asserts what the mutant changes"
    assert rows[strides]["tests"] is False, "no test runs it"
    log = Log(Path("log.jsonl"), generate.PACKAGE)
    assert log.tests["suite/test_units.py", 0].failed == ("suite/test_units.py::test_that_fails_anyway",)
    (trial,) = [trial for trial in log.trials.values() if trial.key.seed == TESTS and trial.examples]
    assert (trial.by, trial.message) == ("test", "suite/test_units.py::test_units"), "the other one fails alone in any case"
    assert attn_lab("mutate", "page").code == attn_lab("mutate", "page", "--check").code == 0


@pytest.mark.usefixtures("generated")
def test_tests_run_on_the_mutants_of_a_page_and_leave_what_the_fuzzer_found(attn_lab, log):
    log.add(recorded({"a::1": 0.1}, LINES_OF_TEST))
    for mutant in (MUTANT, OTHER):
        log.add(Trial(Key(mutant.name, TESTS, "tests", 1), 1, 1.0, "test", "a::1"))
    rows = [
        mutants_results.Row(MUTANT.name, MUTANT.change, examples=(7,)),
        mutants_results.Row(OTHER.name, "another change then", examples=(7,)),
    ]
    before = results_of(rows)
    DATA.write_bytes(results_file.dumps(before))
    run = attn_lab("mutate", "tests", "--write", "--log", log.path)
    assert run.code == 0, run.err
    after = results_file.load(DATA, Results)
    kept = mutants_results.short(replace(before, mutants=(replace(rows[0], tests=True), rows[1])))
    assert after.mutants == kept.mutants, "the fuzzer has not met what the other one changes by now"
    assert attn_lab("mutate", "page").code == attn_lab("mutate", "page", "--check").code == 0
    run = attn_lab("mutate", "tests", "--only", "nobody", "--log", log.path)
    assert run.code == 2
    assert "got nobody, which docs/generated/mutants.md does not have" in run.err
