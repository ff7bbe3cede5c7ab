"""Saved launches: `compile --save` wrote them, and `emulate` ran them. Tests damage copies of them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from attn_binaries import run_folder

NAME, WRITE = "merge, fp32", "cache write, int8 cache"
RANDOM = "gfx942-merge-fp32-random"
GONE = object()


def change(folder: Path, changes: Mapping[str, object]) -> None:
    """Change fields of the first launch of launches.json: `a.b.0` leads to them, and a comma stands for a point in a name."""
    written = json.loads((folder / "launches.json").read_text())
    for path, value in changes.items():
        where, *names = written["launches"][0], *path.split(".")
        keys = [int(name) if re.fullmatch(r"-?\d+", name) else name.replace(",", ".") for name in names]
        for key in keys[:-1]:
            where = where[key]
        if value is GONE:
            del where[keys[-1]]
        elif callable(value):
            value(where[keys[-1]])
        else:
            where[keys[-1]] = value
    (folder / "launches.json").write_text(json.dumps(written))


def replace_instruction(saved: Path, new: str, old: str) -> None:
    """Put another instruction in the place of an old one of the saved launch."""
    path = saved / "gfx942-merge-fp32.s"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    digest = run_folder.digest(np.frombuffer(path.read_bytes(), np.uint8))
    change(saved, {"sha256.assembly": digest})
