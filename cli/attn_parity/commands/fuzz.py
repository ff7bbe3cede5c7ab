"""`attn-parity fuzz`: draw cases, run them on a target, judge them, and make small what fails."""

import platform
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
from attn_fuzz import outputs
from attn_fuzz.cases.case import Case
from attn_fuzz.corpus import database, files
from attn_fuzz.errors import NOT_RUN, ExecutorError
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run import runner, shard, sources
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import COMPARED
from attn_parity import executors, failing
from attn_parity.console import notes, results
from attn_parity.executors import Executor
from attn_parity.options import (
    Duration,
    Positive,
    Seed,
    case_seconds_option,
    check_exact,
    check_fence,
    check_writable,
    corpus_option,
    device_option,
    fence_option,
    ignore_signals,
    json_option,
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
from hypothesis.database import ExampleDatabase

PROFILES = {"ci": 300, "nightly": 40_000, "soak": 1_000_000}
MOST_EXAMPLES, MINUTES = 100_000, 10.0
"""The default minutes of a run that keeps going."""
DRAWING = 2 / 3
"""The share of such a run's time in which it draws cases. In the rest it shrinks failures that wait."""
RUNS_SCHEMA = "attn-parity.fuzz-runs/1"
_PROFILES = ", ".join(f"{name} {examples}" for name, examples in PROFILES.items())


@click.command("fuzz")
@click.option(
    "--target",
    "names",
    multiple=True,
    default=("triton",),
    show_default=True,
    help="The target to check; `attn-parity targets` lists them. With --keep-going it may be given more than once.",
)
@click.option(
    "--manager",
    metavar="NAME|MODULE:NAME",
    help="Play requests against a cache manager instead, and judge the keys that attention would read.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Go on past each failure, and end with a table of distinct failures. Targets take turns. Default: "
    f"{MINUTES:g} minutes, or --examples for each target.",
)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ci", show_default=True, help=f"Examples: {_PROFILES}.")
@click.option("--examples", type=Positive, help="Number of cases to draw, instead of the profile's.")
@click.option("--minutes", type=Duration, help="Stop drawing after this many minutes.")
@click.option("--seed", type=Seed, help="The same seed draws the same cases; default: a new seed, which is printed.")
@workers_option
@case_seconds_option
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
    help=f"Write a page about the run and failing cases into this folder; default: no page, cases into {outputs.RUNS}.",
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
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    manager: str | None,
    keep_going: bool,
    profile: str,
    examples: int | None,
    minutes: float | None,
    seed: int | None,
    workers: int | None,
    case_seconds: float,
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
    """Draw cases, run them on a target, judge them. The main job.

    Exit 1 if a case fails, and 3 if none does and cases could not be run because of a limit of this tool.
    """
    if manager is not None:
        from attn_parity import managers

        managers.check_options(context)
        return managers.fuzz(manager, examples or PROFILES[profile], seed)
    if len(names) > 1 and not keep_going:
        raise click.UsageError("--target: several targets take turns in a run with --keep-going")
    folder = report_folder or outputs.RUNS
    check_writable(json_file, made=folder)
    with executors.chosen(address, needs, working_dir, names, device, workers) as executor:
        check_exact(bool(exactly), executor.device)
        targets = _targets(names)
        if address is None:  # a node of Ray says for itself what it cannot do
            check_fence(fenced, targets.values(), executor.device)
        say_what_runs_kernels(executor.device, targets.values())
        folder.mkdir(parents=True, exist_ok=True)
        if keep_going and minutes is None and examples is None:
            minutes = MINUTES
        until = time.time() + 60 * minutes if minutes else None
        plan = FuzzPlan(
            target="",
            device=executor.device,
            examples=examples or (MOST_EXAMPLES if keep_going else PROFILES[profile]),
            seed=secrets.randbelow(1 << 31) if seed is None else seed,
            folder=folder,
            case_seconds=case_seconds,
            until=time.time() + 60 * minutes * (DRAWING if keep_going else 1) if minutes else None,
            fenced=fenced,
            on_failure="go on" if keep_going else "shrink",
        )
        plans = {
            name: msgspec.structs.replace(
                plan,
                target=name,
                sanitize=sanitizes(sanitize, target, executor.device),
                exact_every=shard.exact_every(target, executor.device) if exactly is None else int(exactly),
            )
            for name, target in targets.items()
        }
        failures_of = database.connect(where) if where else None
        keys = {name: database.key(name, executor.device_name) for name in plans}
        past = {name: _past(corpus, failures_of, executor.device_name, name, executor.supports[name]) for name in plans}
        begun = _Begun(executor, plans, targets, past)
        runs, errors = begun.keep_going(until, minutes) if keep_going else begun.until_failure()
        if failures_of is not None:
            for name, run in runs.items():
                _store(failures_of, keys[name], run.failures, errors)
        return begun.reported(runs, json_file, report_folder, errors)


def _targets(names: Sequence[str]) -> dict[str, Target]:
    targets = {name: registry.load(name) for name in names}
    named = Counter(targets[name].name for name in names)
    if repeated := [name for name, count in named.items() if count > 1]:
        raise click.UsageError(f"--target: got {repeated[0]} more than once, expected targets of different names")
    return targets


Runs = tuple[dict[str, Run], list[str]]
"""The run of each target, and errors."""


@dataclass(frozen=True)
class _Begun:
    """A run that begins: its executor, and for each target the plan, the target, and the names of past cases."""

    executor: Executor
    plans: Mapping[str, FuzzPlan]
    targets: Mapping[str, Target]
    past: Mapping[str, Mapping[Case, str]]
    started: float = field(default_factory=time.monotonic)

    def until_failure(self) -> Runs:
        """Run the shards of the one target until a case fails."""
        ((name, plan),) = self.plans.items()
        target, past = self.targets[name], self.past[name]
        shards = runner.in_turns(runner.shards(plan), self.executor.supports[name])
        plans = [*runner.replays(plan, list(past)), *shards]
        executor = self.executor.of_shards(len(plans))
        file = f"{failing.safe(target.name)}-{plan.seed}"
        work = f"{len(past)} past case{'s' * (len(past) > 1)}, " * bool(past) + f"{plan.examples} examples"
        results.print(f"target {target.name} on {executor.device_name}, {work}, {executor.words}, --seed {plan.seed}")
        outcome, files_of = _run(plans, executor, plan.folder, file, total=len(past) + plan.examples)
        if any(progress.failure for progress in outcome.progress):
            ignore_signals()  # they would lose the failures that are about to be reported
        errors = [outcome.error] if outcome.error else []
        failures = failing.written(outcome.progress, files_of, plan.folder, file, past, errors)
        if not outcome.interrupted:
            failures = failing.with_explanations(failures, name, plan.device, plan.case_seconds)
        run = self._ended(name, executor, outcome, outcome.progress, failures)
        if plan.exact_every == 1 and run.examples and COMPARED not in run.events:
            errors.append("--exact: no example was compared exactly, so nothing was shown: see what was not carried")
        return {name: run}, errors

    def keep_going(self, until: float | None, minutes: float | None) -> Runs:
        """Run the shards of all targets in turn, and go on after each failure.

        Args:
            until: nothing new begins after this time.
        """
        from attn_fuzz.run.distinct import SHARD_EXAMPLES, DistinctFailures
        from attn_parity import keep_going as going

        shards = [
            [*runner.replays(plan, list(self.past[name])), *runner.shards(plan, SHARD_EXAMPLES)]
            for name, plan in self.plans.items()
        ]
        executor, plan = self.executor.of_shards(sum(map(len, shards))), next(iter(self.plans.values()))
        of = f"{minutes:g} minutes" if minutes else f"{plan.examples} examples each"
        names = ", ".join(target.name for target in self.targets.values())
        results.print(
            f"keep going: {names} on {executor.device_name}, {of}, {executor.words}, --seed {plan.seed}", soft_wrap=True
        )
        prefixes = {name: f"{failing.safe(target.name)}-{plan.seed}" for name, target in self.targets.items()}
        files_of = going.Files(plan.folder, prefixes, earlier=frozenset(plan.folder.iterdir()))
        distinct = DistinctFailures(shards, until, files_of.changed, files_of.dropped)
        outcome = going.run(distinct, executor)
        if distinct.entries:
            ignore_signals()  # they would lose the failures that are about to be reported
        errors = [outcome.error] if outcome.error else []
        failures = files_of.written(distinct.entries, self.past, errors)
        for path in files_of.declared(failures, errors):
            results.print(f"declarations as findings: {path}", soft_wrap=True)
        runs = {}
        for name in self.plans:
            own = [found for found in failures if found.entry and found.entry.target == name]
            if not outcome.interrupted:
                own = failing.with_explanations(own, name, plan.device, plan.case_seconds)
            runs[name] = self._ended(name, executor, outcome, distinct.of_target(name), own, keeps_going=True)
        return runs, errors

    def _ended(
        self,
        name: str,
        executor: Executor,
        outcome: Outcome,
        progress: Sequence[Progress],
        failures: Sequence[Found],
        **more: bool,
    ) -> Run:
        """The run of a target."""
        target, plan = self.targets[name], self.plans[name]
        looks = bool(target.findings) and not outcome.interrupted and not outcome.error
        fixed = executor.fixed(name, plan.case_seconds) if looks else []
        return Run(
            target=target.name,
            device=executor.device_name,
            support=executor.supports[name],
            versions={"python": platform.python_version()} | sources.versions(),
            command=_again(plan, **more),
            seed=plan.seed,
            workers=executor.workers,
            planned=plan.examples,
            seconds=time.monotonic() - self.started,
            progress=progress,
            failures=failures,
            fixed=[finding for finding in target.findings if finding.name in fixed],
            restarted=len(outcome.restarted),
            interrupted=outcome.interrupted,
            error=outcome.error,
            **more,
        )

    def reported(self, runs: Mapping[str, Run], json_file: Path | None, pages: Path | None, errors: list[str]) -> int:
        """Print the results, write them, and return the exit code. A file that cannot be written adds an error."""
        if failures := [found for run in runs.values() if run.keeps_going for found in run.failures]:
            from attn_parity import keep_going

            keep_going.tell(failures)
        for run in runs.values():
            _tell(run, name=f"{run.target}: " if len(runs) > 1 else "")
        if json_file is not None:
            try:
                write_json(json_file, _as_json(list(runs.values())))
            except click.ClickException as error:
                errors.append(error.message)
        if pages:
            for run in runs.values():
                _write_page(run, pages / f"{failing.safe(run.target)}-{run.seed}.html", errors)
        return _exit_code(list(runs.values()), errors)


def _as_json(runs: Sequence[Run]) -> dict[str, Any]:
    found = [run.to_json() for run in runs]
    return found[0] if len(found) == 1 else {"schema": RUNS_SCHEMA, "runs": found}


def _write_page(run: Run, file: Path, errors: list[str]) -> None:
    from attn_fuzz.report import page

    try:
        outputs.write(file, page.of_run(run))
        results.print(f"page: {file}", soft_wrap=True)
    except OSError as error:
        errors.append(f"{file}: {error.strerror}")


def _exit_code(runs: Sequence[Run], errors: list[str]) -> int:
    """The exit code: 1 if a case fails, 130 after an interruption, NOT_RUN if a limit was met.

    Errors are printed, or raised if no case fails.

    Raises:
        ExecutorError: there are errors, and no failing case.
    """
    fails = any(run.failures for run in runs)
    if errors and not fails:
        raise ExecutorError("\n".join(errors))
    for error in errors:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    if fails:
        return 1
    return 130 if runs[0].interrupted else NOT_RUN if any(run.limits for run in runs) else 0


def _store(failures_of: ExampleDatabase, key: bytes, failures: Sequence[Found], errors: list[str]) -> None:
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
        stored, skipped = database.fetch(failures_of, database.key(target, device_name))
        cases |= {f"database case {name}": case for name, case in stored.items()}
        for reason in skipped:
            notes.print(f"skipped: {reason}", soft_wrap=True)
    admitted = files.admitted(cases, target, support)
    if admitted.sentence:
        notes.print(admitted.sentence, soft_wrap=True)
    return admitted.cases


def _run(
    plans: Sequence[FuzzPlan], executor: Executor, folder: Path, name: str, total: int
) -> tuple[Outcome, list[failing.EarlyFiles]]:
    """Run the shards. Each failure is shown and written into the folder at once; returns the files of each shard.

    Args:
        total: the number of cases that the shards run.
    """
    done = [shard.Progress() for _ in plans]
    files_of = [failing.EarlyFiles() for _ in plans]
    with progress_bar(total) as show_bar:

        def show(index: int, progress: shard.Progress) -> None:
            before = done[index].failure
            if progress.failure is not None and before is None:
                files_of[index].first = failing.show_first(progress.failure, folder, name)
            elif progress.failure is not None and progress.failure != before:
                files_of[index].save_smallest(progress.failure.case, folder, f"{name}-shard-{index}")
            done[index] = progress
            show_bar(sum(p.replayed + p.examples for p in done), sum(p.shrinking for p in done))

        return runner.run(plans, executor.workers, stop_at_failure=True, report=show, place=executor.run), files_of


def _again(plan: FuzzPlan, *, keeps_going: bool = False) -> list[str]:
    options = {"target": plan.target, "device": plan.device, "examples": plan.examples, "seed": plan.seed}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if plan.exact_every != shard.exact_every(registry.load(plan.target), plan.device):
        words.append("--exact" if plan.exact_every else "--no-exact")
    return ["attn-parity", "fuzz", *words, *["--fence"] * plan.fenced, *["--keep-going"] * keeps_going]


def _tell(run: Run, name: str) -> None:
    """Print the results of a run. Its lines begin with `name`."""
    for i, found in enumerate(() if run.keeps_going else run.failures):
        failing.tell(found, is_first=i == 0)
    for finding in run.fixed:
        results.print(f"finding {finding.name}: its stored case no longer fails. Fixed? {finding.path}", soft_wrap=True)
    if run.restarted:
        died = f"{run.restarted} worker process{'es' * (run.restarted > 1)} died"
        results.print(f"{died}; what it was to run was run again")
    for line in [*(run.drawn.lines if run.has_drawn else []), *run.not_run]:
        notes.print(f"{name}{line}", soft_wrap=True)
    results.print(f"{name}{run.sentence}", soft_wrap=True)
