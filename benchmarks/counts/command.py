"""`python -m benchmarks counts`: what our launches execute on the emulator, beside vLLM's and AITER's."""

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

PAGE = PAGES / "counts.md"
ARCHITECTURES = "gfx942,gfx1201"


@click.command()
@click.option("--arch", "architectures", default=ARCHITECTURES, show_default=True, metavar="A,B,...", help="AMD's.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@vllm_option
@aiter_option
@click.option(
    "--page",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page and, beside it, the CSV file that it is made of.",
)
@click.option(
    "--check", is_flag=True, help=f"Run nothing; exit 1 if the page, {PAGE} if not given, is not what its CSV file says."
)
@click.option("--workers", type=click.IntRange(min=1), default=usable_cpus(), help="Processes that run launches; a core each.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
def counts(
    architectures: str,
    only: tuple[str, ...],
    vllm: Path | None,
    aiter: Path | None,
    path: Path | None,
    check: bool,
    workers: int,
    json_file: Path | None,
) -> None:
    """Count what attention kernels execute on the emulator: ours, and vLLM's and AITER's where they are.

    Instructions by class, multiply-adds, lines of memory, conflicts of LDS banks. These are counts and no times. No GPU is
    needed. Exit 1 if a participant's output is wrong.
    """
    from benchmarks.counts import page, results

    if check:
        check_page(path or PAGE, results.read, page.text, "counts")
        return
    from attn_parity.compile import chosen_architectures
    from attn_parity.console import notes
    from attn_parity.options import check_page_writable, check_writable, write_json

    from benchmarks.counts.cases import CASES
    from benchmarks.counts.launches import counted_case

    chosen = chosen_architectures(architectures)
    if others := [name for name in chosen if not name.startswith("gfx")]:
        raise click.BadParameter(f"got {', '.join(others)}, and there is an emulator for AMD's alone", param_hint="--arch")
    names = chosen_cases([case.name for case in CASES], only)
    check_writable(json_file)
    if path is not None:
        check_page_writable(path, DATA)
    peers, missing = found_peers(vllm, aiter)
    for line in missing:
        notes.print(line, soft_wrap=True)
    found, interrupted = collected(counted_case, results, chosen, names, peers, workers)
    print_tables(found.rows, page.cells, page.COLUMNS, page.NUMBERS)
    begun = "interrupted; so far: " if interrupted else ""
    wrong = sum(bool(row.why) for row in found.rows)
    made = ", ".join(f"{name} {known}" for name, known in found.versions.items())
    click.echo(f"{begun}{len(found.rows) - wrong} counted, {wrong} not counted or wrong: {made}")
    if json_file:
        write_json(json_file, found.json())
    if interrupted:
        sys.exit(130)
    if path is not None:
        write_page(path, found, page.text)
    sys.exit(bool(wrong))
