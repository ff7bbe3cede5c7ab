"""A step whose tensors lie against unmapped pages, so that a read past an end of one of them faults.

In other steps a tensor lies inside of a larger one (`attn_fuzz.cases.tensors`), where a stray read gives NaN. That goes
unnoticed if a mask hides the NaN. Here the allocation of each tensor is cut where the tensor ends, and the page after it is
unmapped; or it is cut where the tensor begins. The other side of the tensor stays as it is.

Tensors that share an allocation, such as slices of one qkv, have one fence, from the beginning of the first to the end of the
last. That of a KV cache stands around the allocation of all layers.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from attn_contract.memory import memory_of
from attn_fuzz.cases import allocations, tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run.case import devices, unmapped
from attn_fuzz.run.case.unmapped import Pool, Side

ALIGNMENT = 16
"""Kernels may load this number of bytes at once from a tensor that begins at a multiple of it."""


class Fence(NamedTuple):
    """The fence of a call: at one side of each tensor, or of one of them.

    Args:
        side: the side of the tensors where the fence is.
        only: the name of the only tensor with a fence; None: all have one.
    """

    side: Side
    only: str | None = None

    @property
    def words(self) -> str:
        """The place where an access faults, in words."""
        where = "past the end" if self.side == "end" else "before the beginning"
        return f"{where} of {self.only or 'a tensor'}"


EVERYTHING = (Fence("end"), Fence("beginning"))


class _Extent(NamedTuple):
    """The bytes of an allocation that tensors of a call have.

    Attributes:
        name: the name of the tensors.
        begin, end: from the first byte of the first tensor to the end of the last one.
        alignment: in bytes, of the beginning of the tensors: ALIGNMENT if one of them has it, else that of an element.
    """

    name: str
    begin: int
    end: int
    alignment: int


def each_alone(case: Case) -> Iterator[Fence]:
    """A fence at either side of each tensor of a case."""
    extents = _extents(tensors.build(case), case).values()
    for everything in EVERYTHING:
        yield from (everything._replace(only=extent.name) for extent in extents)


def sent(step: Step, case: Case, device: str, fence: Fence) -> Step:
    """A copy of a step on a device, with a fence. Memory of an earlier such step is used again.

    Shapes, strides and numbers stay. So do storage offsets if the fence is after the tensors; before them, an allocation
    begins where its first tensor does. A tensor that begins at a multiple of ALIGNMENT still does. Where this needs it, up to
    ALIGNMENT - 1 bytes lie between a tensor and the unmapped page. Whole allocations, such as `Step.out_buffer`, are flat: what
    is left of them.

    Raises:
        unmapped.NoPagesError: the device has no such memory.
        torch.OutOfMemoryError: the GPU has no memory left.
    """
    pool = unmapped.pool(device)
    pool.give_back()
    extents = _extents(step, case)
    placed: dict[int, tuple[torch.UntypedStorage, int]] = {}
    for key, storage in devices.storages(step).items():
        extent = extents.get(key)
        if extent is None or fence.only not in (None, extent.name):
            placed[key] = storage.to(device=torch.device(device)), 0
        else:
            placed[key] = _fenced(storage, extent, fence.side, pool)

    def place(tensor: torch.Tensor) -> torch.Tensor:
        storage, cut = placed[tensor.untyped_storage().data_ptr()]
        empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        begin, end = _bytes(tensor)
        if tensor.numel() and (begin < cut or end > cut + storage.nbytes()):
            return empty.set_(storage, 0, (storage.nbytes() // tensor.itemsize,), (1,))
        return empty.set_(storage, max(0, begin - cut) // tensor.itemsize, tensor.shape, tensor.stride())

    fenced = devices.mapped(step, place)
    if step.raw is None:
        return fenced
    _, cut = placed[step.raw.untyped_storage().data_ptr()]
    return _with_views_cut(fenced, cut // step.raw.itemsize)


def _fenced(storage: torch.UntypedStorage, extent: _Extent, side: Side, pool: Pool) -> tuple[torch.UntypedStorage, int]:
    """A copy of what is left of an allocation, and how many bytes are cut off before it."""
    aligned = extent.alignment
    begin, end = 0, -(-extent.end // aligned) * aligned
    if side == "beginning":
        begin, end = extent.begin // aligned * aligned, storage.nbytes()
    memory = pool.tensor(end - begin, side)
    source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[begin:end]
    memory[: len(source)].copy_(source)
    return memory.untyped_storage(), begin


def _with_views_cut(step: Step, elements: int) -> Step:
    """The step whose views of the KV cache begin some elements earlier in its allocation."""

    def moved(holder: Any) -> Any:
        return dataclasses.replace(holder, view=dataclasses.replace(holder.view, offset=holder.view.offset - elements))

    return dataclasses.replace(moved(step), writes=tuple(moved(write) for write in step.writes))


def _extents(step: Step, case: Case) -> dict[int, _Extent]:
    """The extent of a step's tensors in each allocation, by the allocation's address. An empty tensor has none."""
    named = {**step.inputs(), **step.layer.tensors, "out": step.out, "lse": step.lse}
    if step.raw is not None and case.cache is not None:
        named["kv_cache"] = step.raw[allocations.inside_guards(case, case.cache)]
    extents: dict[int, _Extent] = {}
    for name, tensor in named.items():
        if tensor is None or not tensor.numel():
            continue
        begin, end = _bytes(tensor)
        new = _Extent(name, begin, end, tensor.itemsize if begin % ALIGNMENT else ALIGNMENT)
        key = tensor.untyped_storage().data_ptr()
        extents[key] = _together(extents[key], new) if key in extents else new
    return extents


def _together(one: _Extent, other: _Extent) -> _Extent:
    names = one.name.split(", ")
    if other.name.partition(" of write ")[0] not in names:
        names.append(other.name)
    return _Extent(", ".join(names), min(one.begin, other.begin), max(one.end, other.end), max(one.alignment, other.alignment))


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    """A tensor's first byte in its storage, and the byte past its last one."""
    begin = int(tensor.storage_offset()) * tensor.itemsize
    first, end = memory_of(tensor)
    return begin, begin + end - first
