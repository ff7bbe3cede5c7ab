"""Generated pages: where they are, their tables, and whether they are current."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attn_fuzz import inputs, outputs
from attn_parity.console import notes, results

PAGES = Path("docs/generated")
"""The folder in which commands write their pages, relative to the repository's root."""


def write_or_check(texts: Mapping[Path, str], again: str, *, checks: bool) -> int:
    """Write the files that are not current. With `checks`, name them instead.

    Args:
        again: the command that writes them.

    Returns:
        The exit code: 1 if `checks`, and one is not current.
    """
    wrong = [path for path, text in texts.items() if not path.is_file() or inputs.read_text(path) != text]
    for path in wrong:
        if checks:
            results.print(f"{path} is not current: run `{again}`")
        else:
            outputs.write(path, texts[path])
            notes.print(f"{path} written")
    return int(checks and bool(wrong))


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], numbers: Sequence[str] = ()) -> list[str]:
    """The lines of a table in Markdown. `numbers` are the columns that are aligned to the right."""
    rule = ["--:" if column in numbers else "---" for column in columns]
    return [f"| {' | '.join(map(_cell, row))} |" for row in (columns, rule, *rows)]


def _cell(value: object) -> str:
    return " ".join(str("" if value is None else value).replace("|", "\\|").split("\n"))
