"""`attn-parity exhaust`: run every call of a scope on a target, without sampling."""

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from attn_fuzz import outputs, report
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.exhaustive import ledger, run
from attn_fuzz.exhaustive.ledger import Ended, Ledger, RunOf
from attn_fuzz.exhaustive.run import Counted, Plan, Result
from attn_fuzz.exhaustive.scope import SCOPES
from attn_fuzz.findings.finding import explanation
from attn_fuzz.run import sources
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import COMPARED, NOT_CARRIED
from attn_parity.console import notes, plain_table, results
from attn_parity.device import check_exact, default_workers, device_name, sanitizes, say_what_runs_kernels, use_device
from attn_parity.files import check_writable, say_half, write_json
from attn_parity.options import Positive, Shard, case_seconds_option, device_option, exact_option, json_option, workers_option
from attn_parity.signals import ignore_signals
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

REASONS = 4
"""The number of reasons for leaving calls out that are printed for each part."""
_SCOPES = " ".join(f"{scope.name}: {scope.what}." for scope in SCOPES.values())


@click.command("exhaust", epilog=f"Scopes. {_SCOPES}")
@click.option("--target", "target_name", default="triton", show_default=True, help="The target to check.")
@click.option(
    "--scope",
    "scope_name",
    type=click.Choice(list(SCOPES)),
    default="ci",
    show_default=True,
    help="The set of calls; see below.",
)
@click.option("--shard", type=Shard(), default=(1, 1), help="Run only this share of the launches, on one of N machines.")
@click.option("--count", "counts_only", is_flag=True, help="Run nothing; print how many calls the scope has on the target.")
@click.option("--failures", type=Positive, default=1, show_default=True, help="Stop after this number of failing launches.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=outputs.RUNS,
    show_default=True,
    help="Where failing cases go, and the ledger from which an interrupted run goes on.",
)
@click.option(
    "--sanitize/--no-sanitize",
    default=False,
    help="Check every address that interpreted kernels access, which takes half as long again; default: off.",
)
@exact_option
@workers_option
@case_seconds_option
@device_option
@json_option
def command(
    target_name: str,
    scope_name: str,
    shard: tuple[int, int],
    counts_only: bool,
    failures: int,
    folder: Path,
    sanitize: bool,
    exactly: bool,
    workers: int | None,
    case_seconds: float,
    device: str,
    json_file: Path | None,
) -> int:
    """Run every call of a scope on a target, without sampling.

    The same command continues an interrupted run. Exit 1 if a case fails, and 130 if the
    run is interrupted and nothing has failed.
    """
    check_writable(json_file)
    device = use_device(device)
    check_exact(exactly, device)
    target = registry.usable(target_name, device)
    if not target.oracle:
        raise InputError(f"--target: {target_name} has no oracle (Target.oracle), so its outputs cannot be compared")
    plan = Plan(
        target=target_name,
        device=device,
        scope=scope_name,
        shard=shard,
        workers=workers or default_workers(device),
        folder=folder,
        failures=failures,
        case_seconds=case_seconds,
        sanitize=sanitizes(sanitize, target, device),
        exactly=exactly,
    )
    outcome = Outcome(plan, target, _counted(plan, target))
    if not outcome.total_calls:
        reason = next((why for part in outcome.parts for why in part.left_out.not_served), "nothing")
        raise InputError(f"--target: {target_name} serves no call of the scope {scope_name}: {reason}")
    if counts_only:
        _print_counts(outcome)
        if json_file:
            write_json(json_file, _json(outcome))
        return 0
    say_what_runs_kernels(device, [target])
    folder.mkdir(parents=True, exist_ok=True)
    scope = f"{scope_name}{'-exact' * exactly}"
    path = ledger.path_of(folder, target.name, scope, outcome.shard)
    with ledger.opened(path, _run_of(outcome)) as book:
        error = _exhaust(outcome, book)
        _tell(outcome, path)
        if json_file:
            write_json(json_file, _json(outcome))
        if outcome.is_whole and not outcome.failed_launches:
            path.unlink()  # the same command begins anew
    if error is not None and not outcome.failed_launches:
        raise error
    if error is not None:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    if outcome.failed_launches:
        return 1
    return 130 if outcome.interrupted else 0


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        parts: the parts of the scope, whole, with what is left out of them.
        ended: the launches that have a verdict, by number, with those of earlier runs.
        calls, seconds: the calls and the seconds of this run only.
    """

    plan: Plan
    target: Target
    parts: list[Counted]
    ended: dict[int, Ended] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def shard(self) -> str:
        return "{}/{}".format(*self.plan.shard)

    @property
    def total_calls(self) -> int:
        """The number of calls of the whole scope on this target."""
        return sum(part.calls for part in self.parts)

    @property
    def launches(self) -> int:
        """The number of launches of the shard."""
        total = sum(part.launches for part in self.parts)
        return len(range(self.plan.shard[0] - 1, total, self.plan.shard[1]))

    @property
    def failed_launches(self) -> list[Ended]:
        return [launch for launch in self.ended.values() if launch.failed]

    @property
    def is_whole(self) -> bool:
        return len(self.ended) == self.launches


def _counted(plan: Plan, target: Target) -> list[Counted]:
    """Counts of the calls of each part of the scope, and of those left out."""
    counts: list[Counted] = []
    spinner = Progress(SpinnerColumn(), TextColumn("counting calls"), TimeElapsedColumn(), console=notes, transient=True)
    spinner.disable = not notes.is_terminal
    with spinner:
        spinner.add_task("count", total=None)
        for _ in run.numbered(SCOPES[plan.scope], plan.target, target, plan.device, counts):
            pass
    return counts


def _run_of(outcome: Outcome) -> RunOf:
    plan = outcome.plan
    return RunOf(
        target=plan.target,
        device=plan.device,
        scope=plan.scope,
        shard=outcome.shard,
        sanitize=plan.sanitize,
        exactly=plan.exactly,
        identity=sources.identity(plan.target),
    )


def _exhaust(outcome: Outcome, book: Ledger) -> Exception | None:
    """Run the launches of the shard that have not ended yet. The outcome is kept up to date, also if the run ends early.

    Returns:
        The error that ended the run, or None.
    """
    plan, target = outcome.plan, outcome.target
    started = time.monotonic()
    say_half(book.lines)
    outcome.ended, before = book.ended, set(book.ended)
    _say_what_runs(outcome, len(before), book.lines.path)
    launches = run.numbered(SCOPES[plan.scope], plan.target, target, plan.device, [])
    waiting = ((i, launch) for i, launch in launches if run.in_shard(i, plan.shard) and i not in before)
    error = None
    with _bar(outcome.launches, len(before)) as advance:

        def note(result: Result) -> None:
            book.add(_ended(outcome, result))
            outcome.calls += result.calls
            advance()

        try:
            run.run(plan, waiting, note)
        except KeyboardInterrupt:
            outcome.interrupted = True
        except (ExecutorError, OSError) as ended:
            error = ended
        if outcome.interrupted or outcome.failed_launches:
            ignore_signals()  # they would lose what is about to be reported
    outcome.seconds = time.monotonic() - started
    return error


def _say_what_runs(outcome: Outcome, before: int, path: Path) -> None:
    plan = outcome.plan
    shard = "" if plan.shard == (1, 1) else f", shard {outcome.shard}"
    where = f"{device_name(plan.device)}, {plan.workers} workers"
    work = f"{outcome.total_calls:,} calls in {sum(part.launches for part in outcome.parts):,} launches{shard}"
    results.print(f"target {outcome.target.name} on {where}: scope {plan.scope}, {work}", soft_wrap=True)
    if before:
        results.print(f"{before:,} launches have ended before, in {path}", soft_wrap=True)


def _ended(outcome: Outcome, result: Result) -> Ended:
    """The line of the ledger for a launch. The smallest failing case of a failing launch is shown and written first."""
    if (failed := result.failed) is None:
        verdict = result.verdict
        exact = next((event for event in verdict.events if event.startswith((COMPARED, NOT_CARRIED))), "")
        seconds = dict(verdict.seconds)
        return Ended(launch=result.number, calls=result.calls, ratio=verdict.ratio, seconds=seconds, exact=exact)
    name = re.sub(r"[^\w.+-]+", "-", outcome.target.name)[:80]
    name = f"{name}-exhaust-{outcome.plan.scope}-{result.number}"
    path, script = report.write(failed.case, failed.verdict, outcome.plan.folder, name)
    if len(failed.case.requests) > 1 and result.calls > 1:
        results.print(f"no call of a packed launch fails alone: the smallest batch that fails has {len(failed.case.requests)}")
    if finding := explanation(outcome.target.findings_on(outcome.plan.device), failed.case, failed.verdict):
        results.print(f"the launch fails as the known finding {finding.name} says", soft_wrap=True)
    results.print(report.summary(failed.case, failed.verdict))
    results.print(f"smallest case of its launch: {path}   script: {script}", soft_wrap=True)
    results.print(f"again: {shlex.join(report.again(failed.case, path, failed.verdict))}", soft_wrap=True)
    return Ended(launch=result.number, calls=result.calls, failed=str(path))


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[], None]]:
    """A progress bar of launches. Call it when another one has ended."""
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("launches", total=total, completed=done)
        yield lambda: progress.advance(task)


def _tell(outcome: Outcome, path: Path) -> None:
    """Print what ended, and the claim if all of it agrees."""
    plan, ended = outcome.plan, outcome.ended.values()
    calls, failed = sum(launch.calls for launch in ended), outcome.failed_launches
    of = f"scope {plan.scope} of target {outcome.target.name}"
    of = of if plan.shard == (1, 1) else f"shard {outcome.shard} of {of}"
    rate = f"{outcome.calls:,} calls in {outcome.seconds:.1f} s ({outcome.calls / max(outcome.seconds, 1e-9):,.0f}/s)"
    if failed:
        some = "" if outcome.is_whole else f" so far, of {outcome.launches:,}"
        results.print(f"{of}: {len(failed):,} of {len(ended):,} launches fail{some}; this run: {rate}", soft_wrap=True)
    elif outcome.is_whole:
        ratio = max((launch.ratio for launch in ended), default=0.0)
        claim = f"all {calls:,} calls of {of} agree with the reference, within the judge's bound"
        results.print(f"{claim} (largest error {ratio:.2f} of it); this run: {rate}", soft_wrap=True)
        if plan.exactly:
            _tell_exact(list(ended), of)
    if not outcome.is_whole:
        left = f"{outcome.launches - len(ended):,} launches are left: the same command goes on, by {path}"
        results.print(f"interrupted, {left}" if outcome.interrupted else left, soft_wrap=True)


def _tell_exact(ended: Sequence[Ended], of: str) -> None:
    """Print the claim in exact arithmetic, and what exact mode did not carry.

    Raises:
        ExecutorError: no launch was compared exactly.
    """
    compared = sum(launch.calls for launch in ended if launch.exact == COMPARED)
    left: Counter[str] = Counter()
    for launch in ended:
        if launch.exact != COMPARED:
            left[launch.exact] += launch.calls
    results.print(f"{compared:,} of them are the formula's in exact arithmetic, in every element", soft_wrap=True)
    for reason, count in left.most_common():
        results.print(f"{reason}: {count:,} calls", soft_wrap=True)
    if not compared:
        raise ExecutorError(f"--exact: no call of {of} was compared exactly, so nothing was shown")


def _print_counts(outcome: Outcome) -> None:
    numbers = ("layers", "calls", "launches", "left out", "undefined")
    table = plain_table("part", "block sizes", *numbers, right=numbers)
    for part in outcome.parts:
        out, undefined = part.left_out.not_served.total(), part.left_out.undefined.total()
        sizes = ", ".join(map(str, part.block_sizes))
        counts = (part.layers, part.calls, part.launches, out, undefined)
        table.add_row(part.part.what, sizes, *(f"{count:,}" for count in counts))
    results.print(table)
    for part in outcome.parts:
        for why, count in part.left_out.not_served.most_common(REASONS):
            results.print(f"left out of {part.part.what}: {count:,}, {why}", soft_wrap=True)
    launches = sum(part.launches for part in outcome.parts)
    of = f"scope {outcome.plan.scope} has {outcome.total_calls:,} calls on target {outcome.target.name}"
    shard = "" if outcome.plan.shard == (1, 1) else f", {outcome.launches:,} of them in shard {outcome.shard}"
    results.print(f"{of}, in {launches:,} launches{shard}", soft_wrap=True)


def _json(outcome: Outcome) -> dict[str, Any]:
    plan, ended = outcome.plan, outcome.ended.values()
    spent: dict[str, float] = {}
    for launch in ended:
        for name, seconds in launch.seconds.items():
            spent[name] = spent.get(name, 0.0) + seconds
    return {
        "schema": "attn-parity.exhaust/1",
        "target": outcome.target.name,
        "device": plan.device,
        "versions": sources.versions(),
        "scope": plan.scope,
        "shard": outcome.shard,
        "parts": [
            {
                "what": part.part.what,
                "block_sizes": list(part.block_sizes),
                "layers": part.layers,
                "calls": part.calls,
                "launches": part.launches,
                "left_out": dict(part.left_out.not_served),
                "undefined": dict(part.left_out.undefined),
            }
            for part in outcome.parts
        ],
        "launches": outcome.launches,
        "ended_launches": len(ended),
        "ended_calls": sum(launch.calls for launch in ended),
        "calls": outcome.calls,
        "seconds": outcome.seconds,
        "spent": spent,
        "compared_exactly": sum(launch.calls for launch in ended if launch.exact == COMPARED),
        "max_ratio": max((launch.ratio for launch in ended), default=0.0),
        "interrupted": outcome.interrupted,
        "failures": [launch.failed for launch in outcome.failed_launches],
    }
