"""A line that is lost and leaves a name undefined, or a value unused, is seen without a call of its function."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("contract", "reference", "optimized", "fuzz")


def test_no_name_is_undefined_and_no_value_unused():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "F,ARG,E9", "--output-format", "concise", *SOURCES]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
