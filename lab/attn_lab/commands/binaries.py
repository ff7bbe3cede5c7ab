"""`python -m attn_lab binaries`: hold the launches that ship to budgets, run them on the emulator, and keep what came of it."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import click
from attn_binaries import rows
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import LaunchName, Outcome
from attn_binaries.rows import Execution
from attn_lab.binaries import budgets, executions, page
from attn_lab.binaries.budgets import Budgets
from attn_lab.binaries.results import DATA, FAULTS, Results, differences, load, updated
from attn_lab.options import check_option
from attn_lab.pages import write_or_check
from attn_parity.console import notes, plain_table, progress_bar, results
from attn_parity.files import check_writable
from attn_parity.launches import (
    architectures_option,
    built,
    chosen_architectures,
    chosen_calls,
    compile_seconds_option,
    main_option,
    only_option,
    print_tables,
)
from attn_parity.options import Positive, Seed, cpu_workers_option, record_of, together
from attn_parity.versions import version

if TYPE_CHECKING:
    from attn_parity.launches import Calls


@dataclass(frozen=True)
class Options:
    architectures: str | None
    only: str
    main: bool
    compile_seconds: float
    writes: bool
    workers: int
    option: str = ""

    @property
    def partly(self) -> bool:
        return bool(self.architectures or self.only or self.main)


_launch_options = together(
    architectures_option,
    only_option,
    main_option,
    compile_seconds_option,
    click.option("--write", "writes", is_flag=True, help="Keep the results in docs/generated/binaries.csv."),
    cpu_workers_option,
)


@click.group("binaries")
def command() -> None:
    """Compile the launches that ship, hold them to budgets, and run AMD's on the emulator."""


@command.command("compile")
@_launch_options
@record_of(Options)
def _compile(options: Options) -> int:
    """Compile the launches that ship, and hold registers, spills, LDS and matrix instructions to budgets.

    Exit 1 when one is over its budget; else 2 when one has no code after --compile-seconds. With --write, the results of
    other launches are kept.
    """
    made = _made(options)
    return 130 if made.outcome.interrupted else rows.exit_code(made.over, made.outcome)


@command.command("run")
@_launch_options
@click.option("--option", default="", metavar="NAME=VALUE", help="Compile with this launch option, such as num_stages=3.")
@record_of(Options)
def _run(options: Options) -> int:
    """Compile the launches that ship, run AMD's on the emulator, and judge what they compute.

    Exit 1 when one is over its budget, or computes something else; else 2 when one has no code after --compile-seconds.

    With --write, the results of other launches are kept, and a launch is left out that agreed before, in the code that it has
    now. So an interrupted run goes on.
    """
    if options.option and (options.writes or "=" not in options.option):
        raise click.UsageError("--option: expected NAME=VALUE, without --write: launches ship without it")
    if not any(name.startswith("gfx") for name in chosen_architectures(options.architectures)):
        raise click.UsageError("there is an emulator for AMD's architectures only: see --arch")
    made = _made(options)
    if made.outcome.interrupted:
        return 130
    ran, interrupted = _ran(made.outcome, options.workers, made.kept, options.option)
    if interrupted:
        return 130
    return 1 if Results("", ran=ran).wrong else rows.exit_code(made.over, made.outcome)


@command.command("drawn")
@click.argument("count", type=Positive, metavar="N")
@architectures_option
@click.option("--seed", type=Seed, default=0, show_default=True, help="The seed of the steps.")
@compile_seconds_option
@cpu_workers_option
def _drawn(count: int, architectures: str | None, seed: int, compile_seconds: float, workers: int) -> int:
    """Compile the launches of N drawn steps, and tell which spill, and what no launch may do."""
    names = chosen_architectures(architectures)  # before Triton is imported, which takes seconds
    from attn_lab.binaries import drawn_calls

    calls = {name: drawn_calls.all_of(name, seed, count) for name in names}
    outcome = built(calls, workers, compile_seconds, (drawn_calls.__name__, seed, count))
    found = _results(outcome)
    over = _over(found, calls, Budgets(vgpr_spills=math.inf, sgpr_spills_in_loops=math.inf, waves={}))
    spilling = {job: spills for job, row in found.rows.items() if (spills := row.facts.vgpr_spills)}
    for job, spills in sorted(spilling.items(), key=lambda entry: -entry[1]):
        results.print(f"{' '.join(job)}: {spills} registers are spilled")
    for line in (*over, *rows.errors_of(outcome)):
        results.print(line)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    of_steps = f"{len(found.rows)} launches of {count} drawn steps, --seed {seed}"
    wrong = f"{len(over)} do what no launch may, {rows.uncompiled(outcome)}"
    results.print(f"{begun}{of_steps}, compiled with Triton {found.triton}: {len(spilling)} spill registers, {wrong}")
    return 130 if outcome.interrupted else rows.exit_code(over, outcome)


@command.command("page")
@check_option
def _page(check: bool) -> int:
    """Write docs/generated/binaries.md of binaries.csv.

    With --check, exit 1, too, unless the file has all launches that ship, and each is within its budget.
    """
    from attn_binaries.shipped_calls import main_names

    found, wrong = load(DATA), list[str]()
    if check:
        calls = _all_calls()
        wrong = [*differences(found, _names(calls)), *_over(found, calls, budgets.load())]
    texts = {page.PAGE: page.text(found, main_names())}
    summary = "0 wrong" if check else ""
    return write_or_check(texts, "python -m attn_lab binaries page", checks=check, wrong=wrong, summary=summary)


class Made(NamedTuple):
    """What was compiled: the outcome, what is over its budget, and the results to keep; None if nothing is to be written."""

    outcome: Outcome
    over: list[str]
    kept: Results | None


def _made(options: Options) -> Made:
    """Compile launches, tell what is over budget, and store the results if they are asked for and all are there."""
    kept = _kept(options)  # before Triton is imported, which takes seconds
    calls = chosen_calls(options.architectures, only=options.only, main=options.main)
    outcome = built(calls, options.workers, options.compile_seconds)
    found = _results(outcome)
    over = _over(found, calls, budgets.load())
    _print(found, over, outcome, None if options.partly else _names(calls))
    faulty = any(getattr(row.facts, name) for row in found.rows.values() for name in FAULTS)
    if kept is None or outcome.errors or faulty or outcome.interrupted:
        return Made(outcome, over, None)
    kept = updated(kept, found, _names(_all_calls()))
    kept.save(DATA)
    return Made(outcome, over, kept)


def _kept(options: Options) -> Results | None:
    """The stored results of launches that do not run now; None if nothing is to be written."""
    if not options.writes:
        return None
    check_writable(DATA, "--write")
    kept = load(DATA) if options.partly or DATA.is_file() else Results("")
    if options.partly and kept.triton != version("triton"):
        here = f"Triton {kept.triton}, and here is {version('triton')}"
        raise click.UsageError(f"--write: the other launches of {DATA} were compiled with {here}: write them all")
    return kept


def _results(outcome: Outcome) -> Results:
    return Results(version("triton") or "", {(row.architecture, row.call): row for row in rows.rows_of(outcome)})


def _over(found: Results, calls: "Calls", allowed: Budgets) -> list[str]:
    return [
        f"{' '.join(job)}: {sentence}"
        for job, row in found.rows.items()
        if (call := calls[row.architecture].get(row.call)) is not None
        for sentence in budgets.over(allowed, *job, call, row.facts, found.triton)
    ]


def _print(found: Results, over: list[str], outcome: Outcome, names: Mapping[str, list[str]] | None) -> None:
    """Print facts, what is over its budget, and which exceptions of budgets are not needed.

    Args:
        names: the names of all launches; None if not all were compiled.
    """
    allowed = budgets.load()
    if not allowed.knows(found.triton):
        notes.print(f"no exception of the budgets is of Triton {found.triton}: what it spills is over them")
    print_tables(found.rows.values())
    facts = {job: row.facts for job, row in found.rows.items()}
    for line in budgets.unneeded(allowed, facts, names or {}, found.triton):
        notes.print(f"budgets: {line}")
    for line in (*over, *rows.errors_of(outcome)):
        results.print(line)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    compiled = f"{len(found.rows)} compiled with Triton {found.triton}"
    results.print(f"{begun}{compiled}, {len(over)} over budget, {rows.uncompiled(outcome)}")


def _ran(outcome: Outcome, workers: int, kept: Results | None, option: str) -> tuple[dict[LaunchName, Execution], bool]:
    """Run what was compiled, and tell what came of it, and whether it was interrupted.

    Args:
        kept: what came of each launch goes at once into its file, and what agrees there does not run again.
    """
    started = time.monotonic()
    calls = executions.calls_of(outcome.binaries, kept)
    with progress_bar(len(calls)) as show_bar:

        def report(done: int, ran: dict[LaunchName, Execution]) -> None:
            show_bar(done)
            if kept is not None:
                dataclasses.replace(kept, ran=kept.ran | ran).save(DATA)

        found, interrupted = executions.run(calls, workers, report, option)
    for architecture in dict.fromkeys(architecture for architecture, _ in found):
        table = plain_table("launch", "run", "error / bound", right=("error / bound",))
        for (one, name), execution in found.items():
            if one == architecture:
                table.add_row(name, execution.verdict, f"{execution.error:.2f}")
        results.print(f"\n{architecture}, emulated", style="bold")
        results.print(table)
    for line in (
        *Results("", ran=found).wrong,
        *(f"{' '.join(job)}: {one.why}" for job, one in found.items() if one.agrees and one.why),
    ):
        results.print(line)
    begun = "interrupted; so far: " if interrupted else ""
    agree = sum(execution.agrees for execution in found.values())
    if kept and (before := len(executions.calls_of(outcome.binaries)) - len(calls)):
        notes.print(f"{before} calls agreed before, and were not run again: {DATA}")
    results.print(f"{begun}{agree} of {len(found)} launches agree, in {time.monotonic() - started:.0f} s")
    return found, interrupted


def _all_calls() -> "Calls":
    from attn_binaries.shipped_calls import chosen

    return {name: chosen(name) for name in ARCHITECTURES}


def _names(calls: "Calls") -> dict[str, list[str]]:
    return {architecture: list(some) for architecture, some in calls.items()}
