"""`python -m benchmarks peers`: launches of vLLM's and AITER's Triton kernels beside ours, for GPUs that need not be here."""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click
from attn_parity.console import notes, results
from attn_parity.options import cpu_workers_option

from benchmarks import options

if TYPE_CHECKING:
    from benchmarks.peers.kind import Kind
    from benchmarks.peers.results import Results
    from benchmarks.steps.cases import Attention

Peers = dict[str, tuple[Path | None, SimpleNamespace]]
"""The folder given for each peer, and the kernels loaded from it."""
WIDTH = 180
"""Columns of a table that goes into a file or a pipe: counts have sixteen."""


@click.command("peers")
@click.argument("kinds", nargs=-1, type=click.Choice(["binaries", "counts", "bounds"]))
@click.option("--arch", "architectures", metavar="A,B,...", help="Architectures to compile for; default: those of the page.")
@options.only_option("cases", "those of the page")
@options.drawn_options
@options.vllm_option
@options.aiter_option
@click.option("--write", is_flag=True, help="Keep the CSV files of docs/generated/peers.md.")
@cpu_workers_option
@options.json_option("at the end: the rows of one kind")
def command(
    kinds: tuple[str, ...],
    architectures: str | None,
    only: tuple[str, ...],
    number: int | None,
    seed: int | None,
    vllm: Path | None,
    aiter: Path | None,
    write: bool,
    workers: int,
    json_file: Path | None,
) -> int:
    """Put vLLM's and AITER's launches beside ours, as their wrappers would make them: all kinds of facts, or some.

    binaries: registers, spills, LDS, waves, matrix instructions. counts: what AMD's code executes on the emulator in small
    cases; these are no times, and the exit code is 1 if a participant's output is wrong. bounds: what a turn of the hot loop
    takes on gfx942 by AMD's published rates, in drawn cases; this is arithmetic. No GPU is needed.
    """
    from attn_parity.files import check_writable, write_json

    from benchmarks.peers.page import FOLDER, KINDS
    from benchmarks.steps.drawn import draw_cases

    if write and (architectures or only or number):
        raise click.UsageError("--write: the page is of its own cases: leave out --arch, --only and --drawn")
    if json_file and len(kinds) != 1:
        raise click.UsageError("--json: expected one kind of facts")
    options.check_drawn(number, seed)
    for kind in KINDS if write else ():
        check_writable(FOLDER / f"{kind}.csv", "--write")
    found = _found_peers(vllm, aiter)
    drawn = [] if number is None or seed is None else draw_cases(number, seed)
    is_wrong = False
    for name in kinds or KINDS:
        kind = KINDS[name]
        cases = options.cases_named(drawn or [*kind.cases.values()], only)
        if not (only or drawn) and kind.on_the_page:
            cases = [case for case in cases if case.name in kind.on_the_page]
        collected, interrupted = _collected(kind, _chosen(name, kind, architectures), cases, found, workers)
        lacking = _print(name, kind, collected, "interrupted; so far: " if interrupted else "")
        is_wrong |= kind.checks_outputs and bool(lacking)
        if json_file:
            write_json(json_file, collected.json())
        if interrupted:
            return 130
        if write:
            collected.save(FOLDER / f"{name}.csv", kind.facts)
    return int(is_wrong)


def _found_peers(vllm: Path | None, aiter: Path | None) -> Peers:
    """The peers that are there. Why others are not is printed."""
    from benchmarks.participants.attention import AITER, VLLM
    from benchmarks.participants.loading import load_aiter, load_if_there, load_vllm

    found: Peers = {}
    for whose, load, folder in ((VLLM, load_vllm, vllm), (AITER, load_aiter, aiter)):
        module = load_if_there(load, folder, notes.print)
        if module is not None:
            found[whose] = (folder and folder.absolute(), module)
    return found


def _chosen(name: str, kind: "Kind", architectures: str | None) -> Sequence[str]:
    from attn_parity.launches import chosen_architectures

    chosen = chosen_architectures(architectures) if architectures else kind.architectures
    if others := [each for each in chosen if kind.is_amds and not each.startswith("gfx")]:
        raise click.BadParameter(f"got {', '.join(others)}, and {name} are of AMD's alone", param_hint="--arch")
    return chosen


def _collected(
    kind: "Kind", architectures: Sequence[str], cases: "Sequence[Attention]", peers: Peers, workers: int
) -> tuple["Results", bool]:
    """The results of every participant's launches in every case, and whether an interrupt left some out."""
    from attn_binaries.build import in_processes
    from attn_parity.console import progress_bar
    from attn_parity.versions import version

    from benchmarks.participants.attention import OURS
    from benchmarks.peers.kind import rows_of
    from benchmarks.peers.results import Results, Row

    folders = {OURS: None} | {whose: folder for whose, (folder, _) in peers.items()}
    jobs = [(case, architecture, *each) for architecture in architectures for case in cases for each in folders.items()]
    with progress_bar(len(jobs)) as show_bar:
        work, at_once = functools.partial(rows_of, kind), min(workers, len(jobs))
        found, interrupted = in_processes(work, jobs, at_once, lambda found: show_bar(len(found)))
    rows: list[Row] = []
    for case, architecture, whose, folder in jobs:
        outcome = found.get((case, architecture, whose, folder), [])
        rows += [Row(architecture, case.name, whose).without(outcome)] if isinstance(outcome, str) else outcome
    shown = {row.whose for row in rows}
    versions = {whose: module.version for whose, (_, module) in peers.items() if whose in shown}
    return Results(version("triton") or "", versions, tuple(rows)), interrupted


def _print(name: str, kind: "Kind", collected: "Results", begun: str) -> int:
    """Print a table of each architecture's rows, and return how many rows have no facts or are wrong."""
    from attn_parity.console import plain_table

    if not results.is_terminal:
        results.width = WIDTH
    for architecture in dict.fromkeys(row.architecture for row in collected.rows):
        shown = plain_table("case", "whose", "kernel", *kind.columns, right=kind.columns)
        for row in collected.rows:
            if row.architecture == architecture:
                shown.add_row(*kind.row(row))
        results.print(f"\n{architecture}, {name}", style="bold")
        results.print(shown)
    lacking = sum(bool(row.why) for row in collected.rows)
    rows = f"{len(collected.rows) - lacking} rows, and {lacking} without facts or wrong"
    results.print(f"{begun}{name}: {rows}: {collected.versions}")
    return lacking
