"""The launches that options name, their compilation beside a progress bar, and the table of their binaries."""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import COMPILE_SECONDS, SHIPPED, LaunchSource, Outcome, build
from attn_parity.console import notes, plain_table, progress_bar, results
from attn_parity.options import seconds_option

if TYPE_CHECKING:
    from attn_binaries.rows import Row
    from attn_optimized.kernel_call import KernelCall

    Calls = dict[str, dict[str, KernelCall]]
    """The launches by architecture and then by name."""

ESTIMATED = 30
"""The launches after which the rest is estimated. On gfx90a the first 30 of 209 took 14 % of the time."""

architectures_option = click.option(
    "--arch", "architectures", metavar="A,B,...", help="Only launches for these architectures; default: all."
)
only_option = click.option("--only", default="", metavar="TEXT", help="Only launches whose name contains TEXT.")
main_option = click.option("--main", is_flag=True, help="Only launches that every change compiles.")
compile_seconds_option = seconds_option("--compile-seconds", COMPILE_SECONDS, "Seconds that a launch may take to compile.")


def chosen_architectures(given: str | None) -> tuple[str, ...]:
    """The architectures of A,B,...; if none is given, all whose facts are known and that this Triton serves."""
    from attn_optimized.device import missing_compiler

    served = tuple(name for name in ARCHITECTURES if not missing_compiler(name))
    chosen = tuple(dict.fromkeys(given.split(","))) if given else served
    if unknown := [name for name in chosen if name not in ARCHITECTURES]:
        raise click.UsageError(f"--arch: got {', '.join(unknown)}, expected some of {', '.join(ARCHITECTURES)}")
    if missing := next(filter(None, map(missing_compiler, chosen)), None):
        raise click.UsageError(f"--arch: {missing}")
    return chosen


def chosen_calls(architectures: str | None, *, only: str = "", main: bool = False) -> "Calls":
    """The launches that ship and whose names hold a text, by architecture and name."""
    names = chosen_architectures(architectures)
    if any(name.startswith("gfx") for name in names):
        import attn_amdgcn  # noqa: F401  # needs the extra `emulated`
    from attn_binaries.shipped_calls import chosen  # imports Triton

    calls = {name: chosen(name, only=only, main=main) for name in names}
    if not any(calls.values()):
        raise click.UsageError(f"--only: no {'main ' * main}launch has {only!r} in its name")
    return calls


def built(
    calls: "Mapping[str, Mapping[str, Any]]", workers: int, compile_seconds: float, launches: LaunchSource = SHIPPED
) -> Outcome:
    """Compile launches beside a progress bar, and say how long the rest takes at the rate so far.

    Args:
        launches: tells the compiling processes where to find the launches.
    """
    jobs = [(architecture, name) for architecture, some in calls.items() for name in some]
    at_once, begun = min(workers, len(jobs)), time.monotonic()
    notes.print(f"launches to compile: {len(jobs)}, {at_once} at once")
    with progress_bar(len(jobs)) as show_bar:

        def show(done: int) -> None:
            left = f"about {(time.monotonic() - begun) / done * (len(jobs) - done) / 60:.0f} minutes to go"
            show_bar(done, left)
            if done == ESTIMATED:
                notes.print(f"{done} of {len(jobs)} are compiled: {left}")

        return build(jobs, at_once, show, launches, compile_seconds)


def print_tables(rows: "Iterable[Row]") -> None:
    """A table for each architecture."""
    from attn_binaries.rows import COLUMNS, cells

    rows = list(rows)
    for architecture in dict.fromkeys(row.architecture for row in rows):
        table = plain_table(*COLUMNS, right=COLUMNS[2:])
        for row in rows:
            if row.architecture == architecture:
                table.add_row(*cells(row))
        results.print(f"\n{architecture}", style="bold")
        results.print(table)
