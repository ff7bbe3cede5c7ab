"""What commands share that put each participant's launches of each case side by side, for GPUs that need not be here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
from rich.console import Console

Peers = dict[str, tuple[Path | None, SimpleNamespace]]
"""By name: the folder that was given, and what was loaded."""

DATA = ".csv"
"""The suffix of the file beside a page that the page is made of."""
WIDTH = 180
"""Of a table that nobody's terminal bounds."""

vllm_option = click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
aiter_option = click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Of Triton, and of each peer that has rows, by what `Row.whose` calls it."""

    triton: str
    peers: Mapping[str, str]

    @property
    def versions(self) -> dict[str, str]:
        """Of Triton and of the peers, as people call them."""
        return {"Triton": self.triton} | {whose.removesuffix(" Triton"): version for whose, version in self.peers.items()}


def versions_of(records: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The fields of Versions, read from the lines of a CSV file, of which there is one."""
    return {
        "triton": records[0]["triton"],
        "peers": {record["whose"]: record["version"] for record in records if record["version"]},
    }


def chosen_cases(names: Sequence[str], only: Sequence[str]) -> tuple[str, ...]:
    """The names that hold one of these texts; all if no text is given."""
    chosen = tuple(name for name in names if not only or any(text in name for text in only))
    if not chosen:
        raise click.BadParameter(f"no case of attention has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    return chosen


def found_peers(vllm: Path | None, aiter: Path | None) -> tuple[Peers, list[str]]:
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


def collected(
    of_case: Callable[..., Any], results: ModuleType, chosen: Sequence[str], names: Sequence[str], peers: Peers, workers: int
) -> tuple[Any, bool]:
    """The results of every participant's launches in every case, and whether an interrupt left some out.

    Args:
        of_case: returns rows for an architecture, a case, a participant and its folder, in a process of its own.
        results: the module that defines Row and Results.
        chosen: architectures.
        names: of cases.
    """
    from attn_parity.binaries.build import in_processes
    from attn_parity.options import progress_bar, sigterm_interrupts
    from attn_parity.versions import version

    from benchmarks.speed.participants import OURS

    folders = {OURS: None} | {whose: folder for whose, (folder, _) in peers.items()}
    jobs = [(architecture, name, *each) for architecture in chosen for name in names for each in folders.items()]
    with sigterm_interrupts(), progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(of_case, jobs, min(workers, len(jobs)), lambda found: show_bar(len(found), 0))
    rows = []
    for job in jobs:
        if isinstance(outcome := found.get(job, ()), str):
            outcome = (results.Row(*job[:3]).without(outcome),)
        rows += outcome
    shown = {row.whose for row in rows}
    versions = {whose: module.version for whose, (_, module) in peers.items() if whose in shown}
    return results.Results(triton=version("triton") or "", peers=versions, rows=tuple(rows)), interrupted


def print_tables(
    rows: Sequence[Any], cells: Callable[[Any], Sequence[str]], columns: tuple[str, ...], numbers: tuple[str, ...]
) -> None:
    """A table of each architecture's rows."""
    from attn_parity.options import plain_table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    for architecture in dict.fromkeys(row.architecture for row in rows):
        table = plain_table(*columns, right=numbers)
        for row in rows:
            if row.architecture == architecture:
                table.add_row(*cells(row))
        console.print(f"\n{architecture}", style="bold")
        console.print(table)


def page_text(
    preface: str,
    results: Any,
    cells: Callable[[Any], Sequence[str]],
    columns: tuple[str, ...],
    numbers: tuple[str, ...],
) -> str:
    """A page: a preface, in which `{versions}` stands for what was measured, and a table of each architecture's rows."""
    lines = preface.format(versions=", ".join(f"{name} {version}" for name, version in results.versions.items())).splitlines()
    rules = ["--:" if name in numbers else "---" for name in columns]
    for architecture in dict.fromkeys(row.architecture for row in results.rows):
        lines += ["", f"## {architecture}", "", _line(columns), _line(rules)]
        lines += [_line(cells(row)) for row in results.rows if row.architecture == architecture]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def write_page(path: Path, results: Any, text: Callable[[Any], str]) -> None:
    """Write a page, and beside it the CSV file that it is made of."""
    from attn_fuzz import outputs
    from attn_parity.console import notes

    outputs.write(path.with_suffix(DATA), results.csv())
    outputs.write(path, text(results))
    notes.print(f"{path} written")


def check_page(path: Path, read: Callable[[Path], Any], text: Callable[[Any], str], command: str) -> None:
    """
    Raises:
        click.ClickException: the page is not what the CSV file beside it says.
    """
    data = path.with_suffix(DATA)
    try:
        results = read(data)
    except ValueError as error:
        raise click.UsageError(f"{error}; python -m benchmarks {command} --page {path} writes it") from error
    if not path.is_file() or path.read_text(encoding="utf-8") != text(results):
        raise click.ClickException(f"{path} is not what {data} says; python -m benchmarks {command} --page {path} writes both")
