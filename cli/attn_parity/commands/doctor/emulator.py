"""Launches on an AMD GPU beside the emulator: both begin with the same bytes, and those that they leave are compared.

Launches are those of small ragged cases, of calls that ship. A launch that reads what an earlier one wrote reads the emulator's
bytes on both sides. No AMD GPU has run this.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from attn_binaries.assembly import digest
from attn_binaries.shipped_calls import CALLS, ShippedCall, chosen, name_of_call
from attn_optimized.kernel_call import KernelCall
from attn_parity.commands.doctor.sections import Section

LAUNCHES = 20


class Difference(msgspec.Struct):
    """Elements of a tensor that differ, or bytes of its memory that belong to no tensor.

    Attributes:
        where: the tensor.
        count, of: how many differ, and of how many.
        first: the first one, counted in the tensor's order.
        gpu, emulator: its bits on both sides, in hexadecimal digits.
        most: the largest absolute difference; None of integers, of bytes, and where one side alone is NaN or infinite.
    """

    where: str
    count: int
    of: int
    first: int
    gpu: str
    emulator: str
    most: float | None = None


class Compared(msgspec.Struct):
    """A launch on both sides.

    Attributes:
        same_code: True if the GPU ran the very code that was emulated.
        may_round: the executed instructions that hardware may round in another way (`attn_amdgcn.inexact`).
    """

    same_code: bool
    may_round: tuple[str, ...]
    differences: list[Difference]

    @property
    def fault(self) -> str | None:
        """A difference that no rounding explains; None if there is none, or if other code may explain it."""
        wrong = next((each for each in self.differences if each.most is None or not self.may_round), None)
        if wrong is None or not self.same_code:
            return None
        return f"{wrong.where}: {wrong.count} of {wrong.of} differ, which no rounding explains: GPU or emulator is wrong"


def sections(architecture: str) -> Iterator[tuple[str, Callable[[], Section]]]:
    """The sections of the report, one for each call of LAUNCHES launches, which are spread evenly over the main ones."""
    every = [*chosen(architecture, main=True)]
    names = {every[len(every) * number // LAUNCHES] for number in range(LAUNCHES)}
    for call in CALLS:
        if own := {name for name in names if name_of_call(name) == call.name}:
            yield f"bytes of {call.name}", lambda call=call, own=own: compared(call, own, architecture)


def compared(call: ShippedCall, names: Collection[str], architecture: str, device: str = "cuda") -> Section:
    """Run the launches of a small case of a call on both sides, and compare those with these names."""
    from attn_amdgcn import inexact  # needs the extra `emulated`
    from attn_binaries.execution import cases_of, launches_of, target_of
    from attn_fuzz.emulated.compiler import ready
    from attn_fuzz.emulated.emulation import job_of, run_ready
    from attn_fuzz.run.case.trial import try_case

    found: dict[str, Compared] = {}

    def run(name: str, here: KernelCall, _: KernelCall) -> None:
        if 0 in here.launch.grid:
            return
        there = copied(here, device)
        code = on_gpu(there)
        job = job_of(here, architecture)
        emulated = ready(job)
        report = run_ready(emulated, here.arguments, here.launch.grid)
        if name in names:
            same_code = digest(code, job.kernel) == digest(emulated.compiled.text, job.kernel)
            may_round = inexact(emulated.program, report)
            found[name] = Compared(same_code, may_round, [*differences(copied(there, "cpu").tensors, here.tensors)])

    of_call = launches_of(call, architecture, run)
    verdict = try_case(cases_of(of_call)[0], target_of(of_call), "cpu")
    section: Section = {"launches": msgspec.to_builtins(found)}
    if verdict.kind == "limit":
        return {**section, "unavailable": verdict.message}
    faults = [f"{name}: {fault}" for name, each in found.items() if (fault := each.fault)]
    faults += [f"{verdict.kind}: {verdict.message}"] if verdict.failed else []
    return {**section, "error": "\n".join(faults)} if faults else section


def on_gpu(call: KernelCall) -> str:
    """Run a launch on the GPU of its tensors, and return the assembly of its code."""
    call.run(next(tensor.device for tensor in call.tensors.values() if tensor is not None))
    torch.cuda.synchronize()
    launch = call.launch
    return launch.kernel.warmup(**call.arguments, **launch.constants, grid=launch.grid, **launch.options).asm["amdgcn"]


def copied(call: KernelCall, device: str) -> KernelCall:
    """A launch whose tensors lie in copies of their memory, at the same places of it, on a device."""
    copies: dict[int, torch.UntypedStorage] = {}
    tensors = dict(call.tensors)
    for name, tensor in call.tensors.items():
        if tensor is not None:
            place = tensor.untyped_storage().data_ptr()
            if place not in copies:
                copies[place] = _memory(tensor).to(device, copy=True).untyped_storage()
            empty = torch.empty(0, dtype=tensor.dtype, device=device)
            tensors[name] = empty.set_(copies[place], tensor.storage_offset(), tensor.shape, tensor.stride())  # pyright: ignore[reportArgumentType]
    return call._replace(tensors=tensors)


def differences(gpu: Mapping[str, torch.Tensor | None], emulator: Mapping[str, torch.Tensor | None]) -> Iterator[Difference]:
    """The differences of tensors, and of bytes between them. A NaN may have any bits, and equals another NaN."""
    pairs: list[tuple[str, Any, Any]] = [(name, gpu[name], mine) for name, mine in emulator.items() if mine is not None]
    left = {mine.untyped_storage().data_ptr(): _memory(other) != _memory(mine) for _, other, mine in pairs}
    for name, other, mine in pairs:
        differ = left[mine.untyped_storage().data_ptr()]
        places = _places(mine)
        wrong = differ[places].any(1)
        differ[places] = False  # a byte of several tensors counts for the first one
        bits = [_memory(each)[places] for each in (other, mine)]
        values = [each.view(mine.dtype).flatten().to(torch.float64) for each in bits]
        wrong &= ~(values[0].isnan() & values[1].isnan())
        if wrong.any():
            most = (values[0] - values[1])[wrong].abs().max().item() if mine.dtype.is_floating_point else math.nan
            yield _difference(name, wrong, bits, most if math.isfinite(most) else None)
    for name, other, mine in pairs:
        differ = left.pop(mine.untyped_storage().data_ptr(), None)
        if differ is not None and differ.any():
            yield _difference(f"{name}, in no tensor", differ, [_memory(each).unsqueeze(1) for each in (other, mine)], None)


def _difference(where: str, wrong: torch.Tensor, bits: Sequence[torch.Tensor], most: float | None) -> Difference:
    first = int(wrong.nonzero()[0])
    gpu, emulator = (bytes(reversed(each[first].tolist())).hex() for each in bits)
    return Difference(where, int(wrong.sum()), wrong.numel(), first, gpu, emulator, most)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the storage that a tensor lies in, which this shares."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _places(tensor: torch.Tensor) -> torch.Tensor:
    """[elements, bytes of an element] int64: the bytes of a tensor in its storage."""
    elements = torch.arange(tensor.untyped_storage().nbytes() // tensor.itemsize)
    index = elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).reshape(-1, 1)
    return tensor.itemsize * index + torch.arange(tensor.itemsize)
