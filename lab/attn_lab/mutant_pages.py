"""What the commands about mutants share: which of the known bugs are asked for, and pages with their JSON files beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from attn_fuzz import outputs
from attn_fuzz.patches.mutant import MutantError
from attn_lab import results_file
from attn_lab.zoo.known_bugs import KnownBug
from attn_parity.console import notes, results

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


def kept(page: Path, kind: type[Results], command: str) -> Results:
    """The results in the JSON file beside a page, from which the page is made.

    Args:
        command: which `attn-parity` command writes both.

    Raises:
        click.ClickException: there is no such file.
        MutantError: it holds no such results.
    """
    data = page.with_suffix(".json")
    if not data.is_file():
        raise click.ClickException(f"--page: {data} does not exist; `attn-parity {command} --write` writes it")
    return results_file.load(data, kind)


def write(page: Path, found: msgspec.Struct, text: str) -> None:
    """Write results into the JSON file beside a page, and the page."""
    outputs.write(page.with_suffix(".json"), results_file.dumps(found))
    outputs.write(page, text)
    notes.print(f"{page} written")


def checked(wrong: Sequence[str], summary: str) -> int:
    """Print what is wrong with a page, or the summary of a page with which nothing is, and return the exit code."""
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong" if wrong else summary, soft_wrap=True)
    return 1 if wrong else 0
