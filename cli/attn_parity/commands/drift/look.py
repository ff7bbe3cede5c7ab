"""The parts of a package's sources on which targets rely. Each look is a process of its own, with one version of the package.

python -m attn_parity.commands.drift.look PACKAGE DEVICE TARGET...    prints a JSON object of `Look` by target
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict

from attn_fuzz import foreign
from attn_fuzz.errors import LimitError
from attn_fuzz.targets import registry
from attn_fuzz.text import one_line

_CITED = re.compile(r"([\w/]+\.py):(\d+)(?:-(\d+))?")


class Look(TypedDict):
    """The parts of the sources that a target relies on.

    Attributes:
        missing: why the target cannot run; None if it can.
        functions: the parameters of the functions of its modules that the adapter names, by "MODULE.FUNCTION" without the
            module's folder, as sources write them.
        positional: the number of them that the adapter passes by position.
        declared: the fields of its Support and its Rounding.
        cited: by "FILE:FIRST-LAST", as the adapter cites it, digests of these lines. Empty if the sources are not of the
            release whose lines are cited.
        findings: known ones that may be in these sources. An older file has none.
    """

    missing: str | None
    functions: dict[str, list[str]]
    positional: dict[str, int]
    declared: dict[str, str]
    cited: dict[str, list[str]]
    findings: NotRequired[list[str]]


def look(name: str, device: str, folder: Path | None) -> Look:
    """What a target shows of itself: whether it loads, its functions, its declaration, and the lines that it cites.

    Args:
        folder: the folder of the package, if it is of the release whose lines adapters cite.
    """
    found: Look = {"missing": None, "functions": {}, "positional": {}, "declared": {}, "cited": {}}
    try:
        target = registry.load(name)
        adapter = [*_adapter(name)]
        found["missing"] = target.unavailable(device)
        found["findings"] = [finding.name for finding in target.findings_on(device)]
        for part in (target.support(device), target.rounding(device)):
            found["declared"] |= {field: one_line(_words(value), 500) for field, value in _fields(part).items()}
        if target.modules is not None:
            given = _given(adapter)
            found["functions"] = {place: each for place, each in _functions(target.modules()).items() if _name(place) in given}
            found["positional"] = {place: given[_name(place)] for place in found["functions"]}
        found["cited"] = _cited("\n".join(adapter), folder) if folder else {}
    except LimitError as error:
        found["missing"] = found["missing"] or error.sentence
    except (Exception, SystemExit) as error:
        found["missing"] = found["missing"] or f"{type(error).__name__}: {one_line(str(error))}"
    return found


def _fields(part: object) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}  # type: ignore[arg-type]


def _words(value: object) -> str:
    return getattr(value, "__qualname__", "") or repr(value) if callable(value) else repr(value)


def _name(place: str) -> str:
    return place.rpartition(".")[2]


def _given(adapter: list[str]) -> dict[str, int]:
    """The most arguments that an adapter gives by position, by function or attribute; 0 if the adapter only names it."""
    given: dict[str, int] = {}
    for node in (node for text in adapter for node in ast.walk(ast.parse(text))):
        called = node.func if isinstance(node, ast.Call) else node
        if isinstance(called, ast.Attribute | ast.Name):
            name = called.attr if isinstance(called, ast.Attribute) else called.id
            given[name] = max(given.get(name, 0), len(node.args) if isinstance(node, ast.Call) else 0)
    return given


def _functions(modules: Iterable[ModuleType]) -> dict[str, list[str]]:
    """The parameters of each function of host code, by MODULE.FUNCTION."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": [
            _parameter(each) for each in inspect.signature(value).parameters.values()
        ]
        for module in modules
        for name, value in sorted(vars(module).items())
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _parameter(parameter: inspect.Parameter) -> str:
    """Its stars, name and default, without its annotation."""
    return str(parameter.replace(annotation=inspect.Parameter.empty))


def _cited(adapter: str, folder: Path) -> dict[str, list[str]]:
    found = {}
    for file, first, last in sorted(set(_CITED.findall(adapter))):
        [*places] = (path for path in folder.rglob(Path(file).name) if f"/{path.as_posix()}".endswith(f"/{file}"))
        if len(places) == 1:
            digests = line_digests(places[0])
            found[f"{file}:{first}" + f"-{last}" * bool(last)] = digests[int(first) - 1 : int(last or first)]
    return found


def _adapter(name: str) -> Iterator[str]:
    """The text of a target's module, and of those of this project's targets that it imports, or imports functions of."""
    module = sys.modules[registry.entry(name).module]
    yield inspect.getsource(module)
    values = [value for value in vars(module).values() if inspect.ismodule(value) or inspect.isfunction(value)]
    beside = {value.__name__ if inspect.ismodule(value) else value.__module__ for value in values} - {module.__name__}
    for each in sorted(each for each in beside if each.startswith("attn_fuzz.targets.packages.")):
        yield inspect.getsource(sys.modules[each])


@functools.cache
def line_digests(file: Path) -> list[str]:
    """Digests of a file's lines. Indentation is left out, since a line that only moves says the same."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [hashlib.sha256(line.strip().encode()).hexdigest()[:12] for line in lines]


def still_there(digests: list[str], file: str, folder: Path) -> bool:
    """True if a file of this name, wherever it is by now, has these lines one after the other."""
    text = f" {' '.join(digests)} "
    return any(text in f" {' '.join(line_digests(path))} " for path in folder.rglob(Path(file).name))


def main(package: str, device: str, pinned: str, *names: str) -> None:
    folder = foreign.sources(package) if pinned == "pinned" else None
    print(json.dumps({name: look(name, device, folder) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
