"""Dotted names and paths of files lead somewhere, on every page and in every docstring, comment and string of the packages."""

import importlib
import inspect
import re
from pathlib import Path

from tests.support.pages import OURS, ROOT, SOURCES

FOLDERS = (*SOURCES, "benchmarks", "examples", "findings")
NAME = re.compile(rf"(?<![\w./-])(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+")
PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join((*FOLDERS, 'tests', 'docs'))})/[\w./-]*\.(?:py|toml|json|csv|md|css)\b")
KEYS = ("attn_contract.axes", "attn_contract.rule", "attn_parity.packages", "attn_parity.targets")
"""A key of dataclass fields, and groups of entry points, that look like modules' names."""
PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "tests/README.md")),
    *(ROOT / "docs").rglob("*.md"),
]
"""All but the changelog, which may name what is gone."""
MODULES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def test_names_on_pages_lead_somewhere():
    assert not gone_in(*PAGES)


def test_names_in_packages_lead_somewhere():
    assert not gone_in(*MODULES)


def gone_in(*files: Path) -> dict[str, list[str]]:
    """The results of `gone`, by file."""
    found = {path.relative_to(ROOT).as_posix(): gone(path.read_text(encoding="utf-8"), path.parent) for path in sorted(files)}
    return {name: names for name, names in found.items() if names}


def gone(text: str, folder: Path = ROOT) -> list[str]:
    """The dotted names that cannot be imported, and the paths that lead to no file, from the root or from the folder.

    NAME stands for any name.
    """
    paths = [path for path in PATH.findall(text) if not any((base / path).exists() for base in (ROOT, folder))]
    named = [*(name for name in NAME.findall(text) if name not in KEYS and not _is_there(name)), *paths]
    return [name for name in named if "NAME" not in re.split(r"\W", name)]


def _is_there(name: str) -> bool:
    module, *rest = name.split(".")
    thing = importlib.import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        if inspect.isfunction(thing) and any(getattr(one, "co_name", "") == part for one in thing.__code__.co_consts):
            return True  # a function in a function, which has no attributes
        try:
            thing = getattr(thing, part) if hasattr(thing, part) else importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            return missing not in OURS  # where vLLM is not installed, nobody can look into attn_vllm
    return True


def test_names_and_paths_that_lead_nowhere_are_found():
    text = "`attn_fuzz.cli.options`, attn_fuzz.targets.Aim and attn_fuzz.targets.Target; fuzz/attn_fuzz/zoo.py, cli/NAME.toml"
    assert gone(text) == ["attn_fuzz.cli.options", "attn_fuzz.targets.Aim", "fuzz/attn_fuzz/zoo.py"]
