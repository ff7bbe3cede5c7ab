"""Loads some modules of a package, unchanged, where the package itself cannot be imported, as on a machine without a GPU.

Only the named files are executed, and files of the named folders where they are imported. A folder of the package is an empty
module: no `__init__` runs. Stubs, modules with fixed contents, replace what the files import beside themselves. The modules are
not in `sys.modules`: what they import, also later and inside of functions, is looked up among the files and stubs of their own
`load`. So two loads of one package do not meet, and the process can still import the real package.
"""

import builtins
import importlib.abc
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from attn_fuzz.errors import LimitError

REPAIRED = "REPAIRED"
"""A file in a package's folder. It names the known findings that are repaired in these sources, one a line."""
REPAIRED_CODE = "REPAIRED_CODE.json"
"""A file beside a package's folder. It has changes of the assembly of code objects: a pattern of files, a text, and another."""
Stubs = dict[str, dict[str, Any]]
"""Contents of modules, by the modules' full names."""


def nothing(*arguments: object, **options: object) -> None:
    """Stands in for a function whose effect does not matter, such as one that logs."""


class MissingSourcesError(LimitError, ImportError):
    """A package, or a file of it, is not here."""


class UnnamedModuleError(LimitError, ModuleNotFoundError):
    """A file imports a module that its `load` does not name."""


def variable(package: str) -> str:
    """The environment variable that names the folder of other sources of a package."""
    return f"ATTN_PARITY_{package.upper()}"


def sources(package: str) -> Path:
    """The folder of a package's sources: in the folder that `ATTN_PARITY_PACKAGE` names, or else as it is installed.

    Raises:
        MissingSourcesError: there is none.
    """
    if elsewhere := os.environ.get(variable(package)):
        folder = Path(elsewhere, package).absolute()
        if not folder.is_dir():
            raise MissingSourcesError(
                f"{variable(package)}: got {elsewhere!r}, expected a folder that holds a folder {package}", "such a folder"
            )
        return folder
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        what = f"{package} is neither installed nor in a folder that {variable(package)} names"
        raise MissingSourcesError(what, f"installing {package}")
    return Path(spec.submodule_search_locations[0])


def repaired(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The findings that are repaired in the sources that `ATTN_PARITY_PACKAGE` names, for any package."""
    folders = (Path(folder) for name, folder in environment.items() if name.startswith(variable("")))
    return frozenset(name for folder in folders for file in folder.glob(f"*/{REPAIRED}") for name in file.read_text().split())


def repaired_code(file: Path, assembly: str) -> str:
    """The assembly of a code object with the repairs of the sources that the file is in."""
    found = (folder / REPAIRED_CODE for folder in file.parents)
    for pattern, old, new in (each for changes in found if changes.is_file() for each in json.loads(changes.read_text())):
        assembly = assembly.replace(old, new) if file.match(pattern) else assembly
    return assembly


@contextmanager
def findable(package: str) -> Iterator[None]:
    """While this lasts, Python finds a package first in the folder that `ATTN_PARITY_PACKAGE` names, if it names one.

    Raises:
        MissingSourcesError: the folder holds no such package.
    """
    elsewhere = os.environ.get(variable(package))
    before = list(sys.path)
    if elsewhere:
        sys.path.insert(0, str(sources(package).parent))
        importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def missing(package: str, files: Sequence[str], requirement: str) -> str | None:
    """The reason why a package's files cannot be loaded, with the command that brings them; None if they are here.

    Args:
        package, files: as `load` takes them.
        requirement: the package to install, such as "vllm==0.33.0".
    """
    install = f"pip install --no-deps {requirement}"
    try:
        folder = sources(package)
    except MissingSourcesError as error:
        return f"{error}: {install}"
    absent = next((file for file in files if not (folder / file).is_file()), None)
    return absent and f"{folder} has no {absent}: {install}"


def load(
    package: str, files: Sequence[str], *, stubs: Mapping[str, Mapping[str, Any]] | None = None, folder: Path | None = None
) -> list[ModuleType]:
    """Execute files of a package as its modules, and return these in the order of `files`, without those of folders.

    Set TRITON_INTERPRET=1 before Triton is imported if Triton is to interpret their kernels, as the fuzzer does on a CPU.

    Args:
        package: the name of the package, such as "vllm".
        files: paths relative to the package's folder, with suffix, or folders, with "/" at the end. What a file imports of the
            package is in `files`, too, or in one of these folders, or in `stubs`.
        stubs: the contents of all other modules that the files import of the package. Modules of other packages are imported as
            usual, unless they are stubs.
        folder: the folder of the package; default: `sources(package)`.

    Raises:
        MissingSourcesError: the package or a file is not here.
        ImportError: a file imports a module that is neither a file nor a stub.
    """
    loaded = _Modules(package, files, stubs or {}, folder or sources(package))
    with loaded.importable():
        return [importlib.import_module(name) for name in loaded.files]


def call(function: Callable[..., Any], *arguments: Any, hints: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Call a function of any release. An option that it has no parameter for is left out where it is None or False.

    Args:
        hints: options that are left out whatever they are: the result is the same, or earlier releases could not be told.

    Raises:
        LimitError: the function has no parameter for an option that asks for something.
    """
    taken = inspect.signature(function).parameters
    for name in [name for name in options if name not in taken]:
        if (value := options.pop(name)) is not None and value is not False:
            raise LimitError(f"{function.__name__} of these sources takes no {name}", "a release that takes it")
    return function(*arguments, **options, **{name: value for name, value in (hints or {}).items() if name in taken})


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """While this lasts, each tensor says that it is a GPU's: host code may ask, though its kernels are interpreted."""
    with mock.patch.object(torch.Tensor, "is_cuda", True), mock.patch.object(torch.Tensor, "is_cpu", False):
        yield


class _Modules(importlib.abc.MetaPathFinder):
    """The modules of one `load`, and how they find each other."""

    def __init__(self, package: str, files: Sequence[str], stubs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
        self.package, self.stubs, self.folder = package, stubs, folder
        if absent := next((file for file in files if not (folder / file).exists()), None):
            raise MissingSourcesError(f"{package}: {folder} has no {absent}", f"the release of {package} that has it")
        self.folders = [folder / file for file in files if file.endswith("/")]
        self.files = {
            ".".join((package, *Path(file).with_suffix("").parts)): folder / file for file in files if not file.endswith("/")
        }
        self.owned = {package, *(name.partition(".")[0] for name in stubs)}
        self.modules: dict[str, ModuleType] = {}
        self.active = False

    def owns(self, name: str) -> bool:
        return name.partition(".")[0] in self.owned

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Put the modules into `sys.modules`, and restore its earlier contents at the end."""
        if self.active:
            yield
            return
        others = {name: sys.modules.pop(name) for name in list(sys.modules) if self.owns(name)}
        sys.modules.update(self.modules)
        sys.meta_path.insert(0, self)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            sys.meta_path.remove(self)
            self.modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self.owns(name)}
            sys.modules.update(others)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not self.owns(fullname):
            return None
        if (file := self._file(fullname)) is not None:
            return importlib.util.spec_from_file_location(fullname, file, loader=_Source(fullname, str(file), self))
        is_package = self._is_folder(fullname) or any(name.startswith(f"{fullname}.") for name in (*self.stubs, *self.files))
        if fullname not in self.stubs and not is_package:
            what = f"{fullname} is neither among the files of {self.package} nor among its stubs"
            if fullname.partition(".")[0] == self.package and not self._is_in_package(fullname):
                raise ModuleNotFoundError(f"{what}, and {self.folder} has no such file", name=fullname)
            raise UnnamedModuleError(what, "naming it in foreign.load")
        return ModuleSpec(fullname, _Stub(self.stubs.get(fullname, {})), is_package=is_package)

    def _file(self, name: str) -> Path | None:
        """The file to execute as this module: a named one, or one of a named folder that has no stub."""
        if name in self.files or name in self.stubs:
            return self.files.get(name)
        package, *parts = name.split(".")
        file = self.folder.joinpath(*parts).with_suffix(".py") if package == self.package and parts else None
        return file if file and file.parent in self.folders and file.is_file() else None

    def _is_folder(self, name: str) -> bool:
        package, *parts = name.split(".")
        return package == self.package and self.folder.joinpath(*parts).is_dir()

    def _is_in_package(self, name: str) -> bool:
        return self.folder.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()

    def import_module(self, name: str, *arguments: Any, **options: Any) -> ModuleType:
        """`__import__` of the loaded modules."""
        with self.importable():
            return builtins.__import__(name, *arguments, **options)


class _Source(SourceFileLoader):
    """Executes a file, which later imports by the `__import__` of its load. Nothing is written beside the file."""

    def __init__(self, name: str, path: str, modules: _Modules) -> None:
        super().__init__(name, path)
        self._modules = modules

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._modules.import_module}
        super().exec_module(module)

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass


class _Stub(importlib.abc.Loader):
    def __init__(self, contents: Mapping[str, Any]) -> None:
        self._contents = contents

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(self._contents)
