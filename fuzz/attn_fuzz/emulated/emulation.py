"""Runs a launch of this project's kernels on the emulator: tensors become buffers, and buffers become tensors again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from attn_amdgcn import Schedule, checked
from attn_fuzz.emulated.compiler import ready
from attn_fuzz.emulated.jobs import Job, Pointer
from attn_optimized.kernel_call import KernelCall

LARGE = 8 << 30
"""Bytes of a KV cache for which AMD's compiler must address by 64 bits."""


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies: in which buffer, and at which byte of it."""

    buffer: str
    offset: int


def emulate(
    call: KernelCall,
    architecture: str,
    *,
    schedules: Sequence[Schedule] = (Schedule(),),
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Compile a launch for an architecture and run the code on the launch's tensors, which lie on the CPU.

    Args:
        schedules: orders of what may run in any order. The code runs once for each; its results must not depend on them.
        sizes: as of `job_of`.

    Raises:
        CompilerError: the compiler refused the kernel.
        attn_amdgcn.AmdgcnError: the code did what it must not do, or what the emulator does not know.
    """
    if 0 in call.launch.grid:
        return
    storages = _storages(call)
    program, compiled = ready(job_of(call, architecture, sizes))
    given = []
    for name in compiled.names:
        tensor = call.tensors.get(name)
        placed = None if tensor is None else _placed(tensor, storages)
        given.append(call.launch.numbers.get(name) if placed is None else (placed.buffer, placed.offset))
    x, y, z, *_ = (*call.launch.grid, 1, 1)
    buffers = {name: _contents(storage) for name, storage in storages.values()}
    arguments = [*given, *[None] * compiled.scratch]
    memory, _ = checked(program, (x, y, z), arguments, buffers, lds_bytes=compiled.lds_bytes, schedules=schedules)
    for name, storage in storages.values():
        _contents(storage)[:] = memory.contents(name)


def job_of(call: KernelCall, architecture: str, sizes: Mapping[str, int] | None = None) -> Job:
    """What a launch compiles.

    Args:
        sizes: bytes of the storages that the kernel is compiled for, by the names of tensors. A tensor that is not named has a
            storage of its own size.
    """
    given = sizes or {}
    pointers = {
        name: Pointer(tensor.dtype, _offset(tensor) % 16 == 0, given.get(name, tensor.untyped_storage().size()))
        for name, tensor in call.tensors.items()
        if tensor is not None
    }
    function = call.launch.kernel.fn
    arguments = call.arguments | pointers | call.launch.constants | call.launch.options
    return Job(function.__module__, function.__name__, architecture, arguments)


def _storages(call: KernelCall) -> dict[int, tuple[str, torch.UntypedStorage]]:
    """The storages of a launch's tensors by their address, each with the name of the first tensor that lies in it."""
    storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
    for name, tensor in call.tensors.items():
        if tensor is not None:
            storage = tensor.untyped_storage()
            storages.setdefault(storage.data_ptr(), (name, storage))
    return storages


def _placed(tensor: torch.Tensor, storages: dict[int, tuple[str, torch.UntypedStorage]]) -> Placed:
    storage = tensor.untyped_storage().data_ptr()
    return Placed(storages[storage][0], _offset(tensor))


def _offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _contents(storage: torch.UntypedStorage) -> np.ndarray:
    """The bytes of a storage, which this shares."""
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
