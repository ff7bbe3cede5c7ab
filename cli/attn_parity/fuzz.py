"""`attn-parity fuzz`: draw cases, run them on a target, judge them, and make small what fails."""

import contextlib
import platform
import re
import secrets
import tempfile
import time
from importlib import metadata
from pathlib import Path

import click
from attn_fuzz import outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.corpus import database, files
from attn_fuzz.errors import ExecutorError
from attn_fuzz.findings.finding import Finding
from attn_fuzz.report import page
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run import ledger, runner, shard
from attn_fuzz.run.executor import Executor
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Support, Target
from attn_parity import failing
from attn_parity.console import notes, results
from attn_parity.options import (
    Duration,
    Positive,
    Seed,
    check_writable,
    default_workers,
    device_name,
    device_option,
    ignore_signals,
    json_option,
    limit_option,
    progress_bar,
    sanitize_option,
    sanitizes,
    say_what_runs_kernels,
    sigterm_interrupts,
    use_device,
    workers_option,
    write_json,
)
from hypothesis.database import ExampleDatabase

PROFILES = {"ci": 300, "nightly": 40_000, "soak": 1_000_000}
FOLDER = Path("attn-parity-runs")
_PROFILES = ", ".join(f"{name} {examples}" for name, examples in PROFILES.items())


@click.command("fuzz")
@click.option(
    "--target",
    "target_name",
    default="triton",
    show_default=True,
    help="The target to check; `attn-parity targets` lists them.",
)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ci", show_default=True, help=f"Examples: {_PROFILES}.")
@click.option("--examples", type=Positive, help="Number of cases to draw, instead of the profile's.")
@click.option("--minutes", type=Duration, help="Stop drawing after this many minutes.")
@click.option("--seed", type=Seed, help="The same seed draws the same cases; default: a new seed, which is printed.")
@workers_option
@limit_option
@device_option
@sanitize_option
@json_option
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write a page about the run and failing cases into this folder; default: no page, cases into {FOLDER}.",
)
@click.option(
    "--corpus",
    metavar="FOLDER|FILE|none",
    help="A file or folder of cases to run first; default: those that come with the fuzzer; none: no cases.",
)
@click.option(
    "--database",
    "where",
    metavar="FOLDER|redis://HOST",
    help="A database of failures: its cases run first, and failures of this run are added.",
)
@sigterm_interrupts()
def command(
    target_name: str,
    profile: str,
    examples: int | None,
    minutes: float | None,
    seed: int | None,
    workers: int | None,
    limit: float,
    device: str,
    sanitize: bool | None,
    json_file: Path | None,
    report_folder: Path | None,
    corpus: str | None,
    where: str | None,
) -> int:
    """Draw cases, run them on a target, judge them. The main job."""
    device = use_device(device)
    target = registry.usable(target_name, device)
    say_what_runs_kernels(device, [target])
    check_writable(json_file)
    folder = report_folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    plan = FuzzPlan(
        target=target_name,
        device=device,
        examples=examples or PROFILES[profile],
        seed=secrets.randbelow(1 << 31) if seed is None else seed,
        folder=folder,
        limit=limit,
        until=time.time() + 60 * minutes if minutes else None,
        sanitize=sanitizes(sanitize, target, device),
    )
    failures_of = database.connect(where) if where else None
    key = database.key(target_name, device_name(device))
    past = _past(corpus, failures_of, key, target_name, target.support(device))
    workers = workers or default_workers(device)
    name = re.sub(r"[^\w.+-]+", "-", target.name)[:80] + f"-{plan.seed}"
    work = f"{len(past)} past case{'s' * (len(past) > 1)}, " * bool(past) + f"{plan.examples} examples"
    results.print(f"target {target.name} on {device_name(device)}, {work}, {workers} workers, --seed {plan.seed}")
    started = time.monotonic()
    outcome, files_of = _run(plan, past, workers, folder, name)
    if any(progress.failure for progress in outcome.progress):
        ignore_signals()  # they would lose the failures that are about to be reported
    seconds = time.monotonic() - started
    errors = [outcome.error] if outcome.error else []
    failures = failing.written(outcome.progress, files_of, folder, name, past, errors)
    if failures_of is not None:
        _store(failures_of, key, failures, errors)
    run = Run(
        target=target.name,
        device=device_name(device),
        support=target.support(device),
        versions=_versions(),
        command=_again(plan),
        seed=plan.seed,
        workers=workers,
        planned=plan.examples,
        seconds=seconds,
        progress=outcome.progress,
        failures=failures,
        fixed=[] if outcome.interrupted or outcome.error else _fixed(target_name, target, device, limit),
        restarted=len(outcome.restarted),
        interrupted=outcome.interrupted,
        error=outcome.error,
    )
    _tell(run)
    _write_reports(run, json_file, report_folder and report_folder / f"{name}.html", errors)
    return _exit_code(run, errors)


def _exit_code(run: Run, errors: list[str]) -> int:
    """The exit code: 1 if a case fails, 130 after an interruption. Errors are printed, or raised if no case fails.

    Raises:
        ExecutorError: there are errors, and no failing case.
    """
    if errors and not run.failures:
        raise ExecutorError("\n".join(errors))
    for error in errors:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    if run.failures:
        return 1
    return 130 if run.interrupted else 0


def _write_reports(run: Run, json_file: Path | None, page_file: Path | None, errors: list[str]) -> None:
    """Write the run's JSON and its page, if they are asked for. A file that cannot be written adds an error."""
    if json_file is not None:
        try:
            write_json(json_file, run.to_json())
        except click.ClickException as error:
            errors.append(error.message)
    if page_file is not None:
        try:
            outputs.write(page_file, page.of_run(run))
            results.print(f"page: {page_file}", soft_wrap=True)
        except OSError as error:
            errors.append(f"{page_file}: {error.strerror}")


def _store(failures_of: ExampleDatabase, key: bytes, failures: list[Found], errors: list[str]) -> None:
    """Add failing cases to the database. A case that cannot be added adds an error."""
    for found in failures:
        try:
            database.save(failures_of, key, found.failure.case)
        except database.DatabaseError as error:
            errors.append(str(error))


def _past(
    corpus: str | None, failures_of: ExampleDatabase | None, key: bytes, target: str, support: Support
) -> dict[Case, str]:
    """The past cases that the target supports, each with its name. They run before cases are drawn."""
    cases: dict[str, Case] = {}
    if corpus != "none":
        loaded = files.load(Path(corpus)) if corpus is not None else files.shipped()
        cases |= {f"corpus case {name}": case for name, case in loaded.items()}
    if failures_of is not None:
        stored, skipped = database.fetch(failures_of, key)
        cases |= {f"database case {name}": case for name, case in stored.items()}
        for reason in skipped:
            notes.print(f"skipped: {reason}", soft_wrap=True)
    admitted = files.admitted(cases, target, support)
    if admitted.sentence:
        notes.print(admitted.sentence, soft_wrap=True)
    return admitted.cases


def _run(
    plan: FuzzPlan, past: dict[Case, str], workers: int, folder: Path, name: str
) -> tuple[Outcome, list[failing.EarlyFiles]]:
    """Run past cases and then the plan's shards. Each failure is shown and written at once; returns the files of each shard."""
    plans = [*runner.replays(plan, list(past)), *runner.shards(plan)]
    done = [shard.Progress() for _ in plans]
    files_of = [failing.EarlyFiles() for _ in plans]
    with progress_bar(len(past) + plan.examples) as show_bar:

        def show(index: int, progress: shard.Progress) -> None:
            before = done[index].failure
            if progress.failure is not None and before is None:
                number = sum(p.failure is not None for p in done) + 1
                files_of[index].first = failing.show_first(progress.failure, folder, name, number)
            elif progress.failure is not None and progress.failure != before:
                files_of[index].smallest = failing.saved(progress.failure.case, folder, f"{name}-shard-{index}")
            done[index] = progress
            show_bar(sum(p.replayed + p.examples for p in done), sum(p.shrinking for p in done))

        return runner.run(plans, workers, stop_at_failure=True, report=show), files_of


def _again(plan: FuzzPlan) -> list[str]:
    options = {"target": plan.target, "device": plan.device, "examples": plan.examples, "seed": plan.seed}
    return ["attn-parity", "fuzz", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _versions() -> dict[str, str]:
    """The versions that decide which cases a seed draws, and which numbers a kernel computes."""
    found = {"python": platform.python_version()}
    for package in ("attn-parity", "torch", "triton", "hypothesis"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _fixed(name: str, target: Target, device: str, limit: float) -> list[Finding]:
    """The target's findings whose stored cases run on this device and no longer fail."""
    support = target.support(device)
    findings = [finding for finding in target.findings if support.limit(case_file.load(finding.path)) is None]
    with tempfile.TemporaryDirectory() as scratch, Executor(name, device, limit, Path(scratch, "finding.json")) as executor:
        return ledger.no_longer_failing(findings, executor)


def _tell(run: Run) -> None:
    for i, found in enumerate(run.failures):
        failing.tell(found, is_first=i == 0)
    for finding in run.fixed:
        results.print(f"finding {finding.name}: its stored case no longer fails. Fixed? {finding.path}", soft_wrap=True)
    if run.restarted:
        died = f"{run.restarted} worker process{'es' * (run.restarted > 1)} died"
        results.print(f"{died}; what it was to run was run again")
    if run.examples:
        for line in run.drawn.lines:
            notes.print(line, soft_wrap=True)
    results.print(run.sentence, soft_wrap=True)
