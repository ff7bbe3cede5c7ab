"""Launches of compiled code objects of others: tensors become buffers, and buffers become tensors again."""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attn_amdgcn import LaunchError, Program, Report, Schedule, load, prepare
from attn_amdgcn.assembly import Argument
from attn_amdgcn.code_objects import reader, text_of
from attn_amdgcn.errors import Hazards
from attn_amdgcn.memory import addresses
from attn_fuzz.emulated import emulation
from attn_fuzz.emulated.build_cache import cached
from attn_fuzz.foreign import repaired_code

Value = torch.Tensor | tuple[torch.Tensor, ...] | float | int | None
"""A tensor is a pointer to it. Several are a pointer to memory that holds a pointer to each of them."""

_MAX_BYTES = 8
"""Bytes of the largest argument that is no struct."""


class CodeObject(NamedTuple):
    """A kernel of a code object, and the file's name."""

    name: str
    program: Program


def ready(file: Path, kernel: str, *, evenly: bool = False) -> CodeObject:
    """A kernel of a code object, as `attn_amdgcn.prepare` makes it ready. It is kept as long as the file is the same."""
    return _ready(file, kernel, evenly, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _ready(file: Path, kernel: str, evenly: bool, changed: int) -> CodeObject:
    return CodeObject(file.name, prepare(load(_text(file, kernel)), evenly=evenly))


def _text(file: Path, kernel: str) -> str:
    """See `text_of`, with repairs. The text without them is cached in a file."""
    parts = (sha256(file.read_bytes()).hexdigest(), kernel, reader())
    folder = cached("code-objects", parts, lambda made: (made / "kernel.s").write_text(text_of(file, kernel)))
    return repaired_code(file, (folder / "kernel.s").read_text())


def run(
    code: CodeObject,
    arguments: Mapping[int, Value],
    grid: Sequence[int],
    schedules: Sequence[Schedule],
    hazards: Hazards | None = None,
) -> Report:
    """Run a kernel on tensors, which lie on the CPU. The code may touch all of their storages.

    Args:
        arguments: by their offsets in the memory of the kernel's arguments. Bytes that none of them has are 0. Those after
            the kernel's own arguments are left out: host code fills one struct for several kernels.
        hazards: the record of faults of that kind; None: each of them ends the launch.

    Raises:
        LaunchError: the kernel has no argument at an offset, or has a pointer that is not given.
        attn_amdgcn.AmdgcnError: the code did what it must not do, or what the emulator does not know.
    """
    kernel = code.program.kernel
    own = {each.offset: each for each in kernel.arguments if not each.kind.startswith("hidden_")}
    whole = own[0].size if own.keys() == {0} and own[0].size > _MAX_BYTES else 0  # the struct is one argument
    if whole:
        own = {offset: Argument(offset, _MAX_BYTES, "by_value") for offset in arguments if offset < whole}
    pointers = {offset for offset, each in own.items() if each.kind == "global_buffer"}
    arguments = {offset: value for offset, value in arguments.items() if offset <= max(own, default=-1)}
    if wrong := sorted((arguments.keys() - own.keys()) | (pointers - arguments.keys())):
        raise LaunchError(f"{code.name}: arguments at {sorted(arguments)}: its own differ at byte {wrong[0]}")
    given: dict[str, Any] = {f"{own[offset].name} at {offset}": arguments.get(offset, 0) for offset in own}
    names, tables = list(given), {name: value for name, value in given.items() if isinstance(value, tuple)}
    for name, tensors in tables.items():
        given[name] = torch.zeros(len(tensors), dtype=torch.int64)
        given |= {f"{name}, pointer {i}": tensor for i, tensor in enumerate(tensors)}
    inputs = emulation.inputs_of(given, grid, given)
    places = dict(zip(given, inputs.arguments, strict=True))
    at = addresses({name: len(contents) for name, contents in inputs.buffers.items()})
    for name, tensors in tables.items():
        pointed: list[Any] = [places[f"{name}, pointer {i}"] for i in range(len(tensors))]
        given[name][:] = torch.tensor([at[buffer] + byte for buffer, byte in pointed])
    values = [places[name] for name in names]
    if whole:
        values = [sum(_encoded(value, at) << 8 * offset for offset, value in zip(own, values, strict=True))]
    inputs = inputs._replace(arguments=values, permitted=emulation.EVERYTHING)
    _, report = emulation.run(code.program, inputs, lds_bytes=0, schedules=schedules, hazards=hazards)
    return report


def _encoded(value: Any, at: Mapping[str, int]) -> int:
    """An argument as the number that its bytes are."""
    if isinstance(value, tuple):
        buffer, byte = value
        return at[buffer] + byte
    number = struct.unpack("<I", struct.pack("<f", value))[0] if isinstance(value, float) else value or 0
    return number & (1 << 8 * _MAX_BYTES) - 1
