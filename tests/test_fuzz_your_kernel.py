"""The guide "fuzz your own kernel" is followed to the letter: the example agrees, and the planted bug is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "guide" / "fuzz-your-kernel.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, flags=re.DOTALL)
(ADAPTER,) = (text for language, text in BLOCKS if language == "python")
(DIFF,) = (text for language, text in BLOCKS if language == "diff")
FUZZ, CLEAN, FOUND, PYTEST = (text for language, text in BLOCKS if not language)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__")))


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    name, *arguments = command.split()
    code = {"attn-parity": "from attn_parity import main; main()", "pytest": "import pytest; sys.exit(pytest.main())"}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {name!r}; {code[name]}", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def without_times(text: str) -> list[str]:
    """What remains of a report where the last digits depend on the machine."""
    return [" ".join(re.sub(r"-?\d+(\.\d+)?(e-\d+)?", "#", line).split()) for line in text.splitlines()]


def planted(folder: Path) -> None:
    kernel = folder / "my_unified_attention.py"
    old, new = (line[2:].strip() for line in DIFF.splitlines())
    source = kernel.read_text()
    assert source.count(old) == 1
    kernel.write_text(source.replace(old, new))


def test_the_adapter_on_the_page_is_the_one_in_the_examples():
    adapter = (ROOT / "examples" / "my_target.py").read_text()
    assert adapter == ADAPTER
    assert len(adapter.splitlines()) <= 40


def test_the_kernel_agrees(folder):
    ended = run(FUZZ, folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert without_times(ended.stdout) == without_times(CLEAN)


def test_the_planted_bug_is_found(folder):
    planted(folder)
    ended = run(FUZZ, folder)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found, told = without_times(ended.stdout), without_times(FOUND)
    assert {told[0], *told[-2:]} <= set(found), "which case is the smallest may change with what is drawn"
    assert "window=" in ended.stdout


def test_pytest_finds_it_too(folder):
    planted(folder)
    ended = run(PYTEST, folder)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "my_target:TARGET::cases[0]" in ended.stdout
    assert "window=" in ended.stdout
