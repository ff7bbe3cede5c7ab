"""`python -m attn_lab findings`: scripts that show findings to their owners, and the table of findings."""

from pathlib import Path

import click
from attn_lab import written
from attn_lab.findings import page, scripts
from attn_lab.options import check_option
from attn_parity.console import results


@click.command("findings")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--run", "runs", is_flag=True, help="Run the scripts of all findings first, or of these, on a CPU: hours.")
@click.option(
    "--repaired",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write no page. Write the sources of the findings' packages here, with each finding repaired that has a repair.",
)
@click.option(
    "--speed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Write speed.json first: after how many examples each finding is met. The JSON of runs of several seeds.",
)
@check_option
def command(names: tuple[str, ...], runs: bool, repaired: Path | None, speed: tuple[Path, ...], check: bool) -> int:
    """Write docs/generated/findings.md. With a NAME, print instead what the owner of its kernel is told."""
    if repaired:
        results.print(f"repaired: {', '.join(scripts.all_repaired(repaired))}", soft_wrap=True)
        return 0
    if names and not runs:
        for name in names:
            results.print(page.of_finding(name), soft_wrap=True, markup=False)
        return 0
    if runs:
        scripts.run_all(names)
    if speed:
        page.write_speed(speed)
    return written.settle({page.PAGE: page.table()}, "python -m attn_lab findings", checks=check)
