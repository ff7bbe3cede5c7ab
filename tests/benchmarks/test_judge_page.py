"""docs/generated/judge-measured.md is what its files make; one that is not is noticed."""

import os
import shutil
import subprocess
from pathlib import Path

from tests import processes
from tests.processes import ROOT


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return processes.run(["-m", "benchmarks.judge", "page", "--check"], cwd=folder, env=environment)


def test_a_changed_number_is_not_current(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    assert check(tmp_path).returncode == 0
    pages = tmp_path / "docs" / "generated"
    page = pages / "judge-measured.md"
    page.write_text(page.read_text().replace("5000 examples", "5001 examples", 1))
    ended = check(tmp_path)
    assert ended.returncode == 1
    assert "docs/generated/judge-measured.md is not current" in ended.stdout
