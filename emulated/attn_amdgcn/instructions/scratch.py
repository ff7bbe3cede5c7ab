"""Loads and stores of scratch: the private memory of each lane, where registers are spilled.

An address is vaddr plus saddr plus `offset`, each of which may be missing; each lane has its own bytes from 0 on. An address
outside the bytes that the kernel declares is a fault.

Source: "Scratch Addressing" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Named, Operand
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.formats import LOADS, STORES, DataFormat, loaded, reads_data, stored, writes_data
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.instructions.global_memory import CACHE
from attn_amdgcn.operands import KINDS, number, reads_scalar, row_of
from attn_amdgcn.storage import Storage
from attn_amdgcn.waves import Waves


@own_step(" ".join(f"scratch_load_{name}" for name in LOADS))
def scratch_load(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", *CACHE)
    form = LOADS[instruction.name.removeprefix("scratch_load_")]
    target, address, base = instruction.operands
    write = writes_data(instruction, target, form, kernel)
    if (word := _constant_word(instruction, address, base, form)) is not None:

        def reload(waves: Waves) -> None:
            _check_constant(waves, 4 * word, form)
            write(waves, waves.scratch[word : word + form.registers])

        return reload
    addresses = _addresses(instruction, address, base, kernel)

    return lambda waves: write(waves, values_at(waves, addresses(waves), form))


@own_step(" ".join(f"scratch_store_{name}" for name in STORES))
def scratch_store(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", *CACHE)
    form = STORES[instruction.name.removeprefix("scratch_store_")]
    address, source, base = instruction.operands
    read = reads_data(instruction, source, form, kernel)
    if (word := _constant_word(instruction, address, base, form)) is not None:

        def spill(waves: Waves) -> None:
            _check_constant(waves, 4 * word, form)
            words = waves.scratch[word : word + form.registers]
            np.copyto(words, read(waves), where=True if waves.lanes is None else waves.lanes)

        return spill
    addresses = _addresses(instruction, address, base, kernel)

    return lambda waves: store_at(waves, addresses(waves), read(waves), form)


def values_at(waves: Waves, address: np.ndarray, form: DataFormat) -> np.ndarray:
    """The values at [..., waves, lanes] int64 addresses of each lane's scratch.

    Raises:
        EmulationFault: a byte lies beyond the kernel's scratch, or an address is no multiple of the size of its words.
    """
    place = _checked(waves, address, form)
    storage = Storage(waves.scratch.reshape(-1).view(np.uint8))
    pieces = [loaded(storage, _places(waves, place + offset), piece) for offset, piece in _pieces(form)]
    return np.concatenate(pieces, axis=-3)


def store_at(waves: Waves, address: np.ndarray, values: np.ndarray, form: DataFormat) -> None:
    """Write values there."""
    assert waves.scratch.flags.c_contiguous
    place = _checked(waves, address, form)
    storage = Storage(waves.scratch.reshape(-1).view(np.uint8))
    for (offset, piece), value in zip(_pieces(form), values, strict=True):
        stored(storage, _places(waves, place + offset), value[None], piece, waves.lanes)


def _is_off(operand: Operand) -> bool:
    return isinstance(operand.of, Named) and operand.of.text == "off"


def _constant_word(instruction: Instruction, address: Operand, base: Operand, form: DataFormat) -> int | None:
    """The number of the first word, if the address is one for all lanes that is a multiple of 4, and the data is words."""
    offset = number(instruction, "offset")
    if not _is_off(address) or not _is_off(base) or form.size < 4 or offset % 4 or offset < 0:
        return None
    return offset // 4


def _check_constant(waves: Waves, address: int, form: DataFormat) -> None:
    if address + form.size > waves.shared.scratch_bytes:
        _fault(waves, address, form, 0, 0)


def _fault(waves: Waves, address: int, form: DataFormat, wave: int, lane: int) -> None:
    what = f"{form.size} bytes at byte {address} of scratch, of which a lane has {waves.shared.scratch_bytes} bytes"
    raise EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)


def _pieces(form: DataFormat) -> list[tuple[int, DataFormat]]:
    """The words of a format, each at its offset: in scratch the words of one lane do not lie side by side."""
    return [(0, form)] if form.size < 4 else [(4 * i, DataFormat(4)) for i in range(form.registers)]


def _addresses(instruction: Instruction, address: Operand, base: Operand, kernel: Kernel) -> Callable[[Waves], np.ndarray]:
    """[waves, lanes] int64: the byte of each lane's scratch at which the access begins."""
    row = None if _is_off(address) else row_of(instruction, address, 1, kernel)
    read_base = None if _is_off(base) else reads_scalar(base, KINDS["u32"], kernel)
    offset = number(instruction, "offset")

    def addresses(waves: Waves) -> np.ndarray:
        place = np.full(waves.shape, offset, np.int64) if row is None else waves.vector[row].astype(np.int64) + offset
        if read_base is not None:
            place += read_base(waves).astype(np.int64)[:, None]
        return place & 0xFFFFFFFF

    return addresses


def _checked(waves: Waves, address: np.ndarray, form: DataFormat) -> np.ndarray:
    """The addresses. A lane that is off begins at 0."""
    outside = (address < 0) | (address > waves.shared.scratch_bytes - form.size)
    if waves.lanes is not None:
        outside &= waves.lanes
        address = np.where(waves.lanes, address, 0)
    if outside.any():
        first = np.argwhere(outside)[0].tolist()
        *_, wave, lane = first
        _fault(waves, int(address[*first]), form, wave, lane)
    if (address & min(form.size, 4) - 1).any():
        raise EmulationFault(f"{form.size} bytes of scratch at an address that is no multiple of {min(form.size, 4)}")
    return address


def _places(waves: Waves, address: np.ndarray) -> np.ndarray:
    """The place of a byte of each lane in `Waves.scratch`, which is [words, waves, lanes]."""
    num_waves, num_lanes = waves.shape
    lane = np.arange(num_waves * num_lanes).reshape(num_waves, num_lanes)
    return ((address >> 2) * (num_waves * num_lanes) + lane) * 4 + (address & 3)
