"""Runs a launch of this project's kernels on the emulator: tensors become buffers, and buffers become tensors again."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from attn_amdgcn import Memory, PermittedBytes, Program, Report, Schedule, Watch, checked
from attn_amdgcn.errors import Hazards
from attn_amdgcn.launch import Argument
from attn_contract.memory import extent
from attn_fuzz.emulated import permitted
from attn_fuzz.emulated.compiler import Ready, ready
from attn_fuzz.emulated.jobs import Job, Pointer
from attn_fuzz.interpreted.permissions import Region
from attn_optimized.kernel_call import KernelCall
from attn_optimized.miscompiled import refuse_miscompiled

EVERYTHING = PermittedBytes({}, {})
"""The code may touch all bytes of its buffers."""
LARGE = 8 << 30
"""Bytes of a KV cache for which AMD's compiler must address by 64 bits."""


class Inputs(NamedTuple):
    """The inputs of a launch's code.

    Attributes:
        grid: numbers of workgroups in x, y and z.
        arguments: in the kernel's order. A tensor is the name of a buffer and the tensor's first byte in it.
        buffers: the bytes of the storages in which tensors lie, which this shares. Each has the name of the first tensor in it.
        permitted: the bytes of buffers that the code may touch.
    """

    grid: tuple[int, int, int]
    arguments: list[Argument]
    buffers: dict[str, np.ndarray]
    permitted: PermittedBytes


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
        watches: as of `attn_amdgcn.checked`.

    Returns:
        What the launch did; None if its grid has no programs.

    Raises:
        CompilerError: the compiler refused the kernel.
        MiscompiledError: the launch is refused on a GPU, too.
        attn_amdgcn.AmdgcnError: the code did what it must not do, or what the emulator does not know.
    """
    if 0 in call.launch.grid:
        return None
    compiled = ready(job_of(call, architecture, sizes))
    refuse_miscompiled(compiled.compiled.text, architecture)
    return run_ready(compiled, call.arguments, call.launch.grid, schedules=schedules, watches=watches)


def run_ready(
    ready: Ready,
    arguments: Mapping[str, Any],
    grid: Sequence[int],
    *,
    schedules: Sequence[Schedule] = (Schedule(),),
    watches: Sequence[Watch] = (),
) -> Report:
    """Run compiled code on the arguments of a launch, which `inputs_of` describes.

    Raises:
        attn_amdgcn.AmdgcnError: the code did what it must not do.
    """
    program, compiled = ready
    inputs = inputs_of(arguments, grid, compiled.names)
    inputs.arguments.extend([None] * compiled.scratch)
    _, report = run(program, inputs, lds_bytes=compiled.lds_bytes, schedules=schedules, watches=watches)
    return report


def inputs_of(
    arguments: Mapping[str, Any], grid: Sequence[int], names: Iterable[str], regions: Sequence[Region] = ()
) -> Inputs:
    """The inputs of the code of a launch on the CPU.

    Args:
        arguments: the arguments of the launch, tensors and numbers, by the kernel's names.
        grid: numbers of workgroups in up to three dimensions.
        names: the names of the code's arguments. An argument that the launch does not have is a null pointer.
        regions: the regions of all its tensors, as `permitted.launch` has them. If empty, the code may touch the bytes from the
            first element of a tensor to its last one. What else is in a storage, such as the guards of a case, is not the
            launch's.
    """
    storages = _storages(arguments)
    given: list[Argument] = []
    for name in names:
        value = arguments.get(name)
        if isinstance(value, torch.Tensor):
            given.append((storages[value.untyped_storage().data_ptr()][0], _offset(value)))
        else:
            given.append(value)
    x, y, z, *_ = (*grid, 1, 1)
    if regions:
        may_touch = permitted.permitted_bytes(regions, {address: name for address, (name, _) in storages.items()})
    else:
        may_touch = _bytes_of_tensors(arguments, storages)
    return Inputs((x, y, z), given, {name: _contents(storage) for name, storage in storages.values()}, may_touch)


def run(
    program: Program,
    inputs: Inputs,
    *,
    lds_bytes: int,
    schedules: Sequence[Schedule],
    watches: Sequence[Watch] = (),
    hazards: Hazards | None = None,
) -> tuple[Memory, Report]:
    """Run a program as `attn_amdgcn.checked` does, and write what it wrote into the buffers of the inputs."""
    memory, report = checked(
        program,
        inputs.grid,
        inputs.arguments,
        inputs.buffers,
        lds_bytes=lds_bytes,
        schedules=schedules,
        watches=watches,
        permitted=inputs.permitted,
        hazards=hazards,
    )
    for name, contents in inputs.buffers.items():
        for begin, held in memory.touched(name):
            contents[begin : begin + len(held)] = held
    return memory, report


def job_of(call: KernelCall, architecture: str, sizes: Mapping[str, int] | None = None) -> Job:
    """The job that compiles a launch.

    Args:
        sizes: bytes of the storages that the kernel is compiled for, by the names of tensors. A tensor that is not named has a
            storage of its own size.
    """
    given = sizes or {}
    pointers = {name: pointer(tensor, given.get(name)) for name, tensor in call.tensors.items() if tensor is not None}
    function = call.launch.kernel.fn
    arguments = call.arguments | pointers | call.launch.constants | call.launch.options
    return Job(function.__module__, function.__name__, architecture, arguments)


def pointer(tensor: torch.Tensor, size: int | None = None) -> Pointer:
    """A tensor as the compiler looks at it.

    Args:
        size: bytes of its storage; default: those that it has.
    """
    return Pointer(tensor.dtype, _offset(tensor) % 16 == 0, tensor.untyped_storage().size() if size is None else size)


def _storages(arguments: Mapping[str, Any]) -> dict[int, tuple[str, torch.UntypedStorage]]:
    """The storages of a launch's tensors by their address, each with the name of the first tensor that lies in it."""
    storages: dict[int, tuple[str, torch.UntypedStorage]] = {}
    for name, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor):
            storage = tensor.untyped_storage()
            storages.setdefault(storage.data_ptr(), (name, storage))
    return storages


def _bytes_of_tensors(arguments: Mapping[str, Any], storages: Mapping[int, tuple[str, torch.UntypedStorage]]) -> PermittedBytes:
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name, _ in storages.values()}
    for value in arguments.values():
        if isinstance(value, torch.Tensor) and value.numel():
            name, _ = storages[value.untyped_storage().data_ptr()]
            spans[name].append((_offset(value), _offset(value) + extent(value.shape, value.stride()) * value.itemsize))
    return PermittedBytes(spans, spans)


def _offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _contents(storage: torch.UntypedStorage) -> np.ndarray:
    """The bytes of a storage, which this shares."""
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


def inputs_at(
    tensors: Mapping[str, torch.Tensor], grid: tuple[int, int, int], numbers: Sequence[int], points: Sequence[bool]
) -> Inputs:
    """The inputs of a launch's code whose pointers are addresses on this machine.

    Args:
        tensors: by their names. The code may touch all of their storages.
        numbers: the kernel's arguments.
        points: which of them are addresses. One in no tensor, such as that of a variable of the host, may not be touched.
    """
    storages = _storages(tensors)
    given: list[Argument] = [
        _place(storages, number) if is_pointer else number for number, is_pointer in zip(numbers, points, strict=True)
    ]
    buffers = {name: _contents(storage) for name, storage in storages.values()}
    return Inputs(grid, given, {**buffers, ELSEWHERE: np.zeros(0, np.uint8)}, EVERYTHING)


ELSEWHERE = "memory of the host"


def _place(storages: Mapping[int, tuple[str, torch.UntypedStorage]], address: int) -> tuple[str, int] | None:
    if address == 0:
        return None
    for begin, (name, storage) in storages.items():
        if begin <= address < begin + max(storage.nbytes(), 1):
            return name, address - begin
    return ELSEWHERE, 0
