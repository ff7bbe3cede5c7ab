"""`python -m attn_lab binaries`: hold the launches that ship to budgets, and run them on the emulator."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from attn_binaries import rows
from attn_binaries.build import LaunchName, Outcome
from attn_binaries.rows import Row
from attn_lab.binaries import budgets, executions
from attn_lab.binaries.budgets import Budgets
from attn_parity.console import plain_table, progress_bar, results
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
    workers: int
    option: str = ""


_launch_options = together(
    architectures_option,
    only_option,
    main_option,
    compile_seconds_option,
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

    Exit 1 when one is over its budget; else 2 when one has no code after --compile-seconds.
    """
    outcome, over = _made(options)
    return 130 if outcome.interrupted else rows.exit_code(over, outcome)


@command.command("run")
@_launch_options
@click.option("--option", default="", metavar="NAME=VALUE", help="Compile with this launch option, such as num_stages=3.")
@record_of(Options)
def _run(options: Options) -> int:
    """Compile the launches that ship, run AMD's on the emulator, and judge what they compute.

    Exit 1 when one is over its budget, or computes something else; else 2 when one has no code after --compile-seconds.
    """
    if options.option and "=" not in options.option:
        raise click.UsageError(f"--option: got {options.option!r}, expected NAME=VALUE")
    if not any(name.startswith("gfx") for name in chosen_architectures(options.architectures)):
        raise click.UsageError("there is an emulator for AMD's architectures only: see --arch")
    outcome, over = _made(options)
    if outcome.interrupted:
        return 130
    wrong, interrupted = _ran(outcome, options.workers, options.option)
    return 130 if interrupted else rows.exit_code([*over, *wrong], outcome)


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
    found = _rows(outcome)
    over = _over(found, calls, Budgets(vgpr_spills=math.inf, sgpr_spills_in_loops=math.inf, waves={}))
    spilling = {job: spills for job, row in found.items() if (spills := row.facts.vgpr_spills)}
    for job, spills in sorted(spilling.items(), key=lambda entry: -entry[1]):
        results.print(f"{' '.join(job)}: {spills} registers are spilled")
    for line in (*over, *rows.errors_of(outcome)):
        results.print(line)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    of_steps = f"{len(found)} launches of {count} drawn steps, --seed {seed}"
    wrong = f"{len(over)} do what no launch may, {rows.uncompiled(outcome)}"
    results.print(f"{begun}{of_steps}, compiled with Triton {_triton()}: {len(spilling)} spill registers, {wrong}")
    return 130 if outcome.interrupted else rows.exit_code(over, outcome)


def _made(options: Options) -> tuple[Outcome, list[str]]:
    """Compile launches, and tell what is over budget."""
    calls = chosen_calls(options.architectures, only=options.only, main=options.main)
    outcome = built(calls, options.workers, options.compile_seconds)
    found = _rows(outcome)
    over = _over(found, calls, budgets.load())
    _print(found, over, outcome)
    return outcome, over


def _rows(outcome: Outcome) -> dict[LaunchName, Row]:
    return {(row.architecture, row.call): row for row in rows.rows_of(outcome)}


def _triton() -> str:
    return version("triton") or ""


def _over(found: Mapping[LaunchName, Row], calls: "Calls", allowed: Budgets) -> list[str]:
    return [
        f"{' '.join(job)}: {sentence}"
        for job, row in found.items()
        if (call := calls[row.architecture].get(row.call)) is not None
        for sentence in budgets.over(allowed, *job, call, row.facts, _triton())
    ]


def _print(found: Mapping[LaunchName, Row], over: list[str], outcome: Outcome) -> None:
    """Print facts, and what is over its budget."""
    print_tables(found.values())
    for line in (*over, *rows.errors_of(outcome)):
        results.print(line)
    begun = "interrupted; so far: " if outcome.interrupted else ""
    compiled = f"{len(found)} compiled with Triton {_triton()}"
    results.print(f"{begun}{compiled}, {len(over)} over budget, {rows.uncompiled(outcome)}")


def _ran(outcome: Outcome, workers: int, option: str) -> tuple[list[str], bool]:
    """Run what was compiled, and tell which launches do not agree, and whether the run was interrupted."""
    started = time.monotonic()
    calls = executions.calls_of(outcome.binaries)
    with progress_bar(len(calls)) as show_bar:
        found, interrupted = executions.run(calls, workers, show_bar, option)
    for architecture in dict.fromkeys(architecture for architecture, _ in found):
        table = plain_table("launch", "run", "error / bound", right=("error / bound",))
        for (one, name), execution in found.items():
            if one == architecture:
                table.add_row(name, execution.verdict, f"{execution.error:.2f}")
        results.print(f"\n{architecture}, emulated", style="bold")
        results.print(table)
    wrong = [f"{' '.join(job)}: {one.verdict}: {one.why}" for job, one in found.items() if not one.agrees]
    for line in (*wrong, *(f"{' '.join(job)}: {one.why}" for job, one in found.items() if one.agrees and one.why)):
        results.print(line)
    begun = "interrupted; so far: " if interrupted else ""
    results.print(f"{begun}{len(found) - len(wrong)} of {len(found)} launches agree, in {time.monotonic() - started:.0f} s")
    return wrong, interrupted
