"""Mutants: a module's source with one real bug put back, in one process's memory.

A mutant is a TOML file:

    name = "seed-40176"
    origin = "vllm-project/vllm#40176"
    class = "softmax"  # one of Kind
    what = "what went wrong, in a sentence or two"
    trigger = "what a batch must have for it to matter"
    target = "triton"
    # needs_gpu = true where no interpreter can show it

    [[patch]]
    module = "attn_optimized.kernels.attention"
    find = "text that stands exactly once in the module"
    replace = "what the bug made of it"
"""

import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import msgspec
from attn_fuzz.errors import InputError

Kind = Literal[
    "mask",
    "softmax",
    "window",
    "sinks",
    "logits",
    "block table",
    "layout",
    "dtype",
    "int32",
    "head mapping",
    "ragged batch",
    "cross-attention",
    "rotary",
    "selection",
    "aliasing",
    "determinism",
]
"""Where attention goes wrong: the classes of bugs."""

MAX_BYTES = 1 << 20


class MutantError(InputError):
    """A mutant file that cannot be read, or a patch that no longer applies."""


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    module: Annotated[str, msgspec.Meta(pattern=r"^\w+(\.\w+)*$")]
    find: Annotated[str, msgspec.Meta(min_length=1)]
    replace: str


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"kind": "class", "patches": "patch"}):
    name: str
    origin: str
    kind: Kind
    what: str
    trigger: str
    target: str
    patches: tuple[Patch, ...]
    needs_gpu: bool = False


def load(path: Path) -> Mutant:
    """Read a mutant file and check that its patches apply.

    Raises:
        MutantError: it is not TOML, lacks a field or has an unknown one, or a patch does not apply.
    """
    try:
        if path.exists() and not path.is_file():
            raise MutantError("not a file")
        if path.stat().st_size > MAX_BYTES:
            raise MutantError(f"larger than {MAX_BYTES} bytes: not a mutant")
        mutant = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Mutant)
        for module in {patch.module for patch in mutant.patches}:
            patched_source(module, mutant.patches)
    except OSError as error:
        raise MutantError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not text, not a mutant, not to be applied
        raise MutantError(f"{path}: {error}") from None
    if not mutant.patches:
        raise MutantError(f"{path}: it has no [[patch]]")
    return mutant


def load_all(folder: Path = Path(__file__).parent) -> list[Mutant]:
    """The mutants of a folder, by file name.

    Raises:
        MutantError: the folder has none, or one of them cannot be loaded.
    """
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise MutantError(f"{folder}: no mutants (*.toml) there")
    return [load(path) for path in paths]


def patched_source(module: str, patches: Sequence[Patch]) -> str:
    """A module's source with its patches applied, each at the one place where its `find` stands.

    Raises:
        MutantError: there is no such module, or a `find` stands nowhere or more than once.
    """
    source = _source_file(module).read_text(encoding="utf-8")
    for patch in patches:
        if patch.module != module:
            continue
        count = source.count(patch.find)
        if count != 1:
            raise MutantError(
                f"patch of {module} no longer applies: its `find` stands there {count} times, expected once: {patch.find!r}"
            )
        source = source.replace(patch.find, patch.replace)
    return source


def _source_file(module: str) -> Path:
    """Where a module's source is, without importing anything of its package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.origin and not rest and not spec.submodule_search_locations:
        return Path(spec.origin)
    if spec is not None and spec.submodule_search_locations:
        inside = Path(spec.submodule_search_locations[0], *rest)
        for path in (inside.with_suffix(".py"), inside / "__init__.py"):
            if path.is_file():
                return path
    raise MutantError(f"patch: no package holds a module {module}")


def install(mutant: Mutant) -> None:
    """Have this process import the mutant's modules patched. Call it before any of them is imported.

    Raises:
        MutantError: a patch no longer applies, or a module is imported already.
    """
    sources = {}
    for module in {patch.module for patch in mutant.patches}:
        if module in sys.modules:
            raise MutantError(f"patch of {module}: it is imported already")
        sources[module] = patched_source(module, mutant.patches)
    sys.meta_path.insert(0, _PatchedFinder(mutant.name, sources))


class _PatchedFinder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, sources: dict[str, str]) -> None:
        self.name = name
        self.sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.sources:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        filename = f"<mutant {self.name}>/{fullname}.py"
        loader = _PatchedLoader(filename, self.sources[fullname])
        return importlib.util.spec_from_loader(
            fullname, loader, origin=filename, is_package=bool(spec.submodule_search_locations)
        )


class _PatchedLoader(importlib.abc.InspectLoader):
    """Triton reads a kernel's source through `inspect`, so the patched text must be where linecache looks."""

    def __init__(self, filename: str, source: str) -> None:
        self.filename = filename
        self.source = source

    def get_source(self, fullname: str) -> str:
        return self.source

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.filename
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(keepends=True), self.filename)
        exec(compile(self.source, self.filename, "exec"), module.__dict__)
