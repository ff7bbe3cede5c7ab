"""No package, folder or page outgrows its budget in tests/size.toml, which has the project's aims, too.

`python -m tests.test_size` lowers the budgets to what is there. Raise one by hand, in a commit that says what the growth buys.
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
MAX_FILES = 25
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
        "python_files": {folder: count for folder, count in sorted(folders.items()) if count > MAX_FILES},
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
    budgets, aims = BUDGETS[kind], BUDGETS["aims"].get(kind, {})
    sizes = {name: (size, budgets.get(name, 0), aims.get(name)) for name, size in SIZES[kind].items()}
    over = {name: each for name, each in sizes.items() if each[0] > each[1]}
    assert not over, "(what is there, its budget, the aim)"


@pytest.mark.parametrize("kind", SIZES)
def test_each_budget_and_each_aim_is_of_something(kind):
    assert BUDGETS[kind].keys() <= SIZES[kind].keys()
    assert BUDGETS["aims"].get(kind, {}).keys() <= BUDGETS[kind].keys()


def budgets(text: str) -> str:
    """The table with the budgets lowered to what is there; comments, kinds and aims stay."""
    old = tomllib.loads(text)
    for kind, found in sizes().items():
        table = "".join(f'"{name}" = {min(size, old[kind][name])}\n' for name, size in found.items() if name in old[kind])
        text = re.sub(rf"(?m)^\[{kind}\]\n(?:\".*\n)*", f"[{kind}]\n{table}", text)
    return text


if __name__ == "__main__":
    TABLE.write_text(budgets(TABLE.read_text(encoding="utf-8")), encoding="utf-8")
