"""`python -m attn_lab findings`: scripts that show findings to their owners, and the table of findings."""

from collections.abc import Sequence
from pathlib import Path

import click
from attn_lab.findings import folders as folders_of
from attn_lab.findings import page, scripts
from attn_lab.options import check_option
from attn_lab.pages import write_or_check
from attn_parity.console import results


def _check(folders: Sequence[Path]) -> int:
    failed = 0
    for name, found in (each for folder in folders for each in folders_of.check_all(folder)):
        failed += not found.passed
        script, test = (" and ".join(map(str, codes)) for codes in (found.script, found.test))
        results.print(f"{name}: {'passed' if found.passed else 'FAILED'}, script {script}, test {test}", soft_wrap=True)
    return min(failed, 1)


_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("findings")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--run", "runs", is_flag=True, help="Run the scripts of all findings first, or of these, on a CPU: hours.")
@click.option("--write", "folder", type=_FOLDER, help="Write no page. Write here, for each finding, a folder that can be sent.")
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
def command(
    names: tuple[str, ...], runs: bool, folder: Path | None, repaired: Path | None, speed: tuple[Path, ...], check: bool
) -> int:
    """Write docs/generated/findings.md.

    `--check FOLDER` runs the script and the test of each finding in a folder of --write, on the package and with the patch.
    """
    if folder:
        for line in page.write(folder, names):
            results.print(line, soft_wrap=True, markup=False)
        return 0
    if check and names:
        return _check([Path(name) for name in names])
    if repaired:
        results.print(f"repaired: {', '.join(scripts.all_repaired(repaired))}", soft_wrap=True)
        return 0
    if names and not runs:
        raise click.UsageError("names go with --run, --write FOLDER or --check")
    if runs:
        scripts.run_all(names)
    if speed:
        page.write_speed(speed)
    return write_or_check({page.PAGE: page.table()}, "python -m attn_lab findings", checks=check)
