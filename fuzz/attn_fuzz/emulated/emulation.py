"""Runs a launch of this project's kernels on the emulator: tensors become buffers, and buffers become tensors again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attn_amdgcn import Report, Schedule, Watch, checked
from attn_fuzz.emulated.compiler import Ready, ready
from attn_fuzz.emulated.jobs import Job, Pointer
from attn_optimized.kernel_call import KernelCall

LARGE = 8 << 30
"""Bytes of a KV cache for which AMD's compiler must address by 64 bits."""


def emulate(
    call: KernelCall,
    architecture: str,
    *,
    schedules: Sequence[Schedule] = (Schedule(),),
    sizes: Mapping[str, int] | None = None,
    watches: Sequence[Watch] = (),
) -> Report | None:
    """Compile a launch for an architecture and run the code on the launch's tensors, which lie on the CPU.

    Args:
        schedules: orders of what may run in any order. The code runs once for each; its results must not depend on them.
        sizes: as of `job_of`.
        watches: as of `run`.

    Returns:
        What the launch did; None if its grid has no programs.

    Raises:
        CompilerError: the compiler refused the kernel.
        attn_amdgcn.AmdgcnError: the code did what it must not do, or what the emulator does not know.
    """
    if 0 in call.launch.grid:
        return None
    compiled = ready(job_of(call, architecture, sizes))
    return run(compiled, call.arguments, call.launch.grid, schedules=schedules, watches=watches)


def run(
    ready: Ready,
    arguments: Mapping[str, Any],
    grid: Sequence[int],
    *,
    schedules: Sequence[Schedule] = (Schedule(),),
    watches: Sequence[Watch] = (),
) -> Report:
    """Run compiled code on tensors, which lie on the CPU, and on numbers.

    Args:
        arguments: by the kernel's names; those that the code does not take are left out.
        grid: programs.
        schedules, watches: as of `attn_amdgcn.checked`.

    Raises:
        attn_amdgcn.AmdgcnError: the code did what it must not do.
    """
    program, compiled = ready
    storages = _storages(arguments)
    given = [arguments.get(name) for name in compiled.names]
    placed = [_placed(value, storages) if isinstance(value, torch.Tensor) else value for value in given]
    x, y, z, *_ = (*grid, 1, 1)
    buffers = {name: _contents(storage) for name, storage in storages.values()}
    memory, report = checked(
        program,
        (x, y, z),
        [*placed, *[None] * compiled.scratch],
        buffers,
        lds_bytes=compiled.lds_bytes,
        schedules=schedules,
        watches=watches,
    )
    for name, storage in storages.values():
        _contents(storage)[:] = memory.contents(name)
    return report


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


def _storages(arguments: Mapping[str, Any]) -> dict[int, tuple[str, torch.UntypedStorage]]:
    """The storages of a launch's tensors by their address, each with the name of the first tensor that lies in it."""
    storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
    for name, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()
            storages.setdefault(storage.data_ptr(), (name, storage))
    return storages


def _placed(tensor: torch.Tensor, storages: dict[int, tuple[str, torch.UntypedStorage]]) -> tuple[str, int]:
    """The buffer in which a tensor lies, and the byte of it where it begins."""
    return storages[tensor.untyped_storage().data_ptr()][0], _offset(tensor)


def _offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _contents(storage: torch.UntypedStorage) -> np.ndarray:
    """The bytes of a storage, which this shares."""
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
