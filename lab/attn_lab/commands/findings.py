"""`python -m attn_lab findings`: scripts that show findings to their owners, and the table of findings."""

from pathlib import Path

import click
from attn_lab import pages
from attn_lab.findings import folders, page, scripts, speed
from attn_lab.findings.known import named
from attn_parity.console import results

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("findings")
def command() -> None:
    """Run the scripts of findings, write what their owners get, and the table of findings."""


@command.command("page")
def _page() -> None:
    """Write docs/generated/findings.md."""
    pages.write(page.PAGE, page.text())


@command.command("run")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def _run(names: tuple[str, ...]) -> None:
    """Run the scripts of all findings, or of these, on a CPU, which takes hours, and keep what they print in findings.json."""
    for name in scripts.run_all(names):
        results.print(name)


@command.command("speed")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def _speed(files: tuple[Path, ...]) -> None:
    """Write findings-speed.json: after how many examples each finding is met.

    FILES are the JSON of `attn-parity fuzz --keep-going` with several seeds, on a CPU.
    """
    speed.write(files)


@command.command("folders")
@click.argument("folder", type=_FOLDER)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def _folders(folder: Path, names: tuple[str, ...]) -> None:
    """Write into FOLDER, for each finding or for these, a folder that can be sent to the kernel's owner."""
    for line in folders.write(named(names), scripts.stored(), folder):
        results.print(line)


@command.command("check")
@click.argument("given", nargs=-1, required=True, metavar="FOLDER...", type=_FOLDER)
def _check(given: tuple[Path, ...]) -> int:
    """Run the script and the test of each finding in FOLDERs that `folders` wrote, on the package and with the patch.

    Exit 1 if one does not show the finding, or shows it with the patch, too.
    """
    failed = 0
    for name, found in (each for folder in given for each in folders.check_all(folder)):
        failed += not found.passed
        script, test = (" and ".join(map(str, codes)) for codes in (found.script, found.test))
        results.print(f"{name}: {'passed' if found.passed else 'FAILED'}, script {script}, test {test}")
    return min(failed, 1)
