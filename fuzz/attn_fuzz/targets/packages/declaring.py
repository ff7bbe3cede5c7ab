"""Declarations that targets of other packages' Triton kernels share, and the loading of their modules."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from attn_fuzz import foreign
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.registry import Package
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

SHARES_A_QUERY = "Where the heads of a group do not divide the 16 rows of a tile, its last query is the first of the next tile."
"""`Target.races` of unified_attention, in AITER and in vLLM."""


def triton_target(*, support: Support | Callable[[str], Support], rounding: Rounding, **declared: Any) -> Target:
    """A target that refuses nothing: its engine sends what the kernel serves.

    Args:
        support: as in Target, or a Support on any device.
        rounding: of a kernel whose dots a GPU adds to the sums so far. Triton's interpreter rounds each dot by itself.
        declared: other fields of Target.
    """
    return Target(
        support=(lambda device: support) if isinstance(support, Support) else support,
        rounding=lambda device: dataclasses.replace(rounding, dot_is_chained=device != "cpu"),
        refuses=False,
        **declared,
    )


def as_they_are(modules: list[ModuleType]) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Sources:
    """Modules of a package that are loaded without the package.

    Args:
        package: the package of the modules.
        names: the names of their files, without suffix.
        stubs: returns what stands in for all else of the package that they import.
        folders_of_files: the folders of the package in which releases have the files, that of `package.requirement` first.
        folders: whose files are executed, too, where a module imports them, if the release has these folders.
        change: makes changes in the modules, once they are loaded.
    """

    package: Package
    names: tuple[str, ...]
    stubs: Callable[[], Stubs]
    folders_of_files: tuple[str, ...] = ("",)
    folders: tuple[str, ...] = ()
    change: Callable[[list[ModuleType]], object] = as_they_are

    def load(self) -> list[ModuleType]:
        """The modules, in the order of their names. They are loaded once."""
        return _loaded(self)

    def unavailable(self, device: str) -> str | None:
        """See Target."""
        return triton_unavailable(device) or self.package.missing(self.files())

    def files(self) -> tuple[str, ...]:
        """The modules' files in the sources that are here; where there are none, those of `package.requirement`."""
        try:
            folder = foreign.sources(self.package.name)
        except foreign.MissingSourcesError:
            return tuple(f"{self.folders_of_files[0]}{name}.py" for name in self.names)
        found = ([f"{each}{name}.py" for each in self.folders_of_files] for name in self.names)
        return tuple(next((file for file in files if (folder / file).is_file()), files[0]) for files in found)

    def fields(self) -> dict[str, Any]:
        """The fields of a Target of these modules that say so."""
        return {"unavailable": self.unavailable, "modules": self.load}

    def target(self, **declared: Any) -> Target:
        """A target of these modules, by `triton_target`."""
        return triton_target(**(self.fields() | declared))


@functools.cache
def _loaded(sources: Sources) -> list[ModuleType]:
    package = sources.package.name
    folders = [each for each in sources.folders if (foreign.sources(package) / each).is_dir()]
    modules = foreign.load(package, (*sources.files(), *folders), stubs=sources.stubs())
    sources.change(modules)
    return modules


def choose_config(modules: Iterable[ModuleType], which: int) -> None:
    """Leave each autotuned kernel of these modules one of its configurations: the interpreter has no time to compare."""
    from triton.runtime.autotuner import Autotuner, Heuristics

    for each in (each for module in modules for each in vars(module).values()):
        kernel = each.fn if isinstance(each, Heuristics) else each
        if isinstance(kernel, Autotuner):
            kernel.configs = [kernel.configs[which]]
