"""Read launches.json and the files beside it, which `attn_binaries.saving` wrote, perhaps another version of it."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import LaunchName
from attn_binaries.saving import SCHEMA
from attn_contract.arguments import INT32_MAX
from attn_fuzz import inputs
from attn_fuzz.errors import InputError

Stored = TypeVar("Stored", bound=msgspec.Struct)

Text = Annotated[str, msgspec.Meta(max_length=1000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=INT32_MAX)]
"""The range of sizes and counts. The sizes of a small launch, and the grid of any launch, fit into 32 bits."""
Factor = Annotated[int, msgspec.Meta(ge=1, le=INT32_MAX)]


class SavedFileError(InputError):
    """A file that was saved is missing, is damaged, or contradicts another one."""


class SavedArgument(msgspec.Struct, frozen=True):
    """An argument of the kernel: its Triton type, and the attributes on which the code relies.

    Attributes:
        may_be_null: True if it is a pointer to nothing. Scratch memory of no bytes is.
    """

    name: Text
    type: Text
    attributes: dict[str, Factor]
    may_be_null: bool = False


class KernargEntry(msgspec.Struct, frozen=True):
    """The place of an argument in the memory of arguments; `kind` as in LLVM's metadata."""

    name: Text
    offset: Count
    size: Count
    kind: Text


class Kernarg(msgspec.Struct, frozen=True):
    """The memory of arguments."""

    bytes: Count
    arguments: tuple[KernargEntry, ...]


class Digests(msgspec.Struct, frozen=True):
    """SHA-256 of the code object and of its assembly."""

    file: Text
    assembly: Text


class SavedLaunch(msgspec.Struct, frozen=True):
    """A launch as launches.json has it, as far as the emulator needs it. Fields are those of the file.

    Attributes:
        kernarg: None for NVIDIA's GPUs.
    """

    call: Text
    architecture: Text
    name: Text
    file: Text
    assembly: Text
    sha256: Digests
    arguments: tuple[SavedArgument, ...]
    constants: dict[str, Any]
    threads_per_block: Count
    dynamic_lds_bytes: Count
    kernarg: Kernarg | None

    @property
    def job(self) -> LaunchName:
        return self.architecture, self.call


class _File(msgspec.Struct):
    launches: tuple[SavedLaunch, ...]


def read(path: Path) -> dict[LaunchName, SavedLaunch]:
    """The launches of a launches.json, by architecture and name.

    Raises:
        SavedFileError: it has another schema, a field is missing, of another type or out of range, an architecture is unknown,
            or a launch is there twice.
    """
    found = decoded(path, _File, SCHEMA, "`attn-parity compile --save` writes it")
    launches: dict[LaunchName, SavedLaunch] = {}
    for launch in found.launches:
        if launch.job in launches:
            raise SavedFileError(f"{path}: {' '.join(launch.job)} is there twice")
        launches[launch.job] = launch
        if launch.architecture not in ARCHITECTURES:
            wanted = f"expected one of {', '.join(ARCHITECTURES)}"
            raise SavedFileError(f"{path}: architecture of {launch.call}: got {launch.architecture}, {wanted}")
        for name in (launch.file, launch.assembly):
            if not is_plain_name(name):
                raise SavedFileError(f"{path}: {launch.call}: got {name}, expected the name of a file beside {path.name}")
    return launches


def decoded(path: Path, kind: type[Stored], schema: str, remedy: str) -> Stored:
    """Read a JSON file of a schema.

    Args:
        remedy: the commands that write such a file, in words.

    Raises:
        SavedFileError: it is missing, is no such file, or a field is missing, of another type or out of range.
    """
    _check_is_file(path, remedy)
    try:
        return inputs.read_as(path, schema, kind, inputs.MAX_LARGE_BYTES)
    except InputError as error:
        raise SavedFileError(f"{error}: {remedy}") from None


def content(path: Path, remedy: str, max_bytes: int = inputs.MAX_LARGE_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        SavedFileError: it is missing; the message ends with the remedy.
        InputError: it is no file, or has more than `max_bytes` bytes.
    """
    _check_is_file(path, remedy)
    return inputs.read_bytes(path, max_bytes)


def _check_is_file(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise SavedFileError(f"{path}: there is no such file: {remedy}")


def is_plain_name(name: str) -> bool:
    """True if a name from a file is that of a file, and leads to no other folder."""
    return name.isprintable() and Path(name).name == name and "\\" not in name


def check_files(folder: Path, launch: SavedLaunch) -> str:
    """Hold the code object and the assembly of a launch to their digests, and return the assembly.

    Raises:
        SavedFileError: one is missing, or is another file than was saved, or the assembly is no text.
    """
    _checked(folder / launch.file, launch.sha256.file)
    path = folder / launch.assembly
    try:
        return _checked(path, launch.sha256.assembly).decode()
    except UnicodeDecodeError as error:
        raise SavedFileError(f"{path}: {error}") from None


def _checked(path: Path, digest: str) -> bytes:
    data = content(path, "`attn-parity compile --save` writes it")
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise SavedFileError(f"{path}: SHA-256: got {found[:16]}..., expected {digest[:16]}... of launches.json")
    return data
