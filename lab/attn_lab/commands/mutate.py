"""`python -m attn_lab mutate`: mutants that operators make, a sample by seed, and how many of them are found."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
from attn_parity.options import PROFILES, Duration, Positive, Seed, case_seconds_option, cpu_workers_option, json_option

SAMPLE = 600
RECORDED = 150
_PROFILES = ", ".join(f"{name} {PROFILES[name]}" for name in ("ci", "nightly"))


@click.command("mutate", epilog=f"Operators: {', '.join(OPERATORS)}.")
@click.option("--sample", type=Positive, default=SAMPLE, show_default=True, help="Number of mutants to draw.")
@click.option("--sample-seed", type=Seed, default=0, show_default=True, help="The same seed draws the same mutants.")
@click.option("--only", multiple=True, metavar="NAME", help="Run only this mutant; may be given more than once.")
@click.option("--list", "lists", is_flag=True, help="Run nothing; list the mutants and what they change.")
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
@click.option("--target", "chosen", multiple=True, metavar="T", help="Use only this target; default: all that can run here.")
@click.option(
    "--recorded",
    type=Positive,
    default=RECORDED,
    show_default=True,
    help="Cases of each target that run first, to learn which statements the target runs.",
)
@click.option(
    "--tests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Run the tests of this folder on the mutants, too.",
)
@click.option(
    "--tests-seconds",
    type=Duration,
    default=300.0,
    show_default=True,
    help="Seconds of tests for each mutant. If no test has failed by then, the next call goes on.",
)
@click.option(
    "--of-page",
    is_flag=True,
    help="With --tests: run only the tests, on the mutants of the page. Its results of the fuzzer stay.",
)
@click.option(
    "--log",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=outputs.RUNS / "mutants.jsonl",
    show_default=True,
    help="The file of results. A second call with the same file goes on where the first ended.",
)
@click.option("--write", "writes", is_flag=True, help="Write the page, and its JSON beside it.")
@click.option("--rewrite", "rewrites", is_flag=True, help="Run nothing; write the page of what the log holds.")
@check_option
@cpu_workers_option
@case_seconds_option
@json_option
def command(
    sample: int,
    sample_seed: int,
    only: tuple[str, ...],
    lists: bool,
    profile: str,
    examples: int | None,
    seed: int,
    seeds: int,
    chosen: tuple[str, ...],
    recorded: int,
    tests: Path | None,
    tests_seconds: float,
    of_page: bool,
    path: Path,
    writes: bool,
    rewrites: bool,
    check: bool,
    workers: int,
    case_seconds: float,
    json_file: Path | None,
) -> int:
    """Make mutants by operators, and count those that the fuzzer finds on a CPU.

    Exit 2 if the run cannot go on, and 130 if it is interrupted. Survivors are a result, no error.
    """
    if check:
        return _check()
    equivalent, causes = reasons.load(EQUIVALENT), reasons.load(NOT_FOUND)
    check_writable(json_file)
    if writes or rewrites:
        check_pages_writable((PAGE, results_file.data_of(PAGE)))
    log = None if lists else Log(path, PACKAGE)
    if of_page and log:
        data = results_file.data_of(PAGE)
        tests = None if rewrites else tests
        return _tests_of_page(log, data, only, tests, tests_seconds, workers, writes or rewrites, json_file)
    mutants = generate.by_name(only) if only else generate.sample(sample, sample_seed)
    if log is None:
        for mutant in mutants:
            results.print(f"{mutant.name}  {mutant.change}", soft_wrap=True)
        return 0
    if rewrites and not path.is_file():
        raise click.ClickException(f"--log: {path} does not exist, so there is nothing to write a page of")
    if chosen:
        log.use_only(chosen)
    say_what_runs_kernels("cpu", [registry.load(name) for name in chosen])
    running = [mutant for mutant in mutants if mutant.name not in equivalent]
    numbers = range(seed, seed + seeds)
    at_most = examples or PROFILES[profile]
    plan = FuzzPlan(target="", device="cpu", examples=at_most, seed=seed, folder=path.parent, case_seconds=case_seconds)
    interrupted = False
    try:
        if not rewrites:
            with log.alone() as lines:
                say_half(lines)
                _record_targets(log, _usable(chosen), recorded, plan, workers)
                interrupted = _run(running, numbers, plan, log, workers)
                if tests and not interrupted:
                    _run_tests(running, tests, log, workers, tests_seconds)
    except KeyboardInterrupt:
        interrupted = True
    rows = [mutants_page.row(mutant, log, numbers, at_most, equivalent) for mutant in mutants]
    rows = [mutants_page.explained(row, causes) for row in rows]
    where, of_sample = ("CPU", hypothesis.__version__), (len(mutants), sample_seed)
    found = Results(*where, *of_sample, tuple(numbers), at_most, mutants_page.suite_of(log), tuple(rows))
    return _tell(found, interrupted, writes or rewrites, json_file)


def _tests_of_page(
    log: Log,
    data: Path,
    only: Sequence[str],
    tests: Path | None,
    tests_seconds: float,
    workers: int,
    writes: bool,
    json_file: Path | None,
) -> int:
    """Run the tests on the mutants of the page that are in its rates, or take what the log holds if there are no tests.

    A mutant that makes another change by now, under the name that it has on the page, is not the one that the fuzzer has met.
    """
    before = mutants_page.whole(results_file.load(data, Results))
    known = {row.name: row for row in before.mutants}
    if unknown := [name for name in only if name not in known]:
        raise click.BadParameter(f"got {unknown[0]}, which {PAGE} does not have", param_hint="--only")
    named = generate.by_name([name for name in known if known[name].counts])
    mutants = [mutant for mutant in named if known[mutant.name].is_of(mutant)]
    interrupted = False
    try:
        if tests:
            chosen = [mutant for mutant in mutants if not only or mutant.name in only]
            with log.alone() as lines:
                say_half(lines)
                _run_tests(chosen, tests, log, workers, tests_seconds)
    except KeyboardInterrupt:
        interrupted = True
    met = {mutant.name: mutants_page.of_tests(mutant, log) for mutant in mutants}
    rows = tuple(msgspec.structs.replace(row, tests=met.get(row.name)) for row in before.mutants)
    after = msgspec.structs.replace(before, suite=mutants_page.suite_of(log), mutants=rows)
    return _tell(after, interrupted, writes, json_file)


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
        notes.print(f"recorded: {runs.file}, part {runs.part}: {len(runs.tests)} tests pass", soft_wrap=True)

    suite.record(suite.test_files(folder), PACKAGE, log, workers, say)
    suite.run(mutants, log, workers, tests_seconds, _report)


def _run(mutants: Sequence[Generated], seeds: range, plan: FuzzPlan, log: Log, workers: int) -> bool:
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
            notes.print(f"left out: {error}", soft_wrap=True)
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
    notes.print(f"{trial.key.mutant}: {trial.key.target}: {came_to} {trial.message}", soft_wrap=True)


def _print(found: Results) -> None:
    for row in found.mutants:
        if row.state or None in row.examples:
            results.print(f"{row.state or mutants_page.SURVIVED}: {row.name}: {row.change}", soft_wrap=True)
    results.print(mutants_page.summary(found.mutants), soft_wrap=True)


def _check() -> int:
    """The exit code: 0 if the page follows from the files beside it and today's sources; else 1."""
    kept = results_file.kept(PAGE, Results, "mutate")  # before the mutants are made, which takes seconds
    found = [mutants_page.whole(each) for each in kept.values()]
    equivalent, _ = reasons.load(EQUIVALENT), reasons.load(NOT_FOUND)
    known = generate.of_package()
    wrong = [line for each in found for line in mutants_page.differences(each, known, equivalent)]
    code = write_or_check({PAGE: mutants_page.text(found)}, "python -m attn_lab mutate --rewrite", checks=True)
    return max(code, results_file.checked(wrong, "; ".join(mutants_page.summary(each.mutants) for each in found)))
