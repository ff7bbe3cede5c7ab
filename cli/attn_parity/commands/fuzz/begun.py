"""A run of `attn-parity fuzz`: its shards, what it prints, and what it writes."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from attn_fuzz import outputs
from attn_fuzz.account import gaps
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import EXIT_LIMIT, EXIT_NEVER_SENT, EXIT_UNSEEN, ExecutorError
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run import provenance, runner, shard
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.text import how_many
from attn_fuzz.verdict.verdict import COMPARED
from attn_parity.commands.fuzz import failing
from attn_parity.commands.fuzz.machines import Machines
from attn_parity.commands.fuzz.options import Options
from attn_parity.console import notes, progress_bar, results
from attn_parity.files import name_part, write_json
from attn_parity.options import CASE_SECONDS
from attn_parity.signals import ignore_signals

RUNS_SCHEMA = "attn-parity.fuzz-runs/1"
Runs = tuple[dict[str, Run], list[str]]
"""The run of each target, and errors."""


@dataclass(frozen=True)
class Begun:
    """A run: its options and machines, and for each target what runs.

    Args:
        plans, past: the plan and the names of past cases of each target, and of each in its modes.
        targets: the targets, in no mode.
        in_modes: the names of each target in its modes.
    """

    options: Options
    machines: Machines
    plans: Mapping[str, FuzzPlan]
    targets: Mapping[str, Target]
    in_modes: Mapping[str, Sequence[str]]
    past: Mapping[str, Mapping[Case, str]]
    started: float = field(default_factory=time.monotonic)

    def until_failure(self) -> Runs:
        """Run the shards of the one target until a case fails."""
        ((name, target),) = self.targets.items()
        plan, in_modes = self.plans[name], [self.plans[each] for each in self.in_modes[name]]
        shards = runner.in_turns(runner.through_modes(plan, in_modes), self.machines.supports[name], self.machines.workers)
        plans = [*self._replays(name), *shards]
        past = {case: said for each in self.past.values() for case, said in each.items()}
        machines = self.machines.of_shards(len(plans))
        file = f"{name_part(target.name)}-{plan.seed}"
        work = f"{how_many(len(past), 'past case')}, " * bool(past) + how_many(plan.examples, "example")
        results.print(f"target {target.name} on {machines.device_name}, {work}, {machines.words}, --seed {plan.seed}")
        outcome, files_of = _run(plans, machines, plan.folder, file, total=len(past) + plan.examples)
        if any(progress.failure for progress in outcome.progress):
            ignore_signals()  # they would lose the failures that are about to be reported
        errors = [outcome.error] if outcome.error else []
        failures = failing.written(outcome.progress, files_of, plan.folder, file, past, errors)
        if not outcome.interrupted:
            failures = failing.with_explanations(failures, self.plans)
        by_target = {
            each: [p for of, p in zip(plans, outcome.progress, strict=True) if of.target == each] for each in self.plans
        }
        run = self._ended(name, machines, outcome, by_target, failures)
        if plan.exact_every == 1 and run.examples and COMPARED not in run.events:
            errors.append("--exact: no example was compared exactly, so nothing was shown: see the reasons")
        return {name: run}, errors

    def keep_going(self, until: float | None, minutes: float | None) -> Runs:
        """Run the shards of all targets in turn, and go on after each failure.

        Args:
            until: nothing new begins after this time.
        """
        from attn_fuzz.run.distinct import SHARD_EXAMPLES, DistinctFailures
        from attn_parity.commands.fuzz import keep_going

        shards = [
            [
                *self._replays(name),
                *runner.through_modes(self.plans[name], [self.plans[each] for each in self.in_modes[name]], SHARD_EXAMPLES),
            ]
            for name in self.targets
        ]
        machines, plan = self.machines.of_shards(sum(map(len, shards))), next(iter(self.plans.values()))
        of = f"{minutes:g} minutes" if minutes else f"{how_many(plan.examples, 'example')} each"
        names = ", ".join(target.name for target in self.targets.values())
        results.print(f"keep going: {names} on {machines.device_name}, {of}, {machines.words}, --seed {plan.seed}")
        prefixes = {name: f"{name_part(registry.load(name).name)}-{plan.seed}" for name in self.plans}
        files_of = keep_going.Files(plan.folder, prefixes, earlier=frozenset(plan.folder.iterdir()))
        distinct = DistinctFailures(shards, until, files_of.changed, files_of.dropped)
        outcome = keep_going.run(distinct, machines)
        if distinct.entries:
            ignore_signals()  # they would lose the failures that are about to be reported
        errors = [outcome.error] if outcome.error else []
        failures = files_of.written(distinct.entries, self.past, errors)
        for path in files_of.declared(failures, errors):
            results.print(f"declarations as findings: {path}")
        runs = {}
        for name in self.targets:
            names = [name, *self.in_modes[name]]
            own = [found for found in failures if found.entry and found.entry.target in names]
            if not outcome.interrupted:
                own = failing.with_explanations(own, self.plans)
            by_target = {each: distinct.of_target(each) for each in names}
            runs[name] = self._ended(name, machines, outcome, by_target, own, keeps_going=True)
        return runs, errors

    def _replays(self, name: str) -> list[FuzzPlan]:
        """Plans of past cases of a target, alone and in its modes."""
        names = [name, *self.in_modes[name]]
        return [plan for each in names for plan in runner.replays(self.plans[each], list(self.past[each]))]

    def _ended(
        self,
        name: str,
        machines: Machines,
        outcome: Outcome,
        progress: Mapping[str, Sequence[Progress]],
        failures: Sequence[Found],
        **more: bool,
    ) -> Run:
        """The run of a target.

        Args:
            progress: of the target, and of the target in its modes.
        """
        target, plan = self.targets[name], self.plans[name]
        looks = bool(target.findings) and not outcome.interrupted and not outcome.error
        fixed = machines.fixed(name, plan.case_seconds) if looks else []
        return Run(
            target=target.name,
            device=machines.device_name,
            support=machines.supports[name],
            versions={"python": platform.python_version()} | provenance.versions(),
            command=command_again(plan, self.options, machines.workers),
            seed=plan.seed,
            workers=machines.workers,
            planned=plan.examples,
            seconds=time.monotonic() - self.started,
            progress=progress[name],
            in_modes={each.removeprefix(f"{name}@"): progress[each] for each in self.in_modes[name]},
            failures=failures,
            fixed=[finding for finding in target.findings if finding.name in fixed],
            restarted=len(outcome.restarted),
            counts_launches=target.modules is not None and plan.device == "cpu",
            interrupted=outcome.interrupted,
            error=outcome.error,
            **more,
        )

    def reported(self, runs: Mapping[str, Run], json_file: Path | None, pages: Path | None, errors: list[str]) -> int:
        """Print the results, write them, and return the exit code. A file that cannot be written adds an error."""
        if failures := [found for run in runs.values() if run.keeps_going for found in run.failures]:
            from attn_parity.commands.fuzz import keep_going

            keep_going.tell(failures)
        unseen = []
        for run in runs.values():
            name = f"{run.target}: " if len(runs) > 1 else ""
            _tell(run, name)
            unseen += [f"{name}{each}" for each in gaps.missing(run.accounts, self.options.required)]
        for each in unseen:
            results.print(f"required, and not seen: {each}")
        if json_file is not None:
            try:
                write_json(json_file, _as_json(list(runs.values())))
            except click.ClickException as error:
                errors.append(error.message)
        if pages:
            for run in runs.values():
                _write_page(run, pages / f"{name_part(run.target)}-{run.seed}.html", errors)
        return _exit_code(list(runs.values()), errors) or EXIT_UNSEEN * bool(unseen)


def _as_json(runs: Sequence[Run]) -> dict[str, Any]:
    found = [run.to_json() for run in runs]
    return found[0] if len(found) == 1 else {"schema": RUNS_SCHEMA, "runs": found}


def _write_page(run: Run, file: Path, errors: list[str]) -> None:
    from attn_fuzz.report import page

    try:
        outputs.write(file, page.of_run(run))
        results.print(f"page: {file}")
    except OSError as error:
        errors.append(f"{file}: {error.strerror}")


def _exit_code(runs: Sequence[Run], errors: list[str]) -> int:
    """The exit code: 1 if a case fails, 130 after an interruption, EXIT_LIMIT if a limit was met.

    It is EXIT_NEVER_SENT if no engine sends a case that fails.

    Errors are printed, or raised if no case fails.

    Raises:
        ExecutorError: there are errors, and no failing case.
    """
    fails = any(run.failures for run in runs)
    if errors and not fails:
        raise ExecutorError("\n".join(errors))
    for error in errors:
        notes.print(f"attn-parity: {error}")
    if fails:
        sent = any(not found.never_sent for run in runs for found in run.failures)
        return 1 if sent else EXIT_NEVER_SENT
    if runs[0].interrupted:
        return 130
    return EXIT_LIMIT if any(run.limits or run.launches_nothing for run in runs) else 0


def _run(
    plans: Sequence[FuzzPlan], machines: Machines, folder: Path, name: str, total: int
) -> tuple[Outcome, list[failing.EarlyFiles]]:
    """Run the shards. Each failure is shown and written into the folder at once; returns the files of each shard.

    Args:
        total: the number of cases that the shards run.
    """
    done = [Progress() for _ in plans]
    files_of = [failing.EarlyFiles() for _ in plans]
    with progress_bar(total) as show_bar:

        def show(index: int, progress: Progress) -> None:
            before = done[index].failure
            if progress.failure is not None and before is None:
                files_of[index].first = failing.show_first(progress.failure, folder, name)
            elif progress.failure is not None and progress.failure != before:
                files_of[index].save_smallest(progress.failure.case, folder, f"{name}-shard-{index}")
            done[index] = progress
            tried = sum(p.shrinking for p in done)
            show_bar(sum(p.replayed + p.examples for p in done), f"{tried} cases tried to shrink" * bool(tried))

        return runner.run(plans, machines.workers, stop_at_failure=True, report=show, place=machines.run), files_of


def command_again(plan: FuzzPlan, options: Options, workers: int) -> list[str]:
    """The command that runs a target again. It names no database, whose address may hold a password, and no machines.

    It names the workers if these divided the shards: another number of them may find another of the seed's failing cases first.
    """
    given = {"target": plan.target, "device": plan.device, "examples": plan.examples, "seed": plan.seed}
    given |= {"workers": workers} if workers > len(runner.shards(plan)) else {}
    given |= {"minutes": options.max_minutes, "corpus": options.corpus}
    given |= {"case-seconds": plan.case_seconds} if plan.case_seconds != CASE_SECONDS else {}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    if options.sanitize is not None:
        words.append("--sanitize" if options.sanitize else "--no-sanitize")
    if not plan.malformed and plan.exact_every != shard.exact_every(registry.load(plan.target), plan.device):
        words.append("--exact" if plan.exact_every else "--no-exact")
    words += [word for name in options.required for word in ("--require", name)]
    words += ["--no-modes"] * (not options.in_modes) + ["--fence"] * plan.fenced + ["--malformed"] * plan.malformed
    return ["attn-parity", "fuzz", *words, *["--keep-going"] * options.keep_going]


def _tell(run: Run, name: str) -> None:
    """Print the results of a run. Its lines begin with `name`."""
    for i, found in enumerate(() if run.keeps_going else run.failures):
        failing.tell(found, is_first=i == 0)
    for finding in run.fixed:
        results.print(f"finding {finding.name}: its stored case no longer fails. Fixed? {finding.path}")
    if run.restarted:
        died = f"{run.restarted} worker process{'es' * (run.restarted > 1)} died"
        results.print(f"{died}; what it was to run was run again")
    for line in [*(run.drawn.rejections if run.has_drawn else []), *run.ran, *run.not_seen, *run.not_run]:
        notes.print(f"{name}{line}")
    results.print(f"{name}{run.sentence}")
