"""Python, data, guides and generated pages weigh no more than tests/size.toml allows."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.pages import ROOT

BUDGETS = tomllib.loads((ROOT / "tests" / "size.toml").read_text(encoding="utf-8"))
DATA = (".toml", ".json", ".csv", ".jsonl", ".txt")


def is_test(path: Path) -> bool:
    return path.parts[0] == "tests" or path.name.startswith("test_")


def sizes() -> dict[str, int]:
    """What the rows of tests/size.toml count. Data are files in folders other than docs/, whose JSON counts as generated."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    files = [Path(name) for name in listed if name.endswith((".py", ".md", *DATA)) and (ROOT / name).is_file()]
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in files}
    python = {path: len(text.splitlines()) for path, text in texts.items() if path.suffix == ".py"}
    data = [path for path in texts if path.suffix in DATA and len(path.parts) > 1 and path.parts[0] not in ("docs", "tests")]
    guides = [path for path in texts if path.suffix == ".md" and path.parts[:2] in (("docs", "guide"), ("docs", "reference"))]
    generated = [text for path, text in texts.items() if path.parts[:2] == ("docs", "generated")]
    return {
        "lines of Python outside tests": sum(lines for path, lines in python.items() if not is_test(path)),
        "lines of Python in tests": sum(lines for path, lines in python.items() if is_test(path)),
        "lines of data outside tests": sum(len(texts[path].splitlines()) for path in data),
        "words of guides and reference": sum(len(texts[path].split()) for path in guides),
        "KB of generated pages and their data": sum(len(text.encode()) for text in generated) // 1000,
    }


SIZES = sizes()


@pytest.mark.parametrize("name", SIZES)
def test_nothing_outgrows_its_budget(name):
    assert SIZES[name] <= BUDGETS[name]


def test_each_budget_is_of_something():
    assert BUDGETS.keys() == SIZES.keys()
