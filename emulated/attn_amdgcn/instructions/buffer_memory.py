"""Loads and stores of buffers: a resource of four scalar registers describes a range of memory, and bounds are checked.

An address is the resource's base, plus soffset, plus the instruction's `offset`, plus vaddr with `offen`. Each word of 32 bits
(or the whole data, if it is shorter) is out of range where offset + vaddr + its bytes exceed num_records - soffset: a load
brings 0, a store does nothing. The sum does not wrap at 32 bits: a lane whose vaddr is 0x80000000 is out of a range of 2 GiB.
What is in range must lie in one of the launch's buffers.

A resource has no stride here, which makes its buffer raw, and no swizzle:
* gfx9: base in bits 47:0, stride and swizzle in bits 63:48, num_records in bits 95:64; bit 119 would add the lane's number.
* gfx11 and gfx12: the same, and bits 125:124, how the range is checked, are 3 (raw).
* gfx1250: base in bits 56:0, num_records in bits 101:57.

gfx90a reaches scratch by buffer instructions. A kernel's first scalar registers are then the resource of the private segment,
which is swizzled so that each lane has its own bytes, and to whose base the kernel adds the offset of its wave. This resource
has bit 119, and its base is PRIVATE_BASE.

Source: "Buffer Addressing" and "Range checking" in AMD's Instinct MI300 ISA and RDNA4 ISA; "Relaxed Buffer OOB Mode"
in LLVM's User Guide for AMDGPU Backend.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Operand, Register
from attn_amdgcn.errors import Fault
from attn_amdgcn.instructions import scratch, to_lds
from attn_amdgcn.instructions.formats import LOADS, STORES, Format, data_row, loaded, number, reads_data, stored, writes_data
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.instructions.global_memory import CACHE
from attn_amdgcn.memory import BASE
from attn_amdgcn.operands import KINDS, Read, reads_scalar, scalar_index, unknown
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import Waves

MODIFIERS = ("offset", "offen", *CACHE)
PRIVATE_BASE = 0x1234_0000_0000
"""Where the private segment of all waves begins, as its resource says: no buffer lies there."""
PRIVATE_WORDS = (PRIVATE_BASE & 0xFFFFFFFF, 1 << 31 | PRIVATE_BASE >> 32, 0xFFFFFFFF, 0x00E27000)
"""The resource of the private segment: swizzled, without a limit, for 64 lanes of 4 bytes."""


def private_offset(waves: Waves) -> np.ndarray:
    """[waves] int64: where in the private segment the bytes of a wave begin."""
    return waves.number * waves.shape[1] * (-(-waves.shared.scratch_bytes // 16) * 16)


class Range(NamedTuple):
    """What an instruction may touch: [waves, 1] int64.

    Attributes:
        begin: the place (address less BASE) of vaddr 0, or its byte in each lane's scratch.
        length: the bytes behind it that are in range.
        least: the least of `length`.
        is_private: whether this is scratch.
    """

    begin: np.ndarray
    length: np.ndarray
    least: int
    is_private: bool = False


@own_step(" ".join(f"buffer_load_{name}" for name in LOADS))
def buffer_load(instruction: Instruction, kernel: Kernel) -> Step:
    form = LOADS[instruction.name.removeprefix("buffer_load_")]
    if "lds" in instruction.modifiers:
        check_count(instruction, 3)
        check_modifiers(instruction, "lds", *MODIFIERS)
        address, resource, soffset = instruction.operands
        write = to_lds.writes(instruction, form, to_lds.BITS_OF_M0.get(kernel.architecture, 0), kernel)
    else:
        target, address, resource, soffset = _operands(instruction)
        write = writes_data(instruction, target, form, kernel)
    ranges, offsets = _ranges(instruction, resource, soffset, kernel), _offsets(instruction, address, kernel)

    def step(waves: Waves) -> None:
        within, offset = ranges(waves), offsets(waves)
        if within.is_private:
            write(waves, scratch.values_at(waves, within.begin + offset, form))
            return
        fits, parts = _fits(within, offset, form)
        if not parts:
            write(waves, _values(instruction, waves, within, offset, fits, form))
            return
        word = Format(4)
        values = [_values(instruction, waves, within, offset + 4 * i, fits[i], word) for i in range(form.registers)]
        write(waves, np.concatenate(values))

    return step


@own_step(" ".join(f"buffer_store_{name}" for name in STORES))
def buffer_store(instruction: Instruction, kernel: Kernel) -> Step:
    form = STORES[instruction.name.removeprefix("buffer_store_")]
    source, address, resource, soffset = _operands(instruction)
    ranges, offsets = _ranges(instruction, resource, soffset, kernel), _offsets(instruction, address, kernel)
    read = reads_data(instruction, source, form, kernel)

    def step(waves: Waves) -> None:
        within, offset, values = ranges(waves), offsets(waves), read(waves)
        if within.is_private:
            scratch.store_at(waves, within.begin + offset, values, form)
            return
        fits, parts = _fits(within, offset, form)
        if not parts:
            _store(instruction, waves, within, offset, fits, values, form)
            return
        for i, value in enumerate(values):
            _store(instruction, waves, within, offset + 4 * i, fits[i], value[None], Format(4))

    return step


def _operands(instruction: Instruction) -> tuple[Operand, ...]:
    """Data, vaddr, the resource and soffset."""
    check_count(instruction, 4)
    check_modifiers(instruction, *MODIFIERS)
    return instruction.operands


def _fits(within: Range, offset: np.ndarray, form: Format) -> tuple:
    """Which lanes are in range (None if all are), and whether that differs between the words of a lane: then for each word."""
    if int(np.maximum.reduce(offset, axis=None)) <= within.least - form.size:
        return None, False
    fits = offset <= within.length - form.size
    if fits.all():
        return None, False
    if form.size > 4 and ((offset <= within.length - 4) != fits).any():
        return [offset <= within.length - 4 * (i + 1) for i in range(form.registers)], True
    return fits, False


def _values(
    instruction: Instruction, waves: Waves, within: Range, offset: np.ndarray, fits: np.ndarray | None, form: Format
) -> np.ndarray:
    memory = waves.shared.memory
    lanes = waves.lanes if fits is None else fits if waves.lanes is None else fits & waves.lanes
    place = memory.checked(within.begin + offset, form.size, lanes, waves)
    for watch in waves.shared.watches:
        watch.global_read(Access(waves, place, form.size, lanes, instruction))
    values = loaded(memory, place, form)
    return values if fits is None else values * fits


def _store(
    instruction: Instruction,
    waves: Waves,
    within: Range,
    offset: np.ndarray,
    fits: np.ndarray | None,
    values: np.ndarray,
    form: Format,
) -> None:
    memory = waves.shared.memory
    lanes = waves.lanes if fits is None else fits if waves.lanes is None else fits & waves.lanes
    place = memory.checked(within.begin + offset, form.size, lanes, waves)
    for watch in waves.shared.watches:
        watch.global_written(Access(waves, place, form.size, lanes, instruction), values)
    stored(memory, place, values, form, lanes)


def _offsets(instruction: Instruction, operand: Operand, kernel: Kernel) -> Callable[[Waves], np.ndarray]:
    """[waves, lanes] int64: vaddr, or 0 without `offen`."""
    if "offen" in instruction.modifiers:
        row = data_row(instruction, operand, 1, kernel)
        return lambda waves: waves.vector[row].astype(np.int64)
    if not isinstance(operand.of, Named) or operand.of.text != "off":
        raise unknown(instruction, "a vaddr without offen")
    return lambda waves: np.zeros(waves.shape, np.int64)


def _ranges(instruction: Instruction, resource: Operand, soffset: Operand, kernel: Kernel) -> Callable[[Waves], Range]:
    register = resource.of
    is_resource = isinstance(register, Register) and register.bank == "s" and register.count == 4
    first = scalar_index(register) if isinstance(register, Register) and is_resource else None
    if first is None:
        raise unknown(instruction, "a resource is 4 scalar registers")
    described = _described_gfx1250 if kernel.architecture == "gfx1250" else _described
    checks = 0 if kernel.architecture.startswith("gfx9") else 3
    further: Read = reads_scalar(soffset, KINDS["u32"], kernel)
    constant = number(instruction, "offset")
    if isinstance(soffset.of, Literal) and not isinstance(soffset.of.number, int):
        raise unknown(instruction)

    last: list = [b"", None]  # many runs find the same resource, and so the same range

    def ranges(waves: Waves) -> Range:
        key = waves.scalar[:, first : first + 4].tobytes() + further(waves).tobytes()
        if last[0] != key:
            last[:] = key, found(waves)
        within: Range = last[1]
        if within.is_private:  # it depends on the waves' numbers, too
            last[0] = b""
        return within

    def found(waves: Waves) -> Range:
        words = waves.scalar[:, first : first + 4]
        if kernel.architecture == "gfx90a" and (words[:, 2:] == PRIVATE_WORDS[2:]).all():
            base = (words[:, 0].astype(np.int64) | (words[:, 1].astype(np.int64) & 0xFFFF) << 32) - PRIVATE_BASE
            begin = base - private_offset(waves) + further(waves).astype(np.int64) + constant
            return Range(begin[:, None], np.array([[0]]), 0, is_private=True)
        base, records, strange = described(waves.scalar[:, first : first + 4].astype(np.int64), checks)
        if strange.any():
            wave = int(strange.argmax())
            words = " ".join(f"0x{word:08x}" for word in waves.scalar[wave, first : first + 4])
            where = {"wave": int(waves.number[wave]), "workgroup": int(waves.workgroup[wave])}
            raise Fault(f"the resource {words} is no raw buffer without stride and swizzle", **where)
        more = further(waves).astype(np.int64)
        length = records - more - constant
        return Range((base + more + (constant - BASE))[:, None], length[:, None], int(length.min()))

    return ranges


def _described(words: np.ndarray, checks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base, num_records, and whether the resource [waves, 4] is another than is known here."""
    strange = (words[:, 1] >> 16 != 0) | (words[:, 3] >> 23 & 1 != 0) | (words[:, 3] >> 28 != checks)
    return words[:, 0] | (words[:, 1] & 0xFFFF) << 32, words[:, 2], strange


def _described_gfx1250(words: np.ndarray, checks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = words[:, 0] | (words[:, 1] & 0x1FFFFFF) << 32
    return base, words[:, 1] >> 25 | words[:, 2] << 7 | (words[:, 3] & 0x3F) << 39, words[:, 3] >> 6 != 0
