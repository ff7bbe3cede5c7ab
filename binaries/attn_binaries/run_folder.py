"""A folder of one launch, with what it reads and what it wrote: others can launch the same code on the same bytes.

launch.json     the launch: for programs that read JSON, and for people
launch.txt      as much of it as a launch needs, in lines of words: for programs that do not
before/NAME.bin the bytes of each buffer before the launch
after/NAME.bin  and after it

Each buffer has GUARD_BYTES of junk before and after it, which no launch may change.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from attn_binaries.saved import Count, SavedFileError, Text, content, decoded, is_plain_name
from attn_contract.arguments import INT32_MAX, shown

SCHEMA = "attn-parity.emulated-launch/1"
GUARD_BYTES = 4096
"""The bytes of a guard, which keep the alignment of every tensor."""
HEAD = "attn-parity-launch 1"
"""The first line of launch.txt."""
REMEDY = "`attn-parity emulate` writes it"
MOST_BYTES = 1 << 25
"""The most bytes of all buffers of a launch."""
Stride = Annotated[int, msgspec.Meta(ge=-INT32_MAX, le=INT32_MAX)]


class Buffer(msgspec.Struct, frozen=True):
    """A buffer: the size of its files, and SHA-256 of what is in it before the launch."""

    name: Text
    bytes: Count
    sha256: Text


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in a buffer: its first byte in the file, torch's name of its dtype, and strides in elements."""

    name: Text
    buffer: Text
    byte: Count
    dtype: Text
    shape: tuple[Count, ...]
    strides: tuple[Stride, ...]


class Argument(msgspec.Struct, frozen=True):
    """An argument in the memory of arguments, those that the driver fills ("hidden_...") included.

    Attributes:
        offset, size: in bytes.
        kind: as in LLVM's metadata of code objects.
        bytes: in hexadecimal digits, in their order in memory; zeros for a pointer.
        buffer, byte: the target of a pointer: a byte of a buffer's file. `buffer` is None for a null pointer.
    """

    name: Text
    offset: Count
    size: Count
    kind: Text
    bytes: Text
    buffer: Text | None = None
    byte: Count = 0


class EmulatedLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """The content of launch.json.

    Attributes:
        call, case: the launch that ships, and the name of its small case.
        code, sha256: the code object beside launches.json.
        inexact: the executed instructions that hardware may round in another way.
    """

    schema: str = SCHEMA
    architecture: Text
    call: Text
    case: Text
    code: Text
    sha256: Text
    kernel: Text
    grid: tuple[Count, Count, Count]
    threads_per_block: Count
    dynamic_lds_bytes: Count
    kernarg_bytes: Count
    guard_bytes: Count = GUARD_BYTES
    arguments: tuple[Argument, ...]
    buffers: tuple[Buffer, ...]
    tensors: tuple[Tensor, ...]
    inexact: tuple[Text, ...]

    @property
    def folder(self) -> str:
        """The name of the launch's folder."""
        return folder_name(self.code, self.case)


def folder_name(code: str, case: str) -> str:
    """The name of the folder of a launch: of its code object's file, and its case."""
    return f"{Path(code).stem}-{case}"


def guarded(buffers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of the bytes of buffers between junk, which the name of a buffer draws."""
    found = {}
    for name, data in buffers.items():
        junk = np.random.default_rng(list(name.encode())).integers(0, 256, (2, GUARD_BYTES), np.uint8)
        found[name] = np.concatenate([junk[0], data, junk[1]])
    return found


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(data.tobytes()).hexdigest()


def write(folder: Path, launch: EmulatedLaunch, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Write a launch and its buffers, which have their guards, into a new folder."""
    for name, buffers in (("before", before), ("after", after)):
        (folder / name).mkdir(parents=True)
        for buffer, data in buffers.items():
            (folder / name / f"{buffer}.bin").write_bytes(data.tobytes())
    (folder / "launch.json").write_bytes(msgspec.json.format(msgspec.json.encode(launch), indent=1) + b"\n")
    (folder / "launch.txt").write_text(_lines(launch), encoding="utf-8", newline="")


def _lines(launch: EmulatedLaunch) -> str:
    """launch.txt: a word for the kind of each line, then its values. A code object's path is relative to the folder."""
    lines = [
        HEAD,
        f"code ../../{launch.code} {launch.sha256}",
        f"kernel {launch.kernel}",
        "grid {} {} {}".format(*launch.grid),
        f"threads {launch.threads_per_block}",
        f"lds {launch.dynamic_lds_bytes}",
        f"kernarg {launch.kernarg_bytes}",
        *(f"buffer {buffer.name} {buffer.bytes} {buffer.sha256}" for buffer in launch.buffers),
        *(_line(argument) for argument in launch.arguments),
    ]
    return "\n".join(lines) + "\n"


def _line(argument: Argument) -> str:
    if argument.buffer is not None:
        return f"pointer {argument.offset} {argument.buffer} {argument.byte}"
    word = "hidden" if argument.kind.startswith("hidden_") else "value"
    return f"{word} {argument.offset} {argument.size} {argument.bytes}"


def read(folder: Path) -> EmulatedLaunch:
    """Read launch.json.

    Raises:
        SavedFileError: it is missing, is no such file, names buffers by paths, or has more than MOST_BYTES in them.
    """
    path = folder / "launch.json"
    launch = decoded(path, EmulatedLaunch, SCHEMA, REMEDY)
    for buffer in launch.buffers:
        if not is_plain_name(buffer.name):
            raise SavedFileError(f"{path}: buffer {shown(buffer.name)}: expected a plain name")
    if (size := sum(buffer.bytes for buffer in launch.buffers)) > MOST_BYTES:
        raise SavedFileError(f"{path}: the buffers have {size} bytes, expected at most {MOST_BYTES}")
    return launch


def after(folder: Path, launch: EmulatedLaunch) -> dict[str, np.ndarray]:
    """The bytes of each buffer after a launch, with its guards.

    Raises:
        SavedFileError: a file is missing, has another size than the buffer, or belongs to no buffer.
    """
    found = {}
    for buffer in launch.buffers:
        path = folder / "after" / f"{buffer.name}.bin"
        data = content(path, "each buffer is dumped after the launch", MOST_BYTES)
        if len(data) != buffer.bytes:
            raise SavedFileError(f"{path}: got {len(data)} bytes, expected {buffer.bytes}")
        found[buffer.name] = np.frombuffer(data, np.uint8)
    for path in sorted((folder / "after").iterdir()):
        if path.stem not in found or path.suffix != ".bin":
            raise SavedFileError(f"{path}: expected the buffers {', '.join(found)}, each as NAME.bin, and nothing else")
    return found
