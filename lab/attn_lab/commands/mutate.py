"""`python -m attn_lab mutate`: mutants that operators make, a sample by seed, and how many of them are found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import hypothesis
import msgspec
from attn_fuzz import outputs
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_lab import results_file
from attn_lab.miscompile import page as miscompiled
from attn_lab.mutate import campaign, generate, reasons, suite
from attn_lab.mutate import page as mutants_page
from attn_lab.mutate import results as mutants_results
from attn_lab.mutate.generate import PACKAGE, Generated
from attn_lab.mutate.line_coverage import RecordedTests
from attn_lab.mutate.log import Log
from attn_lab.mutate.operators import OPERATORS
from attn_lab.mutate.page import PAGE
from attn_lab.mutate.reasons import EQUIVALENT, NOT_FOUND
from attn_lab.mutate.results import Results
from attn_lab.options import check_option, first_seed_option, seeds_option
from attn_lab.pages import write_or_check
from attn_parity.console import notes, results
from attn_parity.device import say_what_runs_kernels
from attn_parity.files import check_writable, say_half, write_json
from attn_parity.options import (
    PROFILES,
    Duration,
    Positive,
    Seed,
    case_seconds_option,
    cpu_workers_option,
    json_option,
    record_of,
    together,
)

NUM_MUTANTS = 600
NUM_RECORDED = 150
_PROFILES = ", ".join(f"{name} {PROFILES[name]}" for name in ("ci", "nightly"))


@dataclass(frozen=True)
class Sample:
    sample: int
    sample_seed: int
    only: tuple[str, ...]

    def mutants(self) -> list[Generated]:
        return generate.by_name(self.only) if self.only else generate.sample(self.sample, self.sample_seed)


@dataclass(frozen=True)
class Options(Sample):
    profile: str
    examples: int | None
    seed: int
    seeds: int
    chosen: tuple[str, ...]
    path: Path
    reads: bool
    recorded: int
    tests: Path | None
    tests_seconds: float
    workers: int
    case_seconds: float
    writes: bool
    json_file: Path | None

    @property
    def max_examples(self) -> int:
        return self.examples or PROFILES[self.profile]

    @property
    def numbers(self) -> range:
        return range(self.seed, self.seed + self.seeds)


_only_option = click.option("--only", multiple=True, metavar="NAME", help="Only this mutant; may be given more than once.")
_sample_options = together(
    click.option("--sample", type=Positive, default=NUM_MUTANTS, show_default=True, help="Number of mutants to draw."),
    click.option("--sample-seed", type=Seed, default=0, show_default=True, help="The same seed draws the same mutants."),
    _only_option,
)
_log_options = together(
    click.option(
        "--log",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        default=outputs.RUNS / "mutants.jsonl",
        show_default=True,
        help="The file of results. A second call with the same file goes on where the first ended.",
    ),
    click.option("--write", "writes", is_flag=True, help="Keep the results in docs/generated/mutants.json."),
    json_option,
)
_tests_seconds_option = click.option(
    "--tests-seconds",
    type=Duration,
    default=300.0,
    show_default=True,
    help="Seconds of tests for each mutant. If no test has failed by then, the next call goes on.",
)
_Tests = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group("mutate", epilog=f"Operators: {', '.join(OPERATORS)}.")
def command() -> None:
    """Make mutants by operators, and count those that the fuzzer and the tests find on a CPU."""


@command.command("list")
@_sample_options
@record_of(Sample)
def _list(sample: Sample) -> None:
    """List the mutants and what they change."""
    for mutant in sample.mutants():
        results.print(f"{mutant.name}  {mutant.change}")


@command.command("run")
@_sample_options
@click.option(
    "--profile",
    type=click.Choice(["ci", "nightly"]),
    default="ci",
    show_default=True,
    help=f"Number of cases for each mutant, seed and target: {_PROFILES}.",
)
@click.option("--examples", type=Positive, help="Number of cases for each mutant, seed and target, instead of the profile's.")
@first_seed_option
@seeds_option
@click.option("--target", "chosen", multiple=True, metavar="T", help="Only this target; default: all that can run here.")
@_log_options
@click.option("--read", "reads", is_flag=True, help="Run nothing, and count what the log holds.")
@click.option(
    "--recorded",
    type=Positive,
    default=NUM_RECORDED,
    show_default=True,
    help="Cases of each target that run first, to learn which statements the target runs.",
)
@click.option("--tests", type=_Tests, metavar="FOLDER", help="Run the tests of this folder on the mutants, too.")
@_tests_seconds_option
@cpu_workers_option
@case_seconds_option
@record_of(Options)
def _run(options: Options) -> int:
    """Fuzz each mutant, and count those that are found.

    Exit 2 if the run cannot go on, and 130 if it is interrupted. Survivors are a result, no error.
    """
    if options.only and options.writes:
        raise click.UsageError("--write: expected no --only: the page has a whole sample")
    _check_writable(options.writes, options.json_file)
    log = Log(options.path, PACKAGE)
    if options.reads and not options.path.is_file():
        raise click.UsageError(f"--log: {options.path} does not exist, so there is nothing to read")
    if options.chosen:
        log.use_only(options.chosen)
    equivalent, causes, mutants = reasons.load(EQUIVALENT), reasons.load(NOT_FOUND), options.mutants()
    interrupted = not options.reads and _ran(options, [mutant for mutant in mutants if mutant.name not in equivalent], log)
    rows = [mutants_results.row(mutant, log, options.numbers, options.max_examples, equivalent) for mutant in mutants]
    rows = tuple(mutants_results.explained(row, causes) for row in rows)
    of_sample = (len(mutants), options.sample_seed, tuple(options.numbers), options.max_examples)
    found = Results("CPU", hypothesis.__version__, *of_sample, mutants_results.suite_of(log), rows)
    return _tell(found, interrupted, options.writes, options.json_file)


def _ran(options: Options, mutants: Sequence[Generated], log: Log) -> bool:
    """Run those of the mutants that the log lacks. Returns whether an interrupt left some out.

    Raises:
        ExecutorError: the fuzzer itself failed.
    """
    say_what_runs_kernels("cpu", [registry.load(name) for name in options.chosen])
    plan = FuzzPlan(
        target="",
        device="cpu",
        examples=options.max_examples,
        seed=options.seed,
        folder=options.path.parent,
        case_seconds=options.case_seconds,
    )
    try:
        with log.alone() as lines:
            say_half(lines)
            campaign.record_targets(log, campaign.usable(options.chosen), options.recorded, plan, options.workers)
            outcome = campaign.run(mutants, options.numbers, plan, log, options.workers, _report)
            if outcome.error:
                raise ExecutorError(outcome.error)
            if options.tests and not outcome.interrupted:
                _run_tests(mutants, options.tests, log, options.workers, options.tests_seconds)
    except KeyboardInterrupt:
        return True
    return outcome.interrupted


@command.command("tests")
@click.argument("folder", required=False, type=_Tests)
@_only_option
@_tests_seconds_option
@_log_options
@cpu_workers_option
def _tests(
    folder: Path | None,
    only: tuple[str, ...],
    tests_seconds: float,
    path: Path,
    writes: bool,
    json_file: Path | None,
    workers: int,
) -> int:
    """Run the tests of FOLDER on the mutants of the page that are in its rates. Its results of the fuzzer stay.

    Without FOLDER nothing runs, and the tests' results are those of the log. A mutant that makes another change by now, under
    the name that it has on the page, is not the one that the fuzzer has met.
    """
    _check_writable(writes, json_file)
    log = Log(path, PACKAGE)
    before = mutants_results.whole(results_file.load(results_file.data_of(PAGE), Results))
    known = {row.name: row for row in before.mutants}
    if unknown := [name for name in only if name not in known]:
        raise click.BadParameter(f"got {unknown[0]}, which {PAGE} does not have", param_hint="--only")
    named = generate.by_name([name for name in known if known[name].counts])
    mutants = [mutant for mutant in named if known[mutant.name].is_of(mutant)]
    interrupted = False
    try:
        if folder:
            with log.alone() as lines:
                say_half(lines)
                chosen = [mutant for mutant in mutants if not only or mutant.name in only]
                _run_tests(chosen, folder, log, workers, tests_seconds)
    except KeyboardInterrupt:
        interrupted = True
    met = {mutant.name: mutants_results.of_tests(mutant, log) for mutant in mutants}
    rows = tuple(msgspec.structs.replace(row, tests=met.get(row.name)) for row in before.mutants)
    after = msgspec.structs.replace(before, suite=mutants_results.suite_of(log), mutants=rows)
    return _tell(after, interrupted, writes, json_file)


@command.command("page")
@check_option
def _page(check: bool) -> int:
    """Write docs/generated/mutants.md of the files beside it.

    With --check, exit 1, too, unless operators make the mutants of the page still.
    """
    kept = results_file.kept(PAGE, Results, "mutate")  # before the mutants are made, which takes seconds
    found, wrong = [mutants_results.whole(each) for each in kept.values()], list[str]()
    if check:
        reasons.load(NOT_FOUND)  # raises, if an operator makes one of its mutants no more
        equivalent, known = reasons.load(EQUIVALENT), generate.of_package()
        wrong = [line for each in found for line in mutants_results.differences(each, known, equivalent)]
    summary = "; ".join(mutants_page.summary(each.mutants) for each in found) if check else ""
    text = mutants_page.text(found)
    if miscompiled.DATA.is_file():
        text += miscompiled.text(*miscompiled.read(), miscompiled.read_reasons())
    return write_or_check({PAGE: text}, "python -m attn_lab mutate page", checks=check, wrong=wrong, summary=summary)


def _check_writable(writes: bool, json_file: Path | None) -> None:
    check_writable(json_file)
    check_writable(results_file.data_of(PAGE) if writes else None, "--write")


def _tell(found: Results, interrupted: bool, writes: bool, json_file: Path | None) -> int:
    """Print what was found, write it into files, and return the exit code."""
    _print(found)
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if interrupted:
        return 130
    if writes:
        outputs.write(results_file.data_of(PAGE), results_file.dumps(mutants_results.short(found)))
    return 0


def _run_tests(mutants: Sequence[Generated], folder: Path, log: Log, workers: int, tests_seconds: float) -> None:
    def say(runs: RecordedTests) -> None:
        notes.print(f"recorded: {runs.file}, part {runs.part}: {len(runs.tests)} tests pass")

    suite.record(suite.test_files(folder), PACKAGE, log, workers, say)
    suite.run(mutants, log, workers, tests_seconds, _report)


def _report(log: Log) -> None:
    """Tell what the last shard or file came to."""
    trial = next(reversed(log.trials.values()))
    came_to = trial.by or ("does not run" if trial.broken else "survives")
    notes.print(f"{trial.key.mutant}: {trial.key.target}: {came_to} {trial.message}")


def _print(found: Results) -> None:
    for row in found.mutants:
        if row.state or None in row.examples:
            results.print(f"{row.state or mutants_results.SURVIVED}: {row.name}: {row.change}")
    results.print(mutants_page.summary(found.mutants))
