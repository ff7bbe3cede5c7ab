"""No package, folder or page outgrows its budget in tests/size.toml, which says what the project's aims are.

`python -m tests.test_size` writes the budgets anew, at what is there; the commit that needs more says what it buys.
"""

import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.support.pages import ROOT

TABLE = ROOT / "tests" / "size.toml"
DATA = (".toml", ".json", ".csv", ".jsonl", ".txt")
MOST_FILES = 25
"""The most Python files of a folder, `__init__` apart."""


def tracked() -> list[Path]:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    return [Path(name) for name in listed if name and (ROOT / name).is_file()]


def is_test(path: Path) -> bool:
    return path.parts[0] == "tests" or path.name.startswith("test_")


def lines(paths: list[Path]) -> int:
    return sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths)


def words(paths: list[Path]) -> int:
    return sum(len((ROOT / path).read_text(encoding="utf-8").split()) for path in paths)


def sizes() -> dict[str, dict[str, int]]:
    """The sizes of today, in the form of tests/size.toml."""
    files = tracked()
    python = [path for path in files if path.suffix == ".py"]
    data = [path for path in files if path.suffix in DATA and path.parts[0] != "docs" and len(path.parts) > 1]
    product = [path for path in python if not is_test(path)]
    roots = sorted({path.parts[0] for path in product if len(path.parts) > 1})
    folders = Counter(path.parent.as_posix() for path in python if path.name != "__init__.py")
    pages = [path for path in files if path.suffix == ".md"]
    generated = [path for path in files if path.parts[:2] == ("docs", "generated")]
    guides = [path for path in pages if path.parts[:2] in (("docs", "guide"), ("docs", "reference"))]
    return {
        "python_lines": {
            "all but tests": lines(product),
            "tests": lines([path for path in python if is_test(path)]),
            **{root: lines([path for path in product if path.parts[0] == root]) for root in roots},
        },
        "data_lines": {
            root: lines([path for path in data if path.parts[0] == root]) for root in sorted({path.parts[0] for path in data})
        },
        "python_files": {folder: count for folder, count in sorted(folders.items()) if count > MOST_FILES},
        "docs": {
            "generated KB": sum((ROOT / path).stat().st_size for path in generated) // 1000,
            "generated pages": len([path for path in generated if path.suffix == ".md" and len(path.parts) == 3]),
            "words of guides and reference": words(guides),
            "lines of the README": lines([Path("README.md")]),
        },
    }


BUDGETS = tomllib.loads(TABLE.read_text(encoding="utf-8"))
SIZES = sizes()


@pytest.mark.parametrize("kind", SIZES)
def test_nothing_outgrows_its_budget(kind):
    over = {name: (size, BUDGETS[kind].get(name, 0)) for name, size in SIZES[kind].items()}
    assert not {name: sizes for name, sizes in over.items() if sizes[0] > sizes[1]}, "(what is there, its budget)"


@pytest.mark.parametrize("kind", SIZES)
def test_what_has_a_budget_is_there(kind):
    assert BUDGETS[kind].keys() <= SIZES[kind].keys()


def budgets(text: str) -> str:
    """The table with what is there in place of its budgets; comments and kinds stay."""
    for kind, found in sizes().items():
        table = "".join(f'"{name}" = {size}\n' for name, size in found.items())
        text = re.sub(rf"(?m)^\[{kind}\]\n(?:\".*\n)*", f"[{kind}]\n{table}", text)
    return text


if __name__ == "__main__":
    TABLE.write_text(budgets(TABLE.read_text(encoding="utf-8")), encoding="utf-8")
