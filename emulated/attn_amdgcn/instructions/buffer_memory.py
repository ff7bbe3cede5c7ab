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
has bit 119, and its base is PRIVATE_BASE. Base and soffset are not swizzled: they count the bytes of all lanes.

Source: "Buffer Addressing" and "Range checking" in AMD's Instinct MI300 ISA and RDNA4 ISA; "Relaxed Buffer OOB Mode"
in LLVM's User Guide for AMDGPU Backend.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named, Operand, Register
from attn_amdgcn.errors import EmulationFault, UnknownInstructionError
from attn_amdgcn.instructions import scratch, to_lds
from attn_amdgcn.instructions.formats import (
    LOADS,
    STORES,
    DataFormat,
    data_target,
    reads_data,
    writes_data,
)
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_statements, own_step
from attn_amdgcn.instructions.global_memory import CACHE, store_at, values_at
from attn_amdgcn.memory import BASE
from attn_amdgcn.operands import KINDS, number, put_statement, row_of, scalar_index, scalar_value, unknown
from attn_amdgcn.pieces import Alone, Piece, SourceRow, piece, value_of
from attn_amdgcn.waves import Waves

MAX_RANGES = 1 << 10
"""The most ranges that are cached."""
MODIFIERS = ("offset", "offen", *CACHE)
PRIVATE_BASE = 0x1234_0000_0000
"""The address of the private segment of all waves in its resource. No buffer lies there."""
PRIVATE_WORDS = (PRIVATE_BASE & 0xFFFFFFFF, 1 << 31 | PRIVATE_BASE >> 32, 0xFFFFFFFF, 0x00E27000)
"""The resource of the private segment: swizzled, without a limit, for 64 lanes of 4 bytes."""


def private_offset(waves: Waves) -> np.ndarray:
    """[waves] int64: the offset of each wave's bytes in the private segment."""
    return waves.number * waves.shape[1] * (-(-waves.shared.scratch_bytes // 16) * 16)


class Range(NamedTuple):
    """The memory that an instruction may touch: [waves, 1] int64, or [instructions, waves, 1].

    Attributes:
        begin: the place (address less BASE) of vaddr 0 and `offset` 0, or its byte in each lane's scratch.
        length: the bytes after it that are in range.
        least: the least of `length`.
        is_private: True if this is scratch.
    """

    begin: np.ndarray
    length: np.ndarray
    least: int
    is_private: bool = False


@own_statements(" ".join(f"buffer_load_{name}" for name in LOADS))
def buffer_load(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    form = LOADS[instruction.name.removeprefix("buffer_load_")]
    if "lds" in instruction.modifiers:
        check_count(instruction, 3)
        check_modifiers(instruction, "lds", *MODIFIERS)
        value = _load_value(instruction, instruction.operands, form, kernel)
        write = to_lds.writes(instruction, form, to_lds.BITS_OF_M0.get(kernel.architecture, 0), kernel)
        return (piece("{}(waves, {})", write, value),)
    target, *operands = _operands(instruction)
    value = _load_value(instruction, operands, form, kernel)
    if form.half:
        return (piece("{}(waves, {})", writes_data(instruction, target, form, kernel), value),)
    return piece("on = waves.lanes"), put_statement(data_target(instruction, target, form, kernel), value)


def _load_value(instruction: Instruction, operands: Sequence[Operand], form: DataFormat, kernel: Kernel) -> Piece:
    """[registers, waves, lanes]: what a load brings; its operands are vaddr, the resource and soffset."""
    address, resource, soffset = operands
    within, offset = _range(instruction, resource, soffset, kernel), _offset(instruction, address, kernel)
    return piece("{}(waves, {}, {}, {}, {})", _loaded, within, offset, form, Alone(instruction))


def _loaded(waves: Waves, within: Range, offset: np.ndarray, form: DataFormat, instruction: Instruction) -> np.ndarray:
    """[..., registers, waves, lanes]: what lies at offsets in a range."""
    if within.is_private:
        return scratch.values_at(waves, within.begin + offset, form)
    fits, parts = _fits(within, offset, form)
    if not parts:
        return _values(instruction, waves, within, offset, fits, form)
    words = [_values(instruction, waves, within, offset + 4 * i, fits[i], DataFormat(4)) for i in range(form.registers)]
    return np.concatenate(words, axis=-3)


@own_step(" ".join(f"buffer_store_{name}" for name in STORES))
def buffer_store(instruction: Instruction, kernel: Kernel) -> Step:
    form = STORES[instruction.name.removeprefix("buffer_store_")]
    source, address, resource, soffset = _operands(instruction)
    ranges = value_of(_range(instruction, resource, soffset, kernel))
    offsets = value_of(_offset(instruction, address, kernel))
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
            _store(instruction, waves, within, offset + 4 * i, fits[i], value[None], DataFormat(4))

    return step


def _operands(instruction: Instruction) -> tuple[Operand, ...]:
    """Data, vaddr, the resource and soffset."""
    check_count(instruction, 4)
    check_modifiers(instruction, *MODIFIERS)
    return instruction.operands


def _fits(within: Range, offset: np.ndarray, form: DataFormat) -> tuple:
    """The lanes in range (None: all), and True if that differs between the words of a lane: then they are given for each
    word."""
    if int(np.maximum.reduce(offset, axis=None)) <= within.least - form.size:
        return None, False
    fits = offset <= within.length - form.size
    if fits.all():
        return None, False
    if form.size > 4 and ((offset <= within.length - 4) != fits).any():
        return [offset <= within.length - 4 * (i + 1) for i in range(form.registers)], True
    return fits, False


def _values(
    instruction: Instruction, waves: Waves, within: Range, offset: np.ndarray, fits: np.ndarray | None, form: DataFormat
) -> np.ndarray:
    values = values_at(waves, within.begin + offset, form, instruction, _both(waves.lanes, fits))
    return values if fits is None else values * fits[..., None, :, :]


def _store(
    instruction: Instruction,
    waves: Waves,
    within: Range,
    offset: np.ndarray,
    fits: np.ndarray | None,
    values: np.ndarray,
    form: DataFormat,
) -> None:
    store_at(waves, within.begin + offset, values, form, instruction, _both(waves.lanes, fits))


def _both(lanes: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | None:
    """The lanes that are in both sets; None stands for all lanes."""
    return lanes if others is None else others if lanes is None else others & lanes


def _offset(instruction: Instruction, operand: Operand, kernel: Kernel) -> Piece:
    """[waves, lanes] int64: vaddr, or 0 without `offen`, plus the instruction's `offset`."""
    constant = np.array([[number(instruction, "offset")]])
    if "offen" in instruction.modifiers:
        return piece("waves.vector{} + {}", SourceRow(row_of(instruction, operand, 1, kernel)), constant)
    if not isinstance(operand.of, Named) or operand.of.text != "off":
        raise unknown(instruction, "a vaddr without offen")
    return piece("{}(waves.shape, {}) + {}", np.zeros, np.int64, constant)


def _range(instruction: Instruction, resource: Operand, soffset: Operand, kernel: Kernel) -> Piece:
    """The memory that an instruction may touch, as a range of vaddr plus `offset`."""
    register = resource.of
    is_resource = isinstance(register, Register) and register.bank == "s" and register.count == 4
    first = scalar_index(register) if isinstance(register, Register) and is_resource else None
    if first is None:
        raise unknown(instruction, "a resource is 4 scalar registers")
    if isinstance(soffset.of, Literal) and not isinstance(soffset.of.number, int):
        raise unknown(instruction)
    words, further = (slice(None), slice(first, first + 4)), scalar_value(soffset, KINDS["u32"], kernel)
    return piece("{}(waves, waves.scalar[{}], {}, {})", _range_of, words, further, kernel.architecture)


def _range_of(waves: Waves, words: np.ndarray, further: np.ndarray, architecture: str) -> Range:
    """The range of a resource [waves, 4] and soffset, [waves] or for each of several instructions [instructions, 1].

    Many instructions find the same ones, and so the same range.
    """
    known, key = waves.shared.ranges, (words.tobytes(), further.tobytes(), further.ndim)
    within = known.get(key)
    if within is None:
        within = _found_range(waves, words, further.astype(np.int64), architecture)
        if not within.is_private:  # it depends on the waves' numbers, too
            if len(known) >= MAX_RANGES:
                known.clear()
            known[key] = within
    return within


def _found_range(waves: Waves, words: np.ndarray, further: np.ndarray, architecture: str) -> Range:
    if architecture == "gfx90a" and (words[:, 2:] == PRIVATE_WORDS[2:]).all():
        base = (words[:, 0].astype(np.int64) | (words[:, 1].astype(np.int64) & 0xFFFF) << 32) - PRIVATE_BASE
        place, lanes = base - private_offset(waves) + further, waves.shape[1]
        if (place % (4 * lanes)).any():
            raise UnknownInstructionError("a place in scratch that is no multiple of a word of each lane")
        return Range((place // lanes)[..., None], np.array([[0]]), 0, is_private=True)
    described = _described_gfx1250 if architecture == "gfx1250" else _described
    base, records, strange = described(words.astype(np.int64), 0 if architecture.startswith("gfx9") else 3)
    if strange.any():
        wave = int(strange.argmax())
        text = " ".join(f"0x{word:08x}" for word in words[wave])
        what = f"the resource {text} is no raw buffer without swizzle"
        raise EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]))
    length = records - further
    return Range((base + further - BASE)[..., None], length[..., None], int(length.min()))


def _described(words: np.ndarray, checks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base, num_records, and whether the resource [waves, 4] is another than is known here.

    gfx9 counts num_records in bytes where it does not swizzle: there a stride changes nothing but for an index, which no
    instruction here has.
    """
    strange = (words[:, 1] >> (30 if checks == 0 else 16) != 0) | (words[:, 3] >> 23 & 1 != 0) | (words[:, 3] >> 28 != checks)
    return words[:, 0] | (words[:, 1] & 0xFFFF) << 32, words[:, 2], strange


def _described_gfx1250(words: np.ndarray, checks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = words[:, 0] | (words[:, 1] & 0x1FFFFFF) << 32
    return base, words[:, 1] >> 25 | words[:, 2] << 7 | (words[:, 3] & 0x3F) << 39, words[:, 3] >> 6 != 0
