"""Twenty lines that use a rule, a layout or a setting, drawn by a seed: without any of them ruff or the quick tests are red.

`python -m tests.removed_lines 78 20` has drawn them. Where one no longer applies, all are drawn anew.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIFFS = sorted((ROOT / "tests" / "removed_lines").glob("*.diff"))
COPIED = ("contract", "reference", "optimized", "emulated", "fuzz", "binaries", "cli", "plugins", "lab", "tests")
QUICK = (
    *("tests/test_results.py", "tests/test_rule_parts.py", "tests/test_rule_effects.py", "tests/test_silence.py"),
    *(
        "tests/contract",
        "tests/reference",
        "tests/fuzz/verdict/test_properties.py",
        "tests/fuzz/cases",
        "tests/fuzz/strategies",
    ),
    *("tests/ops", "tests/fuzz/explain", "tests/optimized"),
)
RED = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR)


@pytest.mark.nightly
@pytest.mark.parametrize("diff", DIFFS, ids=lambda path: path.stem)
def test_quick_tests_miss_the_line(diff, tmp_path):
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["git", "apply", "--unsafe-paths", str(diff)], cwd=tmp_path, check=True)
    paths = os.pathsep.join(str(tmp_path / name) for name in COPIED if name != "tests")
    if subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "F,E9"], cwd=tmp_path, check=False
    ).returncode:
        return
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *QUICK]
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    # below 0: the process has died of a signal
    assert run.returncode in RED or run.returncode < 0, run.stdout[-2000:]
