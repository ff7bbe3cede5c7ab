"""`attn-parity fuzz`: draw cases, run them on a target, judge them, and make small what fails."""

import platform
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import click
from attn_fuzz import outputs, renamed
from attn_fuzz.cases.case import Case
from attn_fuzz.corpus import database, files
from attn_fuzz.errors import ExecutorError
from attn_fuzz.report import page
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run import runner, shard, sources
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.run.trial import COMPARED
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Support
from attn_parity import failing, places
from attn_parity.console import notes, results
from attn_parity.options import (
    Duration,
    Positive,
    Seed,
    check_exact,
    check_fence,
    check_writable,
    corpus_option,
    device_option,
    fence_option,
    ignore_signals,
    json_option,
    limit_option,
    needs_option,
    progress_bar,
    ray_option,
    sanitize_option,
    sanitizes,
    say_what_runs_kernels,
    workers_option,
    working_dir_option,
    write_json,
)
from attn_parity.places import Place
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
@click.option(
    "--exact/--no-exact",
    "exactly",
    default=None,
    help="Compare each example, or none, in exact arithmetic, too, without a tolerance; default: every "
    f"{shard.EXACT_EVERY}th of this project's kernels on a CPU.",
)
@fence_option
@json_option
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write a page about the run and failing cases into this folder; default: no page, cases into {FOLDER}.",
)
@corpus_option
@click.option(
    "--database",
    "where",
    metavar="FOLDER|redis://HOST",
    help="A database of failures: its cases run first, and failures of this run are added.",
)
@ray_option
@needs_option
@working_dir_option
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
    exactly: bool | None,
    fenced: bool,
    json_file: Path | None,
    report_folder: Path | None,
    corpus: str | None,
    where: str | None,
    address: str | None,
    needs: tuple[str, ...],
    working_dir: Path | None,
) -> int:
    """Draw cases, run them on a target, judge them. The main job."""
    folder = report_folder or FOLDER
    check_writable(json_file, made=folder)
    with places.chosen(address, needs, working_dir, [target_name], device, workers) as place:
        check_exact(bool(exactly), place.device)
        target = registry.load(target_name)
        if address is None:  # a node of Ray says for itself what it cannot do
            check_fence(fenced, [target], place.device)
        say_what_runs_kernels(place.device, [target])
        folder.mkdir(parents=True, exist_ok=True)
        plan = FuzzPlan(
            target=target_name,
            device=place.device,
            examples=examples or PROFILES[profile],
            seed=secrets.randbelow(1 << 31) if seed is None else seed,
            folder=folder,
            limit=limit,
            until=time.time() + 60 * minutes if minutes else None,
            sanitize=sanitizes(sanitize, target, place.device),
            exact_every=shard.exact_every(target, place.device) if exactly is None else int(exactly),
            fenced=fenced,
        )
        return _fuzz(plan, place, corpus, where, json_file, report_folder)


def _fuzz(
    plan: FuzzPlan, place: Place, corpus: str | None, where: str | None, json_file: Path | None, report_folder: Path | None
) -> int:
    """Run past cases and the plan at a place, and report. Returns the exit code."""
    target = registry.load(plan.target)
    failures_of = database.connect(where) if where else None
    past = _past(corpus, failures_of, place.device_name, plan.target, place.supports[plan.target])
    plans = [*runner.replays(plan, list(past)), *runner.shards(plan)]
    place = place.of_shards(len(plans))
    name = re.sub(r"[^\w.+-]+", "-", target.name)[:80] + f"-{plan.seed}"
    work = f"{len(past)} past case{'s' * (len(past) > 1)}, " * bool(past) + f"{plan.examples} examples"
    results.print(f"target {target.name} on {place.device_name}, {work}, {place.words}, --seed {plan.seed}")
    started = time.monotonic()
    outcome, files_of = _run(plans, place, plan.folder, name)
    if any(progress.failure for progress in outcome.progress):
        ignore_signals()  # they would lose the failures that are about to be reported
    seconds = time.monotonic() - started
    errors = [outcome.error] if outcome.error else []
    failures = failing.written(outcome.progress, files_of, plan.folder, name, past, errors)
    if failures_of is not None:
        _store(failures_of, database.key(plan.target, place.device_name), failures, errors)
    fixed = place.fixed(plan.target, plan.limit) if target.findings and not outcome.interrupted and not outcome.error else []
    run = Run(
        target=target.name,
        device=place.device_name,
        support=place.supports[plan.target],
        versions={"python": platform.python_version()} | sources.versions(),
        command=_again(plan),
        seed=plan.seed,
        workers=place.workers,
        planned=plan.examples,
        seconds=seconds,
        progress=outcome.progress,
        failures=failures,
        fixed=[finding for finding in target.findings if finding.name in fixed],
        restarted=len(outcome.restarted),
        interrupted=outcome.interrupted,
        error=outcome.error,
    )
    if plan.exact_every == 1 and run.examples and COMPARED not in run.events:
        errors.append("--exact: no example was compared exactly, so nothing was shown: see what was not carried")
    _tell(run)
    _write_reports(run, json_file, report_folder and report_folder / f"{name}.html", errors)
    return _exit_code(run, errors)


def _exit_code(run: Run, errors: list[str]) -> int:
    """The exit code: 1 if a case fails, 130 after an interruption, NOT_RUN if a limit was met.

    Errors are printed, or raised if no case fails.

    Raises:
        ExecutorError: there are errors, and no failing case.
    """
    if errors and not run.failures:
        raise ExecutorError("\n".join(errors))
    for error in errors:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    if run.failures:
        return 1
    return 130 if run.interrupted else failing.NOT_RUN if run.limits else 0


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
    corpus: str | None, failures_of: ExampleDatabase | None, device_name: str, target: str, support: Support
) -> dict[Case, str]:
    """The past cases that the target supports, each with its name. They run before cases are drawn."""
    cases = files.chosen(corpus)
    if failures_of is not None:
        found = [database.fetch(failures_of, database.key(name, device_name)) for name in (target, *renamed.before(target))]
        for stored, skipped in found:
            cases |= {f"database case {name}": case for name, case in stored.items()}
            for reason in skipped:
                notes.print(f"skipped: {reason}", soft_wrap=True)
    admitted = files.admitted(cases, target, support)
    if admitted.sentence:
        notes.print(admitted.sentence, soft_wrap=True)
    return admitted.cases


def _run(plans: Sequence[FuzzPlan], place: Place, folder: Path, name: str) -> tuple[Outcome, list[failing.EarlyFiles]]:
    """Run the shards. Each failure is shown and written into the folder at once; returns the files of each shard."""
    done = [shard.Progress() for _ in plans]
    files_of = [failing.EarlyFiles() for _ in plans]
    with progress_bar(sum(len(plan.past) + plan.examples for plan in plans)) as show_bar:

        def show(index: int, progress: shard.Progress) -> None:
            before = done[index].failure
            if progress.failure is not None and before is None:
                files_of[index].first = failing.show_first(progress.failure, folder, name)
            elif progress.failure is not None and progress.failure != before:
                files_of[index].save_smallest(progress.failure.case, folder, f"{name}-shard-{index}")
            done[index] = progress
            show_bar(sum(p.replayed + p.examples for p in done), sum(p.shrinking for p in done))

        return runner.run(plans, place.workers, stop_at_failure=True, report=show, place=place.run), files_of


def _again(plan: FuzzPlan) -> list[str]:
    options = {"target": plan.target, "device": plan.device, "examples": plan.examples, "seed": plan.seed}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if plan.exact_every != shard.exact_every(registry.load(plan.target), plan.device):
        words.append("--exact" if plan.exact_every else "--no-exact")
    return ["attn-parity", "fuzz", *words, *["--fence"] * plan.fenced]


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
