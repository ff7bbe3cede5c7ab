"""`python -m benchmarks page`: the page of what `speed` and `host` measured."""

from pathlib import Path

import click


@click.command("page")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the page is not what its file makes.")
def command(files: tuple[Path, ...], check: bool) -> int:
    """Write docs/generated/performance.md of the runs that performance.json keeps, and of FILES of `speed` and `host`.

    Of a run on drawn cases, and of one of other cases, the newest of each machine is kept.
    """
    from attn_lab.pages import write_or_check

    from benchmarks.page import performance, tables

    runs = performance.read(tables.DATA)
    for path in files:
        runs = performance.with_run(runs, path)
    texts = {tables.DATA: performance.text(runs), tables.PAGE: tables.text(runs)}
    return write_or_check(texts, "python -m benchmarks page", checks=check)
