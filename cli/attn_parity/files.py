"""Files that commands write: checked before the work starts, and written when it has ended."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from attn_fuzz import outputs
from attn_fuzz.errors import InputError


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


def write_json(path: Path, result: object) -> None:
    """Write a result as JSON. A dataclass is an object. NaN and infinities become null: JSON has no such numbers."""
    try:
        outputs.write(path, json.dumps(_plain(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise click.ClickException(f"--json: {path}: {error.strerror}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
