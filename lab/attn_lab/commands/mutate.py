"""`python -m attn_lab mutate`: mutants that operators make, a sample by seed, and how many of them are found."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click
import hypothesis
import msgspec
from attn_fuzz import outputs
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_lab import results_file
from attn_lab.mutate import campaign, generate, line_coverage, reasons, suite
from attn_lab.mutate import page as mutants_page
from attn_lab.mutate.campaign import Log
from attn_lab.mutate.generate import PACKAGE, Generated
from attn_lab.mutate.line_coverage import Reach, RecordedTests
from attn_lab.mutate.operators import OPERATORS
from attn_lab.mutate.page import PAGE, Results
from attn_lab.mutate.reasons import EQUIVALENT, NOT_FOUND
from attn_lab.options import check_option, check_pages_writable, first_seed_option, seeds_option
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

SAMPLE = 600
RECORDED = 150
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
    writes: bool
    json_file: Path | None

    @property
    def most_examples(self) -> int:
        return self.examples or PROFILES[self.profile]

    @property
    def numbers(self) -> range:
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True)
class RunOptions(Options):
    recorded: int
    tests: Path | None
    tests_seconds: float
    workers: int
    case_seconds: float


_only_option = click.option("--only", multiple=True, metavar="NAME", help="Only this mutant; may be given more than once.")
_sample_options = together(
    click.option("--sample", type=Positive, default=SAMPLE, show_default=True, help="Number of mutants to draw."),
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
    click.option("--write", "writes", is_flag=True, help="Write the page, and its JSON beside it."),
    json_option,
)
_run_options = together(
    _sample_options,
    click.option(
        "--profile",
        type=click.Choice(["ci", "nightly"]),
        default="ci",
        show_default=True,
        help=f"Number of cases for each mutant, seed and target: {_PROFILES}.",
    ),
    click.option(
        "--examples", type=Positive, help="Number of cases for each mutant, seed and target, instead of the profile's."
    ),
    first_seed_option,
    seeds_option,
    click.option("--target", "chosen", multiple=True, metavar="T", help="Only this target; default: all that can run here."),
    _log_options,
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
@_run_options
@click.option(
    "--recorded",
    type=Positive,
    default=RECORDED,
    show_default=True,
    help="Cases of each target that run first, to learn which statements the target runs.",
)
@click.option("--tests", type=_Tests, metavar="FOLDER", help="Run the tests of this folder on the mutants, too.")
@_tests_seconds_option
@cpu_workers_option
@case_seconds_option
@record_of(RunOptions)
def _run(options: RunOptions) -> int:
    """Fuzz each mutant, and count those that are found.

    Exit 2 if the run cannot go on, and 130 if it is interrupted. Survivors are a result, no error.
    """
    equivalent = reasons.load(EQUIVALENT)
    log, mutants = _begun(options)
    say_what_runs_kernels("cpu", [registry.load(name) for name in options.chosen])
    running = [mutant for mutant in mutants if mutant.name not in equivalent]
    plan = FuzzPlan(
        target="",
        device="cpu",
        examples=options.most_examples,
        seed=options.seed,
        folder=options.path.parent,
        case_seconds=options.case_seconds,
    )
    interrupted = False
    try:
        with log.alone() as lines:
            say_half(lines)
            _record_targets(log, _usable(options.chosen), options.recorded, plan, options.workers)
            interrupted = _fuzz(running, options.numbers, plan, log, options.workers)
            if options.tests and not interrupted:
                _run_tests(running, options.tests, log, options.workers, options.tests_seconds)
    except KeyboardInterrupt:
        interrupted = True
    return _tell(_results(options, mutants, log), interrupted, options.writes, options.json_file)


@command.command("read")
@_run_options
@record_of(Options)
def _read(options: Options) -> int:
    """Count the mutants that are found by what the log holds. Run nothing."""
    log, mutants = _begun(options)
    if not options.path.is_file():
        raise click.UsageError(f"--log: {options.path} does not exist, so there is nothing to read")
    return _tell(_results(options, mutants, log), False, options.writes, options.json_file)


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
    _check_files(writes, json_file)
    log = Log(path, PACKAGE)
    before = mutants_page.whole(results_file.load(results_file.data_of(PAGE), Results))
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
    met = {mutant.name: mutants_page.of_tests(mutant, log) for mutant in mutants}
    rows = tuple(msgspec.structs.replace(row, tests=met.get(row.name)) for row in before.mutants)
    after = msgspec.structs.replace(before, suite=mutants_page.suite_of(log), mutants=rows)
    return _tell(after, interrupted, writes, json_file)


@command.command("page")
@check_option
def _page(check: bool) -> int:
    """Write docs/generated/mutants.md of the files beside it.

    With --check, exit 1, too, unless operators make the mutants of the page still.
    """
    if check:
        return _check()
    mutants_page.write()
    return 0


def _check_files(writes: bool, json_file: Path | None) -> None:
    check_writable(json_file)
    if writes:
        check_pages_writable((PAGE, results_file.data_of(PAGE)))


def _begun(options: Options) -> tuple[Log, list[Generated]]:
    """The log and the mutants; what cannot be read or written is refused first."""
    _check_files(options.writes, options.json_file)
    log = Log(options.path, PACKAGE)
    if options.chosen:
        log.use_only(options.chosen)
    return log, options.mutants()


def _results(options: Options, mutants: Sequence[Generated], log: Log) -> Results:
    """What the log holds of these mutants."""
    equivalent, causes = reasons.load(EQUIVALENT), reasons.load(NOT_FOUND)
    rows = [mutants_page.row(mutant, log, options.numbers, options.most_examples, equivalent) for mutant in mutants]
    rows = tuple(mutants_page.explained(row, causes) for row in rows)
    of_sample = (len(mutants), options.sample_seed, tuple(options.numbers), options.most_examples)
    return Results("CPU", hypothesis.__version__, *of_sample, mutants_page.suite_of(log), rows)


def _tell(found: Results, interrupted: bool, writes: bool, json_file: Path | None) -> int:
    """Print what was found, write it into files, and return the exit code."""
    _print(found)
    if json_file:
        write_json(json_file, msgspec.to_builtins(found))
    if interrupted:
        return 130
    if writes:
        outputs.write(results_file.data_of(PAGE), results_file.dumps(mutants_page.short(found)))
        mutants_page.write()
    return 0


def _run_tests(mutants: Sequence[Generated], folder: Path, log: Log, workers: int, tests_seconds: float) -> None:
    def say(runs: RecordedTests) -> None:
        notes.print(f"recorded: {runs.file}, part {runs.part}: {len(runs.tests)} tests pass")

    suite.record(suite.test_files(folder), PACKAGE, log, workers, say)
    suite.run(mutants, log, workers, tests_seconds, _report)


def _fuzz(mutants: Sequence[Generated], seeds: range, plan: FuzzPlan, log: Log, workers: int) -> bool:
    """Fuzz, and return whether the run was interrupted.

    Raises:
        ExecutorError: the fuzzer itself failed.
    """
    outcome = campaign.run(mutants, seeds, plan, log, workers, _report)
    if outcome.error:
        raise ExecutorError(outcome.error)
    return outcome.interrupted


def _usable(chosen: tuple[str, ...]) -> list[str]:
    """The targets that can run here. None compiles unless it is named."""
    found = []
    for name in chosen or [name for name in registry.battery() if not registry.load(name).compiles]:
        try:
            registry.usable(name, "cpu")
        except UnknownTargetError as error:
            if chosen:
                raise
            notes.print(f"left out: {error}")
        else:
            found.append(name)
    return found


def _record_targets(log: Log, targets: Sequence[str], examples: int, plan: FuzzPlan, workers: int) -> None:
    """Record what targets run, unless the log knows it. Each is recorded in a process of its own."""

    def of_target(name: str) -> Reach:
        return line_coverage.record(
            FuzzPlan(target=name, device=plan.device, examples=examples, seed=plan.seed, folder=plan.folder), PACKAGE
        )

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in as_completed(pool.submit(of_target, name) for name in targets if name not in log.reaches):
                log.add(found := future.result())
                notes.print(f"recorded: {found.target}, {found.seconds:.2f} s for a case")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _report(log: Log) -> None:
    """Tell what the last shard or file came to."""
    trial = next(reversed(log.trials.values()))
    came_to = trial.by or ("does not run" if trial.broken else "survives")
    notes.print(f"{trial.key.mutant}: {trial.key.target}: {came_to} {trial.message}")


def _print(found: Results) -> None:
    for row in found.mutants:
        if row.state or None in row.examples:
            results.print(f"{row.state or mutants_page.SURVIVED}: {row.name}: {row.change}")
    results.print(mutants_page.summary(found.mutants))


def _check() -> int:
    """The exit code: 0 if the page follows from the files beside it and today's sources; else 1."""
    kept = results_file.kept(PAGE, Results, "mutate")  # before the mutants are made, which takes seconds
    found = [mutants_page.whole(each) for each in kept.values()]
    equivalent, _ = reasons.load(EQUIVALENT), reasons.load(NOT_FOUND)
    known = generate.of_package()
    wrong = [line for each in found for line in mutants_page.differences(each, known, equivalent)]
    code = write_or_check({PAGE: mutants_page.text(found)}, "python -m attn_lab mutate page", checks=True)
    return max(code, results_file.checked(wrong, "; ".join(mutants_page.summary(each.mutants) for each in found)))
