"""docs/generated/judge-measured.md is what its files make; one that is not is noticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.judge", "page", "--check"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_changed_number_or_picture_is_not_current(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    assert check(tmp_path).returncode == 0
    pages = tmp_path / "docs" / "generated"
    page, picture = pages / "judge-measured.md", pages / "judge" / "cpu.svg"
    page.write_text(page.read_text().replace("5000 examples", "5001 examples", 1))
    picture.unlink()
    ended = check(tmp_path)
    assert ended.returncode == 1
    assert "not current: docs/generated/judge-measured.md, docs/generated/judge/cpu.svg;" in ended.stderr
