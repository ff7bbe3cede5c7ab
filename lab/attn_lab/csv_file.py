"""Results as CSV, a line for each. The first cell also names the versions they were made with: `launch (Triton 3.9.0)`.

The first columns of a file, its keys, are never empty: a line whose first keys are empty has those of the line before it.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.text import printable


def save(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], versions: Mapping[str, str], keys: int = 1
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"{columns[0]} ({', '.join(map(' '.join, versions.items()))})", *columns[1:]])
    last: Sequence[str] = [""] * keys
    for row in rows:
        cells = [printable("" if cell is None else str(cell), kept="\n") for cell in row]
        same = next((index for index in range(keys) if cells[index] != last[index]), keys)
        writer.writerow([""] * same + cells[same:])
        last = cells
    outputs.write(path, text.getvalue())


def load(path: Path, columns: Sequence[str], keys: int = 1) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The versions, and the lines, each as a dict by column.

    Raises:
        InputError: the file is missing, or has other columns.
    """
    head, *lines = [*csv.reader(io.StringIO(inputs.read_text(path)))] or [[""]]
    first = re.fullmatch(rf"{columns[0]} \((.+)\)", head[0])
    if first is None or head[1:] != list(columns[1:]) or any(len(line) != len(columns) for line in lines):
        raise InputError(f"{path}: expected lines of {', '.join(columns)}, and versions in the first cell")
    for line, before in zip(lines[1:], lines, strict=False):
        same = next((index for index in range(keys) if line[index]), keys)
        line[:same] = before[:same]
    named = (each.rpartition(" ") for each in first[1].split(", "))
    return {name: version for name, _, version in named}, [dict(zip(columns, line, strict=True)) for line in lines]
