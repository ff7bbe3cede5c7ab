"""Read launches.json and the files beside it, which `attn_parity.binaries.saving` wrote, perhaps another version of it."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from attn_fuzz import inputs
from attn_fuzz.errors import InputError
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.build import Job
from attn_parity.binaries.saving import SCHEMA

Kind = TypeVar("Kind", bound=msgspec.Struct)

MAX_BYTES = 1 << 28


class SavedFileError(InputError):
    """A file that was saved is missing, is damaged, or contradicts another one."""


class Argument(msgspec.Struct, frozen=True):
    """An argument of the kernel: its Triton type, and the attributes on which the code relies.

    Attributes:
        may_be_null: whether it is a pointer to nothing. Scratch memory of no bytes is.
    """

    name: str
    type: str
    attributes: dict[str, int]
    may_be_null: bool = False


class Place(msgspec.Struct, frozen=True):
    """Where an argument lies in the memory of arguments; `kind` as in LLVM's metadata."""

    name: str
    offset: int
    size: int
    kind: str


class Kernarg(msgspec.Struct, frozen=True):
    """The memory of arguments."""

    bytes: int
    arguments: tuple[Place, ...]


class Digests(msgspec.Struct, frozen=True):
    """SHA-256 of the code object and of its assembly."""

    file: str
    assembly: str


class SavedLaunch(msgspec.Struct, frozen=True):
    """What launches.json says of one launch, as far as a launch on the emulator needs it. Fields are those of the file.

    Attributes:
        kernarg: None for NVIDIA's GPUs.
    """

    call: str
    architecture: str
    name: str
    file: str
    assembly: str
    sha256: Digests
    arguments: tuple[Argument, ...]
    constants: dict[str, Any]
    threads_per_block: int
    dynamic_lds_bytes: int
    kernarg: Kernarg | None

    @property
    def job(self) -> Job:
        return self.architecture, self.call


class _File(msgspec.Struct):
    launches: tuple[SavedLaunch, ...]


def read(path: Path) -> dict[Job, SavedLaunch]:
    """The launches of a launches.json, by architecture and name.

    Raises:
        SavedFileError: it has another schema, a field is missing or of another type, or an architecture is unknown.
    """
    found = decoded(path, _File, SCHEMA, "`attn-parity compile --save` writes it")
    for launch in found.launches:
        if launch.architecture not in ARCHITECTURES:
            wanted = f"expected one of {', '.join(ARCHITECTURES)}"
            raise SavedFileError(f"{path}: architecture of {launch.call}: got {launch.architecture}, {wanted}")
        for name in (launch.file, launch.assembly):
            if not is_plain_name(name):
                raise SavedFileError(f"{path}: {launch.call}: got {name}, expected the name of a file beside {path.name}")
    return {launch.job: launch for launch in found.launches}


def decoded(path: Path, kind: type[Kind], schema: str, remedy: str) -> Kind:
    """Read a JSON file of a schema.

    Args:
        remedy: who writes such a file, in words.

    Raises:
        SavedFileError: it is missing, is no such file, or a field is missing or of another type.
    """
    _check_is_file(path, remedy)
    try:
        return msgspec.convert(inputs.read_record(path, schema, MAX_BYTES), kind)
    except InputError as error:
        raise SavedFileError(f"{error}: {remedy}") from None
    except msgspec.ValidationError as error:
        raise SavedFileError(f"{path}: {error}") from None


def content(path: Path, remedy: str) -> bytes:
    """The bytes of a file.

    Raises:
        SavedFileError: it is missing; the message ends with the remedy.
        InputError: it is no file, or larger than MAX_BYTES.
    """
    _check_is_file(path, remedy)
    return inputs.read_bytes(path, MAX_BYTES)


def _check_is_file(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise SavedFileError(f"{path}: there is no such file: {remedy}")


def is_plain_name(name: str) -> bool:
    """Whether a name from a file is that of a file, and leads to no other folder."""
    return name.isprintable() and Path(name).name == name and "\\" not in name


def check_files(folder: Path, launch: SavedLaunch) -> str:
    """Hold the code object and the assembly of a launch to their digests, and return the assembly.

    Raises:
        SavedFileError: one is missing, or is another file than was saved.
    """
    _checked(folder / launch.file, launch.sha256.file)
    return _checked(folder / launch.assembly, launch.sha256.assembly).decode()


def _checked(path: Path, digest: str) -> bytes:
    data = content(path, "`attn-parity compile --save` writes it")
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise SavedFileError(f"{path}: SHA-256: got {found[:16]}..., expected {digest[:16]}... of launches.json")
    return data
