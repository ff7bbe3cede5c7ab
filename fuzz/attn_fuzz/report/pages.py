"""Pages of docs/generated: tables, and whether files are what their results make of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attn_fuzz import outputs


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], numbers: Sequence[str] = ()) -> list[str]:
    """The lines of a table in Markdown. `numbers` are the columns that are aligned to the right."""
    rule = ["--:" if column in numbers else "---" for column in columns]
    return [f"| {' | '.join(map(_cell, row))} |" for row in (columns, rule, *rows)]


def _cell(value: object) -> str:
    return " ".join(str("" if value is None else value).replace("|", "\\|").split("\n"))


def settled(texts: Mapping[Path, str], *, check: bool) -> list[Path]:
    """The files whose text is another one. They are written, unless `check` says that nothing is."""
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in () if check else stale:
        outputs.write(path, texts[path])
    return stale
