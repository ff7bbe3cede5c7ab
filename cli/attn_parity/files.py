"""Files that commands write: checked before the work starts, and written when it has ended."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from attn_fuzz import outputs
from attn_fuzz.errors import InputError
from attn_parity.console import notes


def check_writable(path: Path | None, option: str = "--json", made: Path | None = None) -> None:
    """Fail before the work if a file cannot be written. The file may lie in `made`, a folder that the command makes."""
    try:
        if path is not None and (made is None or made.exists() or path.resolve().parent != made.resolve()):
            outputs.check(path, option)
    except InputError as error:
        raise click.UsageError(str(error)) from None


def name_part(text: str) -> str:
    """The text as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", text)[:80]


def say_half(lines: outputs.Lines) -> None:
    """Print a note if a killed run had left half a line in a file."""
    if lines.half:
        notes.print(f"{lines.path}: half a line of a killed run is dropped: what it was about runs again", soft_wrap=True)


def write_json(path: Path, result: Mapping[str, object]) -> None:
    """Write a result as JSON. NaN and infinities become null: JSON has no such numbers."""
    try:
        outputs.write(path, json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise click.ClickException(f"--json: {path}: {error.strerror}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
