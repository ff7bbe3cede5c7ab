"""`python -m attn_lab findings`: scripts that show findings to their owners, and the page made of what they print."""

from pathlib import Path

import click
from attn_fuzz import outputs
from attn_lab import written
from attn_lab.findings import page, scripts
from attn_parity.console import results
from attn_parity.options import check_option


@click.command("findings")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--run", "runs", is_flag=True, help="Run the scripts of all findings first, or of these, on a CPU: hours.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write no page. Write here what owners of kernels are given of all findings, or of these: a text, and its script.",
)
@click.option(
    "--mended",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write no page. Write the sources of the findings' packages here, with each finding mended that has a mend.",
)
@click.option(
    "--speed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Write findings-speed.json first: after how many examples each finding is met. The JSON of runs of several seeds.",
)
@check_option
def command(
    names: tuple[str, ...], runs: bool, folder: Path | None, mended: Path | None, speed: tuple[Path, ...], check: bool
) -> int:
    """Write docs/generated/findings.md, or what owners are given."""
    if mended:
        results.print(f"mended: {', '.join(scripts.all_mended(mended))}", soft_wrap=True)
        return 0
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in page.of_owners(names).items():
            outputs.write(folder / name, text)
        return 0
    if names and not runs:
        raise click.UsageError("names are those of findings to write or of scripts to run: they need --folder or --run")
    if runs:
        scripts.run_all(names)
    if speed:
        page.write_speed(speed)
    return written.settle({page.PAGE: page.text()}, "python -m attn_lab findings", checks=check)
