"""`attn-parity exhaust`: run every call of a scope on a target, without sampling."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import click
from attn_fuzz import outputs, report
from attn_fuzz.errors import ExecutorError
from attn_fuzz.exhaustive import ledger, run
from attn_fuzz.exhaustive.ledger import Ended, Ledger, RunOf
from attn_fuzz.exhaustive.run import Counted, Plan, Result
from attn_fuzz.exhaustive.scope import SCOPES
from attn_fuzz.findings.finding import explanation
from attn_fuzz.run import provenance
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import COMPARED, NOT_CARRIED
from attn_parity.commands.exhaust import told
from attn_parity.commands.exhaust.exhausted import Exhausted
from attn_parity.console import notes, results, task
from attn_parity.device import check_exact, default_workers, sanitizes, say_what_runs_kernels, use_device
from attn_parity.files import check_writable, name_part, say_half, write_json
from attn_parity.options import (
    Positive,
    Shard,
    case_seconds_option,
    device_option,
    exact_option,
    json_option,
    record_of,
    workers_option,
)
from attn_parity.signals import ignore_signals
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SCOPES = " ".join(f"{scope.name}: {scope.what}." for scope in SCOPES.values())


@dataclass(frozen=True)
class Options:
    target: str
    scope: str
    shard: tuple[int, int]
    counts_only: bool
    failures: int
    folder: Path
    sanitize: bool
    exactly: bool
    workers: int | None
    case_seconds: float
    device: str
    json_file: Path | None


@click.command("exhaust", epilog=f"Scopes. {_SCOPES}")
@click.option("--target", default="triton", show_default=True, help="The target to check.")
@click.option("--scope", type=click.Choice(list(SCOPES)), default="ci", show_default=True, help="The set of calls; see below.")
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
@record_of(Options)
def command(options: Options) -> int:
    """Run every call of a scope on a target, without sampling.

    The same command continues an interrupted run. Exit 1 if a case fails, and 130 if the
    run is interrupted and nothing has failed.
    """
    check_writable(options.json_file)
    device = use_device(options.device)
    check_exact(options.exactly, device)
    target = registry.usable(options.target, device)
    if not target.oracle:
        raise click.UsageError(f"--target: {options.target} has no oracle (Target.oracle), so its outputs cannot be compared")
    plan = _plan(options, target, device)
    outcome = Exhausted(plan, target, _counted(plan, target))
    if not outcome.total_calls:
        reason = next((why for part in outcome.parts for why in part.left_out.not_served), "nothing")
        raise click.UsageError(f"--target: {options.target} serves no call of the scope {options.scope}: {reason}")
    if options.counts_only:
        told.print_counts(outcome)
        if options.json_file:
            write_json(options.json_file, outcome.to_json())
        return 0
    say_what_runs_kernels(device, [target])
    options.folder.mkdir(parents=True, exist_ok=True)
    path = ledger.path_of(options.folder, target.name, f"{plan.scope}{'-exact' * plan.exactly}", outcome.shard)
    with ledger.opened(path, _run_of(outcome)) as book:
        error = _exhaust(outcome, book)
        told.tell(outcome, path)
        if options.json_file:
            write_json(options.json_file, outcome.to_json())
        if outcome.is_whole and not outcome.failed_launches:
            path.unlink()  # the same command begins anew
    return _exit_code(outcome, error)


def _plan(options: Options, target: Target, device: str) -> Plan:
    return Plan(
        target=options.target,
        device=device,
        scope=options.scope,
        shard=options.shard,
        workers=options.workers or default_workers(device),
        folder=options.folder,
        failures=options.failures,
        case_seconds=options.case_seconds,
        sanitize=sanitizes(options.sanitize, target, device),
        exactly=options.exactly,
    )


def _exit_code(outcome: Exhausted, error: Exception | None) -> int:
    """The exit code of a run. An error is printed, or raised if nothing fails."""
    if error is not None and not outcome.failed_launches:
        raise error
    if error is not None:
        notes.print(f"attn-parity: {error}")
    if outcome.failed_launches:
        return 1
    return 130 if outcome.interrupted else 0


def _counted(plan: Plan, target: Target) -> list[Counted]:
    """Counts of the calls of each part of the scope, and of those left out."""
    counts: list[Counted] = []
    with task(None, TextColumn("counting calls"), TimeElapsedColumn()):
        for _ in run.numbered(SCOPES[plan.scope], plan.target, target, plan.device, counts):
            pass
    return counts


def _run_of(outcome: Exhausted) -> RunOf:
    plan = outcome.plan
    return RunOf(
        target=plan.target,
        device=plan.device,
        scope=plan.scope,
        shard=outcome.shard,
        sanitize=plan.sanitize,
        exactly=plan.exactly,
        identity=provenance.identity(plan.target),
    )


def _exhaust(outcome: Exhausted, book: Ledger) -> Exception | None:
    """Run the launches of the shard that have not ended yet. The outcome is kept up to date, also if the run ends early.

    Returns:
        The error that ended the run, or None.
    """
    plan, target = outcome.plan, outcome.target
    started = time.monotonic()
    say_half(book.lines)
    outcome.ended, before = book.ended, set(book.ended)
    told.say_what_runs(outcome, len(before), book.lines.path)
    launches = run.numbered(SCOPES[plan.scope], plan.target, target, plan.device, [])
    waiting = ((i, launch) for i, launch in launches if run.in_shard(i, plan.shard) and i not in before)
    error = None
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with task(outcome.launches, *columns, done=len(before)) as update:

        def note(result: Result) -> None:
            book.add(_ended(outcome, result))
            outcome.calls += result.calls
            update(advance=1)

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


def _ended(outcome: Exhausted, result: Result) -> Ended:
    """The line of the ledger for a launch. The smallest failing case of a failing launch is shown and written first."""
    if (failed := result.failed) is None:
        verdict = result.verdict
        exact = next((event for event in verdict.events if event.startswith((COMPARED, NOT_CARRIED))), "")
        seconds = dict(verdict.seconds)
        return Ended(launch=result.number, calls=result.calls, ratio=verdict.ratio, seconds=seconds, exact=exact)
    name = f"{name_part(outcome.target.name)}-exhaust-{outcome.plan.scope}-{result.number}"
    path, script = report.write(failed.case, failed.verdict, outcome.plan.folder, name)
    if len(failed.case.requests) > 1 and result.calls > 1:
        results.print(f"no call of a packed launch fails alone: the smallest batch that fails has {len(failed.case.requests)}")
    if finding := explanation(outcome.target.findings_on(outcome.plan.device), failed.case, failed.verdict):
        results.print(f"the launch fails as the known finding {finding.name} says")
    results.print(report.summary(failed.case, failed.verdict))
    results.print(f"smallest case of its launch: {path}   script: {script}")
    results.print(f"again: {shlex.join(report.again(failed.case, path, failed.verdict))}")
    return Ended(launch=result.number, calls=result.calls, failed=str(path))
