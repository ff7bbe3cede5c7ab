"""Mutants: modules whose source is patched in one process's memory.

A known bug is a mutant in a TOML file:

    name = "seed-40176"
    origin = "vllm-project/vllm#40176"
    class = "softmax"  # one of Kind
    what = "what went wrong, in a sentence or two"
    trigger = "what a batch must have for it to matter"
    target = "triton"
    # needs_gpu = true where no interpreter can show it
    # raises = "a part of the message" where the bug shows itself as an exception; a list where it does so as several
    # not_emulated = "why no run on an emulated GPU shows it"

    [[patch]]  # see attn_fuzz.zoo.patches
    in = "attn_optimized.kernels.visibility.in_window"
    find = "an expression or statements, as they stand in that function"
    replace = "what the bug made of them"

A known bug has to run: an exception that its `raises` does not announce is a fault of the mutant, and finds nothing.
`attn_fuzz.zoo.generate` makes mutants by operators instead.
"""

import importlib
import importlib.abc
import importlib.machinery
import linecache
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec
from attn_fuzz import current_folder, inputs
from attn_fuzz.errors import InputError
from attn_fuzz.zoo.patches import Patch, PatchError, patched_sources

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
    "state",
]
"""Where attention goes wrong: the classes of bugs."""

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
"""Generated mutants that change no result: see `attn_fuzz.zoo.reasons`."""
NOT_FOUND = Path(__file__).with_name("not-found.toml")
"""Generated mutants that the fuzzer is known not to find on a CPU, with the cause: see `attn_fuzz.zoo.reasons`."""

KERNELS = "attn_optimized.kernels."
"""The package of the kernels' sources."""
REPLACED = "triton"
"""The target whose bugs `on_target` takes to another one."""


class MutantError(InputError):
    """A mutant file that cannot be read, a patch that does not apply, or a mutant that does not run."""


class Mutant(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"kind": "class", "patches": "patch"}
):
    """Patches that are installed together.

    Attributes:
        raises: a part of the message of the exceptions that count as a finding; empty if all count, None if none does. Several
            texts: a message that has any of them counts.
    """

    name: str
    patches: tuple[Patch, ...]
    raises: str | tuple[str, ...] | None = None

    def check_announced(self, exception: str) -> None:
        """Tell an exception that is the bug from one that only shows that the mutant is broken.

        Args:
            exception: what the mutated target raised, as text.

        Raises:
            MutantError: no text of `raises` is a part of it.
        """
        if self.raises is None:
            raise MutantError(f"{self.name}: it has no `raises`, and raised {exception}")
        texts = (self.raises,) if isinstance(self.raises, str) else self.raises
        if not any(text in exception for text in texts):
            raise MutantError(f"{self.name}: it has raises = {self.raises!r}, and raised {exception}")


class KnownBug(Mutant, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"kind": "class", "patches": "patch"}):
    """A mutant of the zoo: a real bug that is put back. The module's docstring says what the fields hold.

    Attributes:
        not_emulated: why no run on an emulated GPU shows it; empty if one does, or if its target cannot be compiled for one.
    """

    origin: str
    kind: Kind
    what: str
    trigger: str
    target: str
    needs_gpu: bool = False
    not_emulated: str = ""

    @property
    def in_kernel(self) -> bool:
        """Whether it changes the source of a kernel, and so what a compiler makes of the kernel."""
        return any(patch.place.startswith(KERNELS) for patch in self.patches)


def on_target(bugs: Sequence[KnownBug], target: str, *, compiles: bool) -> list[KnownBug]:
    """The bugs of kernels of the target `triton`, on a target that runs the same kernels in another way.

    Args:
        compiles: whether it runs what a compiler makes of the kernels. Then no bug needs a GPU.
    """
    return [
        msgspec.structs.replace(bug, target=target, needs_gpu=bug.needs_gpu and not compiles)
        for bug in bugs
        if bug.in_kernel and bug.target == REPLACED
    ]


def compiled_for(bugs: Sequence[KnownBug], architecture: str) -> list[KnownBug]:
    """The bugs of kernels, each on its target with the kernels compiled for an architecture of AMD, and emulated."""
    return [
        msgspec.structs.replace(bug, target=f"{bug.target}@{architecture}", needs_gpu=False) for bug in bugs if bug.in_kernel
    ]


def load(path: Path) -> KnownBug:
    """Read a mutant file and check that its patches apply.

    Raises:
        MutantError: it is not TOML, lacks a field or has an unknown one, or a patch does not apply.
    """
    try:
        content = inputs.read_toml(path)
    except InputError as error:
        raise MutantError(str(error)) from None
    try:
        mutant = msgspec.convert(content, KnownBug)
        patched_sources(mutant.patches)
    except (ValueError, RecursionError) as error:  # not a mutant, or not to be applied
        raise MutantError(f"{path}: {error}") from None
    if not mutant.patches:
        raise MutantError(f"{path}: it has no [[patch]]")
    return mutant


def load_all(folder: Path = Path(__file__).parent) -> list[KnownBug]:
    """The mutants of a folder, by file name.

    Raises:
        MutantError: the folder has none, or one of them cannot be loaded.
    """
    paths = sorted(path for path in folder.glob("*.toml") if path not in (EQUIVALENT, NOT_FOUND))
    if not paths:
        raise MutantError(f"{folder}: no mutants (*.toml) there")
    return [load(path) for path in paths]


class NeverRanError(MutantError):
    """A mutant that raised in every case that has something to compute."""


def install(mutant: Mutant) -> None:
    """Have this process import the mutant's modules patched. Call it before any of them is imported.

    Raises:
        MutantError: a patch does not apply, or a module is imported already.
    """
    try:
        sources = patched_sources(mutant.patches)
    except PatchError as error:
        raise MutantError(f"{mutant.name}: {error}") from None
    import_from(sources, mutant.name)
    _INSTALLED.append(mutant)


def installed() -> Mutant | None:
    """The mutant that this process runs; a process that compiles for it has to install it, too."""
    return _INSTALLED[-1] if _INSTALLED else None


_INSTALLED: list[Mutant] = []


def import_from(sources: dict[str, str], name: str) -> None:
    """Have this process import modules from these sources, by the modules' names. Messages begin with `name`.

    Raises:
        MutantError: a module is imported already.
    """
    for module in sources:
        if module in sys.modules:
            raise MutantError(f"{name}: {module} is imported already")
    sys.meta_path.insert(0, _PatchedFinder(name, sources))


def import_patched(mutant: Mutant) -> None:
    """Import the modules of a mutant that is installed, so that one which cannot be imported is not taken for the bug.

    Raises:
        MutantError: a module does not import.
    """
    for module in patched_sources(mutant.patches):
        try:
            importlib.import_module(module)
        except Exception as error:
            raise MutantError(f"{mutant.name}: {module} does not import: {type(error).__name__}: {error}") from None


class _PatchedFinder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, sources: dict[str, str]) -> None:
        self.name = name
        self.sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.sources:
            return None
        spec = current_folder.find_spec(fullname, path)
        assert spec is not None
        filename = f"<{self.name}>/{fullname.replace('.', '/')}.py"
        assert spec.origin is not None
        loader = _PatchedLoader(fullname, spec.origin, filename, self.sources[fullname])
        patched = importlib.machinery.ModuleSpec(fullname, loader, origin=filename)
        patched.submodule_search_locations = spec.submodule_search_locations  # the other modules of a package are files
        return patched


class _PatchedLoader(importlib.machinery.SourceFileLoader):
    """Executes a patched source in place of that of the module's file. The module still finds the files beside its own.

    Args:
        fullname: the module's name.
        path: its file.
        filename: names the patched source, in tracebacks and in linecache, where Triton looks for the source of a kernel.
        source: the patched source.
    """

    def __init__(self, fullname: str, path: str, filename: str, source: str) -> None:
        super().__init__(fullname, path)
        self.filename = filename
        self.source = source

    def get_source(self, fullname: str) -> str:
        return self.source

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.path
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(keepends=True), self.filename)
        exec(compile(self.source, self.filename, "exec"), module.__dict__)
