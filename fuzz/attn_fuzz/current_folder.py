"""Modules of the current folder, which is not on `sys.path`: a person names one as module:attribute.

Packages look for optional modules when they are imported: torch for `pydot`, transformers for `accelerate`. With the folder on
the path, a file of such a name in the folder of a downloaded model would run. So only two imports are resolved there: that of
a module that was named, and one that a module of the folder makes, at any time, for a module beside it. Whatever is found on
`sys.path` comes first.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder

folders: dict[str, str] = {}
"""The folders of modules that were named or found, by the name of the module, or of the package that it is in."""
_BETWEEN = ("importlib", "pkgutil")
"""Packages whose frames stand between an import and the module that imports."""


class _Finder:
    folder: str | None = None
    """The folder in which named modules are looked for; None: the current folder."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is not None:  # a package knows its own folder
            return None
        folder = folders.get(fullname) or folders.get(_importer())
        spec = None if folder is None else PathFinder.find_spec(fullname, [folder])
        if spec is not None and folder is not None:
            folders[fullname] = folder
        return spec


def _importer() -> str:
    """The module that imports now, or the package that it is in."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_globals is globals() or _package(frame.f_globals) in _BETWEEN):
        frame = frame.f_back
    return _package(frame.f_globals)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]


_finder = _Finder()
sys.meta_path.append(_finder)


def admit(module: str) -> None:
    """Have a module, which a person named, be imported from the current folder. What follows a `:` or a `.` is left out."""
    folders[module.partition(":")[0].partition(".")[0]] = _finder.folder or os.getcwd()


def find_spec(module: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """See `PathFinder.find_spec`. It also finds admitted modules of the current folder."""
    return PathFinder.find_spec(module, path) or _finder.find_spec(module, path)


@contextlib.contextmanager
def replaced_by(folder: str) -> Iterator[None]:
    """Inside, modules that are named are looked for in another folder than the current one."""
    before, _finder.folder = _finder.folder, folder
    try:
        yield
    finally:
        _finder.folder = before


def leave() -> None:
    """Take the folder off `sys.path` if `python -m` or an empty entry of PYTHONPATH put it there.

    Later processes do not get the empty entry. Call this while the package that `python -m` names is imported.
    """
    if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
        del sys.path[0]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [entry for entry in entries if entry]
    if len(entries) > 1 and len(named) < len(entries):
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        try:
            here = os.getcwd()
        except FileNotFoundError:  # Python leaves the empty entry as it is
            here = ""
        unnamed = {"", here}.difference(os.path.normpath(os.path.join(here, entry)) for entry in named)
        sys.path[:] = [entry for entry in sys.path if entry not in unnamed]
