"""`python -m benchmarks bounds`: what AMD's published rates let ours, vLLM's and AITER's kernels reach."""

import functools
import sys
from pathlib import Path

import click
from attn_parity.cpus import usable_cpus

from benchmarks import PAGES
from benchmarks.bounds.rates import RATED
from benchmarks.side_by_side import (
    DATA,
    aiter_option,
    check_page,
    chosen_cases,
    collected,
    found_peers,
    print_tables,
    vllm_option,
    write_page,
)

PAGE = PAGES / "bounds.md"
NUMBER, SEED = 40, 20261210
"""Of the cases of the page."""


@click.command()
@click.option("--drawn", "number", type=click.IntRange(min=1), default=NUMBER, show_default=True, help="So many drawn cases.")
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True, help="Of the drawn cases.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@vllm_option
@aiter_option
@click.option(
    "--page", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write a page, and the CSV file that it is made of."
)
@click.option(
    "--check",
    is_flag=True,
    help=f"Compile nothing; exit 1 if {PAGE}, or the page that is given, is not what its CSV file says.",
)
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus(), help="Processes that compile; a core each.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
def bounds(
    number: int,
    seed: int,
    only: tuple[str, ...],
    vllm: Path | None,
    aiter: Path | None,
    path: Path | None,
    check: bool,
    workers: int,
    json_file: Path | None,
) -> None:
    """Count what a turn of each kernel's hot loop takes on gfx942 by AMD's published rates, and what it can reach.

    Kernels are compiled for drawn cases of `speed --drawn`, as their wrappers would launch them. No GPU is needed, and nothing
    is run: this is arithmetic.
    """
    from benchmarks.bounds import page, results

    if check:
        check_page(path or PAGE, results.read, page.text, "bounds")
        return
    from attn_parity.console import notes
    from attn_parity.options import check_page_writable, check_writable, write_json

    from benchmarks.bounds.launches import bounded_case
    from benchmarks.speed.drawn import draw_cases

    if path is not None and ((number, seed) != (NUMBER, SEED) or only):
        raise click.UsageError(f"a page is of all cases of --drawn {NUMBER} --seed {SEED}")
    names = chosen_cases([case.name for case in draw_cases(number, seed)], only)
    check_writable(json_file)
    if path is not None:
        check_page_writable(path, DATA)
    peers, missing = found_peers(vllm, aiter)
    for line in missing:
        notes.print(line, soft_wrap=True)
    of_case = functools.partial(bounded_case, number, seed)
    found, interrupted = collected(of_case, results, RATED, names, peers, workers)
    print_tables(found.rows, page.cells, page.COLUMNS, page.NUMBERS)
    without = sum(row.turn is None for row in found.rows)
    made = ", ".join(f"{name} {known}" for name, known in found.versions.items())
    begun = "interrupted; so far: " if interrupted else ""
    click.echo(f"{begun}{len(found.rows) - without} loops, {without} without: {made}")
    if json_file:
        write_json(json_file, found.json())
    if interrupted:
        sys.exit(130)
    if path is not None:
        write_page(path, found, page.text)
