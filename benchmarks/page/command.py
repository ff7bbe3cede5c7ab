"""`python -m benchmarks page`: the page of what `speed` and `host` measured, and that of what `peers` found."""

from pathlib import Path

import click
from attn_lab.options import check_option


@click.command("page")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@check_option
def command(files: tuple[Path, ...], check: bool) -> int:
    """Write docs/generated/performance.md of the runs that performance.json keeps, and of FILES of `speed` and `host`.

    Of a run on drawn cases, and of one of other cases, the newest of each machine is kept. And write peers.md of the CSV files
    of `peers --write`.
    """
    from attn_lab.pages import write_or_check

    from benchmarks.page import performance, tables
    from benchmarks.peers import page as peers_page

    runs = performance.read(tables.DATA)
    for path in files:
        runs = performance.with_run(runs, path)
    texts = {tables.DATA: performance.text(runs), tables.PAGE: tables.text(runs), **peers_page.texts()}
    return write_or_check(texts, "python -m benchmarks page", checks=check)
