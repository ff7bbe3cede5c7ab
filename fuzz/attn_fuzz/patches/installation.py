"""Has this process import modules from patched sources."""

import importlib
import importlib.abc
import importlib.machinery
import linecache
import sys
from collections.abc import Sequence
from types import ModuleType

from attn_fuzz import current_folder
from attn_fuzz.patches.mutant import INSTALLED, Mutant, MutantError
from attn_fuzz.patches.source import PatchError, patched_sources


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
    INSTALLED.append(mutant)


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
