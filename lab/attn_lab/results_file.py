"""The JSON file of results beside docs/generated/zoo.md and docs/generated/mutants.md, a line for each mutant, and the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.text import one_line
from attn_parity.console import notes, results

Results = TypeVar("Results", bound=msgspec.Struct)


def dumps(found: Any) -> bytes:
    """Results as JSON. `found` is a Struct whose last field is `mutants`."""
    rows = [msgspec.json.encode(row) for row in found.mutants]
    head = msgspec.json.encode(found).removesuffix(b",".join(rows) + b"]}")
    return head + b"\n" + b",\n".join(rows) + b"\n]}\n"


def load(path: Path, kind: type[Results]) -> Results:
    """Read results from a file.

    Raises:
        MutantError: the file cannot be read, holds no results of this kind, or results of another schema.
    """
    try:
        return msgspec.convert(inputs.read_record(path, str(kind.__struct_config__.tag)), kind)
    except InputError as error:
        raise MutantError(str(error)) from None
    except msgspec.MsgspecError as error:
        raise MutantError(f"{path}: {one_line(str(error), inputs.MESSAGE)}") from None


def kept(page: Path, kind: type[Results], command: str) -> Results:
    """The results in the JSON file beside a page, from which the page is made.

    Args:
        command: which command writes both.

    Raises:
        click.ClickException: there is no such file.
        MutantError: it holds no such results.
    """
    data = page.with_suffix(".json")
    if not data.is_file():
        raise click.ClickException(f"--page: {data} does not exist; `python -m attn_lab {command} --write` writes it")
    return load(data, kind)


def write(page: Path, found: msgspec.Struct, text: str) -> None:
    """Write results into the JSON file beside a page, and the page."""
    outputs.write(page.with_suffix(".json"), dumps(found))
    outputs.write(page, text)
    notes.print(f"{page} written")


def checked(wrong: Sequence[str], summary: str) -> int:
    """Print what is wrong with a page, or the summary of a page with which nothing is, and return the exit code."""
    for line in wrong:
        results.print(line, soft_wrap=True)
    results.print(f"{len(wrong)} wrong" if wrong else summary, soft_wrap=True)
    return 1 if wrong else 0
