"""What the commands about mutants share: which of the known bugs are asked for, and pages with their JSON files beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from attn_fuzz.patches.mutant import MutantError
from attn_lab import results_file
from attn_lab.zoo.known_bugs import KnownBug
from attn_parity.console import results

Results = TypeVar("Results", bound=msgspec.Struct)


def chosen(everybody: Sequence[KnownBug], only: Sequence[str]) -> list[KnownBug]:
    """The bugs with these names; all if no name is given.

    Raises:
        MutantError: there is no bug of a name.
    """
    names = [mutant.name for mutant in everybody]
    if unknown := sorted(set(only) - set(names)):
        raise MutantError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    return [mutant for mutant in everybody if not only or mutant.name in only]


def data_of(page: Path, key: str = "") -> Path:
    """The JSON file of results of a page: beside it, under its name. A page may have further ones, each with a key."""
    return page.with_name(f"{page.stem}-{key}.json" if key else f"{page.stem}.json")


def kept(page: Path, kind: type[Results], command: str) -> dict[Path, Results]:
    """The results in the JSON files beside a page, from which the page is made; those without a key first.

    Args:
        command: which command of attn_lab writes both.

    Raises:
        click.ClickException: there is no such file.
        MutantError: it holds no such results.
    """
    files = [data_of(page), *sorted(page.parent.glob(f"{page.stem}-*.json"))]
    found = {file: results_file.load(file, kind) for file in files if file.is_file()}
    if not found:
        again = f"`python -m attn_lab {command} --write` writes it"
        raise click.ClickException(f"--page: {data_of(page)} does not exist; {again}")
    return found


def checked(wrong: Sequence[str], summary: str) -> int:
    """Print what is wrong with a page, or the summary of a page with which nothing is, and return the exit code."""
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong" if wrong else summary, soft_wrap=True)
    return 1 if wrong else 0
