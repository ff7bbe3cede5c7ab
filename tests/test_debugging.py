"""The guide to debugging is followed to the letter: its program runs, prints what it shows, and its case fails as it says."""

import re
import subprocess
import sys
from pathlib import Path

GUIDE = (Path(__file__).parent.parent / "docs" / "guide" / "debugging.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, flags=re.DOTALL)
SUSPECT = next(text for language, text in BLOCKS if text.startswith("# suspect.py"))
PROGRAM = "".join(text for language, text in BLOCKS if language == "python" and text is not SUSPECT)
*PRINTED, COMMAND, REPLAYED = (text for language, text in BLOCKS if not language)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def without_numbers(text: str) -> list[str]:
    """What remains of a report where the last digits depend on the machine, and with them the width of columns."""
    return [" ".join(re.sub(r"-?\d+(\.\d+)?(e-\d+)?", "#", line).split()) for line in text.splitlines()]


def test_the_guide(tmp_path):
    (tmp_path / "suspect.py").write_text(SUSPECT)
    (tmp_path / "guide.py").write_text(PROGRAM)
    program = run("guide.py", folder=tmp_path)
    assert program.returncode == 0, program.stderr
    assert lines(program.stdout) == lines("".join(PRINTED))

    name, *arguments = COMMAND.split()
    assert name == "attn-parity"
    replay = run("-c", "from attn_parity import main; main()", *arguments, folder=tmp_path)
    assert replay.returncode == 1, replay.stderr
    assert without_numbers(replay.stdout) == without_numbers(REPLAYED)

    (tmp_path / "suspect.py").write_text(SUSPECT.replace("sinks=None", "sinks=layer.sinks"))
    assert run("-c", "from attn_parity import main; main()", *arguments, folder=tmp_path).returncode == 0
