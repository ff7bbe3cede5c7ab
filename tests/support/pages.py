"""The pages of the documentation, and the code on them. What follows the opening fence says what a block is:

```python          a part of the page's program, whose output is the plain block below
```python FILE     a file; ```json FILE too
```py              a fragment, which needs what is not on the page
```                a command, whose output is the plain block below
"""

import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

import torch

from tests.support import processes

ROOT = Path(__file__).parents[2]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["root_packages"]
SOURCES = sorted({path.parent.name for name in OURS for path in ROOT.glob(f"[a-z]*/{name}")} - {"tests"})
"""The project's packages, and the folders that they are in; `benchmarks` is in none."""
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "generated" not in path.parts
}
_COMMAND = re.compile(r"(?:\.venv/bin/)?(attn-parity|python -m attn_lab|pytest) (.*)\n")
_RUN = {
    "attn-parity": "from attn_parity import main; main()",
    "python -m attn_lab": "from attn_lab.__main__ import lab, main; main(commands=lab)",
    "pytest": "import pytest; sys.exit(pytest.main())",
}


class Block(NamedTuple):
    """A fenced block: its language, the file that it is (or ""), its text and its line on the page."""

    language: str
    file: str
    text: str
    line: int

    @property
    def is_program(self) -> bool:
        return self.language == "python" and not self.file

    @property
    def is_command(self) -> bool:
        return not self.language and _COMMAND.fullmatch(self.text) is not None

    @property
    def is_output(self) -> bool:
        return not self.language and not self.is_command


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page that start in its first column."""
    found = re.finditer(r"^```(\w*) ?(\S*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], match[3], page.count("\n", 0, match.start()) + 1) for match in found]


def program(page: str) -> str:
    """The page's program, whole."""
    return "\n".join(block.text for block in blocks(page) if block.is_program)


def printed(page: str) -> str:
    """The output of the page's program."""
    found = blocks(page)
    return "".join(after.text for block, after in itertools.pairwise(found) if block.is_program and after.is_output)


def commands(page: str) -> list[tuple[Block, str]]:
    """The commands of a page that show what they print, with that."""
    found = blocks(page)
    return [(block, after.text) for block, after in itertools.pairwise(found) if block.is_command and after.is_output]


def save_files(page: str, folder: Path) -> None:
    """Write the files of a page into a folder."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)


def run_program(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's program in a folder; kernels are interpreted where there is no GPU."""
    (folder / "page.py").write_text(program(page))
    environment = {**os.environ, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    return processes.run(["page.py"], cwd=folder, env=environment)


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `attn-parity ...` or `pytest ...` in a folder."""
    match = _COMMAND.fullmatch(command.rstrip("\n") + "\n")
    assert match is not None, f"neither attn-parity nor pytest: {command}"
    code = f"import sys; sys.argv[0] = {match[1]!r}; {_RUN[match[1]]}"
    return processes.run(["-c", code, *match[2].split()], cwd=folder)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def without_numbers(text: str) -> list[str]:
    """The words of a report without numbers and widths of columns, whose last digits depend on the machine."""
    return [" ".join(re.sub(r"-?\d+(\.\d+)?(e-\d+)?", "#", line).split()) for line in text.splitlines()]
