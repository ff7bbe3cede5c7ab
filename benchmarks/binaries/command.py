"""`python -m benchmarks binaries`: what the compilers make of vLLM's and AITER's Triton kernels beside ours."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click
from rich.console import Console

from benchmarks import PAGES

if TYPE_CHECKING:
    from benchmarks.binaries.results import Results

    Peers = dict[str, tuple[Path | None, SimpleNamespace]]
    """By name: the folder that was given, and what was loaded."""

PAGE = PAGES / "binaries-peers.md"
WIDTH = 180
"""Of a table that nobody's terminal bounds."""


@click.command()
@click.option("--arch", "architectures", metavar="A,B,...", help="All, if not given.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases of attention whose name holds this; all if not given.")
@click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
@click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
@click.option(
    "--page",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page and, beside it, the CSV file that it is made of; of a few main cases on three architectures, "
    "if nothing else is asked for.",
)
@click.option(
    "--check", is_flag=True, help=f"Compile nothing; exit 1 if the page, {PAGE} if not given, is not what its CSV file says."
)
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count(), help="Processes that compile; a core each.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
def binaries(
    architectures: str | None,
    only: tuple[str, ...],
    vllm: Path | None,
    aiter: Path | None,
    path: Path | None,
    check: bool,
    workers: int,
    json_file: Path | None,
) -> None:
    """Compile vLLM's and AITER's attention kernels beside ours, for GPUs that need not be here.

    Each kernel is compiled for what its wrapper would launch in the cases of `speed`: registers, spills, LDS, waves, matrix
    instructions. No GPU is needed, and nothing is run.
    """
    if check:
        _check(path or PAGE)
        return
    from attn_fuzz import outputs
    from attn_parity.console import notes
    from attn_parity.options import check_page_writable, check_writable, write_json

    from benchmarks.binaries import page

    chosen, names = _asked_for(architectures, only, of_the_page=path is not None and not (architectures or only))
    check_writable(json_file)
    if path is not None:
        check_page_writable(path)
    results, interrupted = _compiled(chosen, names, _peers(vllm, aiter), workers)
    _print(results)
    begun = "interrupted; so far: " if interrupted else ""
    failed = sum(row.facts is None for row in results.rows)
    made = ", ".join(f"{name} {known}" for name, known in results.versions.items())
    click.echo(f"{begun}{len(results.rows) - failed} compiled, {failed} not: {made}")
    if json_file:
        write_json(json_file, results.json())
    if interrupted:
        sys.exit(130)
    if path is not None:
        outputs.write(path.with_suffix(".csv"), results.csv())
        outputs.write(path, page.text(results))
        notes.print(f"{path} written")


def _asked_for(
    architectures: str | None, only: tuple[str, ...], *, of_the_page: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architectures, and names of cases."""
    from attn_parity.compile import chosen_architectures

    from benchmarks.binaries import page
    from benchmarks.speed.cases import CASES, Attention

    if of_the_page:
        return page.ARCHITECTURES, page.CASES
    chosen = chosen_architectures(architectures)
    cases = [case.name for case in CASES if isinstance(case, Attention)]
    names = tuple(name for name in cases if not only or any(text in name for text in only))
    if not names:
        raise click.BadParameter(f"no case of attention has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    return chosen, names


def _compiled(chosen: tuple[str, ...], names: tuple[str, ...], peers: "Peers", workers: int) -> "tuple[Results, bool]":
    """Every participant's launches in every case, and whether an interrupt left some out."""
    from attn_parity.binaries.build import in_processes
    from attn_parity.options import progress_bar, sigterm_interrupts
    from attn_parity.versions import version

    from benchmarks.binaries.launches import compiled_case
    from benchmarks.binaries.results import Results, Row
    from benchmarks.speed.participants import OURS

    folders = {OURS: None} | {whose: folder for whose, (folder, _) in peers.items()}
    jobs = [(architecture, name, *each) for architecture in chosen for name in names for each in folders.items()]
    with sigterm_interrupts(), progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(compiled_case, jobs, min(workers, len(jobs)), lambda done: show_bar(done, 0))
    rows: list[Row] = []
    for job in jobs:
        if isinstance(outcome := found.get(job, ()), str):
            outcome = (Row(*job[:3]).without(outcome),)
        rows += outcome
    shown = {row.whose for row in rows}
    versions = {whose: module.version for whose, (_, module) in peers.items() if whose in shown}
    return Results(triton=version("triton") or "", peers=versions, rows=tuple(rows)), interrupted


def _peers(vllm: Path | None, aiter: Path | None) -> "Peers":
    """The peers that are there."""
    from attn_parity.console import notes

    from benchmarks.speed.participants import AITER, VLLM
    from benchmarks.speed.peers import MissingPeerError, load_aiter, load_if_there, load_vllm

    found, missing = {}, []
    for whose, load, folder in ((VLLM, load_vllm, vllm), (AITER, load_aiter, aiter)):
        try:
            module = load_if_there(load, folder, missing.append)
        except MissingPeerError as error:
            raise click.UsageError(str(error)) from error
        if module is not None:
            found[whose] = (folder and folder.absolute(), module)
    if not found:
        raise click.UsageError(f"{'; '.join(missing)}. `attn-parity compile` is about our kernels alone")
    for line in missing:
        notes.print(line, soft_wrap=True)
    return found


def _print(results: "Results") -> None:
    from attn_parity.options import plain_table

    from benchmarks.binaries.results import COLUMNS, NUMBERS

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    for architecture in dict.fromkeys(row.architecture for row in results.rows):
        table = plain_table(*COLUMNS, right=NUMBERS)
        for row in results.rows:
            if row.architecture == architecture:
                table.add_row(*row.cells)
        console.print(f"\n{architecture}", style="bold")
        console.print(table)


def _check(path: Path) -> None:
    from benchmarks.binaries import page
    from benchmarks.binaries.results import read

    data = path.with_suffix(".csv")
    try:
        results = read(data)
    except ValueError as error:
        raise click.UsageError(f"{error}; python -m benchmarks binaries --page {path} writes it") from error
    if not path.is_file() or path.read_text(encoding="utf-8") != page.text(results):
        raise click.ClickException(f"{path} is not what {data} says; python -m benchmarks binaries --page {path} writes both")
