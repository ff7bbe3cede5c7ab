"""Generated pages: where they are, and their tables. tests/docs/test_generated.py notices a page that is not current."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from attn_fuzz import outputs
from attn_parity.console import notes

PAGES = Path("docs/generated")
"""The folder in which commands write their pages, relative to the repository's root."""


def write(path: Path, text: str) -> None:
    """Write a page, and say so."""
    outputs.write(path, text)
    notes.print(f"{path} written")


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], numbers: Sequence[str] = ()) -> list[str]:
    """The lines of a table in Markdown. `numbers` are the columns that are aligned to the right."""
    rule = ["--:" if column in numbers else "---" for column in columns]
    return [f"| {' | '.join(map(_cell, row))} |" for row in (columns, rule, *rows)]


def _cell(value: object) -> str:
    return " ".join(str("" if value is None else value).replace("|", "\\|").split("\n"))
