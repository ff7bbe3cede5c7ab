"""`python -m benchmarks binaries`: what the compilers make of vLLM's and AITER's Triton kernels beside ours."""

import sys
from pathlib import Path

import click
from attn_parity.cpus import usable_cpus

from benchmarks import PAGES
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

PAGE = PAGES / "binaries-peers.md"


@click.command()
@click.option("--arch", "architectures", metavar="A,B,...", help="All, if not given.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases of attention whose name holds this; all if not given.")
@vllm_option
@aiter_option
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
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus(), help="Processes that compile; a core each.")
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
    from benchmarks.binaries import page, results

    if check:
        check_page(path or PAGE, results.read, page.text, "binaries")
        return
    from attn_parity.console import notes
    from attn_parity.options import check_page_writable, check_writable, write_json

    from benchmarks.binaries.launches import compiled_case

    chosen, names = _asked_for(architectures, only, of_the_page=path is not None and not (architectures or only))
    check_writable(json_file)
    if path is not None:
        check_page_writable(path, DATA)
    peers, missing = found_peers(vllm, aiter)
    if not peers:
        raise click.UsageError(f"{'; '.join(missing)}. `attn-parity compile` is about our kernels alone")
    for line in missing:
        notes.print(line, soft_wrap=True)
    found, interrupted = collected(compiled_case, results, chosen, names, peers, workers)
    print_tables(found.rows, lambda row: row.cells, results.COLUMNS, results.NUMBERS)
    begun = "interrupted; so far: " if interrupted else ""
    failed = sum(row.facts is None for row in found.rows)
    made = ", ".join(f"{name} {known}" for name, known in found.versions.items())
    click.echo(f"{begun}{len(found.rows) - failed} compiled, {failed} not: {made}")
    if json_file:
        write_json(json_file, found.json())
    if interrupted:
        sys.exit(130)
    if path is not None:
        write_page(path, found, page.text)


def _asked_for(
    architectures: str | None, only: tuple[str, ...], *, of_the_page: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architectures, and names of cases."""
    from attn_parity.compile import chosen_architectures

    from benchmarks.binaries import page
    from benchmarks.speed.cases import CASES, Attention

    if of_the_page:
        return page.ARCHITECTURES, page.CASES
    names = [case.name for case in CASES if isinstance(case, Attention)]
    return chosen_architectures(architectures), chosen_cases(names, only)
