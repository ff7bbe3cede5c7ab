"""Launches that are saved and emulated once, a copy of them for each test, and what damages the copy."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from attn_binaries import run_folder
from attn_parity import main

NAME, WRITE = "merge, fp32", "cache write, int8 cache"
RANDOM = "gfx942-merge-fp32-random"
GONE = object()


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved launches: `code` with what the emulator made of it, and `write`."""
    from attn_binaries.build import build
    from attn_binaries.saving import save_binaries
    from attn_binaries.shipped_calls import chosen

    folder = tmp_path_factory.mktemp("saved")
    jobs = {"code": ("gfx942", NAME), "write": ("gfx942", WRITE)}
    built = build([*jobs.values()], 1)
    for name, job in jobs.items():
        (folder / name).mkdir()
        save_binaries(folder / name, {job: built.binaries[job]}, {"gfx942": chosen("gfx942")})
    with pytest.raises(SystemExit) as end:
        main(["emulate", str(folder / "code" / "launches.json"), "--workers", "1"])
    assert end.value.code == 0
    return folder


@pytest.fixture
def saved(emulated: Path, tmp_path: Path) -> Path:
    """A copy of `code`, with `write` beside it; `out` beside it has what another machine made of its launches: the same."""
    shutil.copytree(emulated, tmp_path, dirs_exist_ok=True)
    shutil.copytree(emulated / "code" / "emulated", tmp_path / "out")
    return tmp_path / "code"


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
