"""`python -m benchmarks peers`: launches of vLLM's and AITER's Triton kernels beside ours, for GPUs that need not be here."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import click
from attn_lab.pages import PAGES
from attn_parity.options import cpu_workers_option
from rich.console import Console

from benchmarks.options import aiter_option, vllm_option

PAGE, FOLDER = PAGES / "peers.md", PAGES / "peers"
Peers = dict[str, tuple[Path | None, SimpleNamespace]]
"""The folder given for each peer, and the kernels loaded from it."""
WIDTH = 180
"""Columns of a table, whatever the terminal has."""


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(["binaries", "counts", "bounds"]))
@click.option("--arch", "architectures", metavar="A,B,...", help="Architectures; default: those of the page.")
@click.option(
    "--only", multiple=True, metavar="TEXT", help="Only cases whose name contains TEXT; repeatable. Default: those of the page."
)
@click.option("--drawn", "number", type=click.IntRange(min=1), help="Instead, this number of cases of `speed --drawn`.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of the drawn cases.")
@vllm_option
@aiter_option
@click.option("--write", is_flag=True, help=f"Write {PAGE}, and the CSV files that it is made of.")
@click.option("--check", is_flag=True, help="Compile nothing; exit 1 if the page is not what its CSV files say.")
@cpu_workers_option
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows of one kind into this file."
)
def peers(
    kinds: tuple[str, ...],
    architectures: str | None,
    only: tuple[str, ...],
    number: int | None,
    seed: int,
    vllm: Path | None,
    aiter: Path | None,
    write: bool,
    check: bool,
    workers: int,
    json_file: Path | None,
) -> None:
    """Put vLLM's and AITER's launches beside ours, as their wrappers would make them: all kinds of facts, or some.

    binaries: registers, spills, LDS, waves, matrix instructions. counts: what AMD's code executes on the emulator in small
    cases; these are no times, and the exit code is 1 if a participant's output is wrong. bounds: what a turn of the hot loop
    takes on gfx942 by AMD's published rates, in drawn cases; this is arithmetic. No GPU is needed.
    """
    from attn_parity.files import check_writable, write_json

    from benchmarks.peers.tables import KINDS

    if check:
        sys.exit(_settle(check=True))
    if write and (architectures or only or number):
        raise click.UsageError("--write: the page is of its own cases: leave out --arch, --only and --drawn")
    if json_file and len(kinds) != 1:
        raise click.UsageError("--json: expected one kind of facts")
    check_writable(json_file)
    for kind in KINDS if write else ():
        check_writable(FOLDER / f"{kind}.csv", "--write")
    found, missing = _found_peers(vllm, aiter)
    for line in missing:
        click.echo(line, err=True)
    is_wrong = False
    for kind in kinds or KINDS:
        results, interrupted = _collected(kind, architectures, only, number, seed, found, workers)
        _print(kind, results)
        lacking = sum(bool(row.why) for row in results.rows)
        is_wrong |= kind == "counts" and bool(lacking)
        begun = "interrupted; so far: " if interrupted else ""
        click.echo(
            f"{begun}{kind}: {len(results.rows) - lacking} rows, and {lacking} without facts or wrong: {results.versions}"
        )
        if json_file:
            write_json(json_file, results.json())
        if interrupted:
            sys.exit(130)
        if write:
            results.save(FOLDER / f"{kind}.csv", KINDS[kind].facts)
    if write:
        _settle(check=False)
    sys.exit(is_wrong)


def _settle(*, check: bool) -> int:
    from attn_fuzz.errors import InputError
    from attn_lab.pages import write_or_check

    from benchmarks.peers import tables
    from benchmarks.peers.results import read

    try:
        found = {name: read(FOLDER / f"{name}.csv", kind.facts) for name, kind in tables.KINDS.items()}
    except InputError as error:
        raise click.UsageError(f"{error}; python -m benchmarks peers --write writes it") from error
    return write_or_check({PAGE: tables.page(found)}, "python -m benchmarks peers --write", checks=check)


def _found_peers(vllm: Path | None, aiter: Path | None) -> tuple[Peers, list[str]]:
    """The peers that are there, and why others are not."""
    from benchmarks.speed.participants import AITER, VLLM
    from benchmarks.speed.peers import MissingPeerError, load_aiter, load_if_there, load_vllm

    found: Peers = {}
    missing: list[str] = []
    for whose, load, folder in ((VLLM, load_vllm, vllm), (AITER, load_aiter, aiter)):
        try:
            module = load_if_there(load, folder, missing.append)
        except MissingPeerError as error:
            raise click.UsageError(str(error)) from error
        if module is not None:
            found[whose] = (folder and folder.absolute(), module)
    return found, missing


def _collected(
    kind: str, architectures: str | None, only: Sequence[str], number: int | None, seed: int, peers: Peers, workers: int
):
    """The results of every participant's launches in every case, and whether an interrupt left some out."""
    from attn_parity.binaries.build import in_processes
    from attn_parity.console import progress_bar
    from attn_parity.launches import chosen_architectures
    from attn_parity.signals import sigterm_interrupts
    from attn_parity.versions import version

    from benchmarks.peers import tables
    from benchmarks.peers.launches import rows_of
    from benchmarks.peers.results import Results, Row
    from benchmarks.speed.participants import OURS
    from benchmarks.timed import cases_named

    of_kind = tables.KINDS[kind]
    chosen = chosen_architectures(architectures) if architectures else of_kind.architectures
    if others := [name for name in chosen if kind != "binaries" and not name.startswith("gfx")]:
        raise click.BadParameter(f"got {', '.join(others)}, and {kind} are of AMD's alone", param_hint="--arch")
    cases = tables.drawn(number, seed) if number else of_kind.cases
    named = [case.name for case in cases_named(list(cases.values()), only)]
    if not (only or number) and of_kind.on_the_page:
        named = [name for name in named if name in of_kind.on_the_page]
    folders = {OURS: None} | {whose: folder for whose, (folder, _) in peers.items()}
    jobs = [(architecture, name, *each) for architecture in chosen for name in named for each in folders.items()]
    work = functools.partial(rows_of, kind, {name: cases[name] for name in named})
    with sigterm_interrupts(), progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(work, jobs, min(workers, len(jobs)), lambda found: show_bar(len(found), 0))
    rows: list[Row] = []
    for job in jobs:
        outcome = found.get(job, [])
        rows += [Row(*job[:3]).without(outcome)] if isinstance(outcome, str) else outcome
    shown = {row.whose for row in rows}
    versions = {whose: module.version for whose, (_, module) in peers.items() if whose in shown}
    return Results(version("triton") or "", versions, tuple(rows)), interrupted


def _print(kind: str, results) -> None:
    """A table of each architecture's rows."""
    from attn_parity.console import plain_table

    from benchmarks.peers import tables

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    columns = tables.KINDS[kind].columns
    for architecture in dict.fromkeys(row.architecture for row in results.rows):
        shown = plain_table("case", "whose", "kernel", *columns, right=columns)
        for row in results.rows:
            if row.architecture == architecture:
                shown.add_row(*tables.cells(tables.KINDS[kind], row))
        console.print(f"\n{architecture}, {kind}", style="bold")
        console.print(shown)
