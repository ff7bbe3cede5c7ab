"""Launches that are saved and emulated once, and a copy of them for each test."""

import shutil
from pathlib import Path

import pytest
from attn_parity import main

from tests.support.saved_launches import NAME, WRITE


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
