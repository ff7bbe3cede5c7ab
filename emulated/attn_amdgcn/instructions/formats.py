"""Formats of loads and stores: the number of bytes of each lane, and their places in vector registers.

A load of 8 or 16 bits fills a register with zeros or with the sign; its d16 form writes one half of the register and leaves the
other half as it is. A GPU whose registers have ECC (gfx90a, gfx940 and later gfx9) would write the other half, too (LLVM: "d16
preserves unused bits", which SRAM-ECC switches off), and gets no d16 loads.

Source: "Vector Memory Operations" and "Data Share Operations" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand
from attn_amdgcn.operands import put, row_of, unknown
from attn_amdgcn.pieces import Piece, Row, SourceRow, piece, value_of
from attn_amdgcn.storage import Storage
from attn_amdgcn.waves import Waves


@dataclass(frozen=True)
class DataFormat:
    """The data of one lane.

    Attributes:
        size: in bytes: 1, 2 or a multiple of 4.
        signed: True if 1 or 2 bytes are extended by their sign.
        half: "low" or "high" if the data is one half of a register.
    """

    size: int
    signed: bool = False
    half: str = ""

    @property
    def registers(self) -> int:
        return max(1, self.size // 4)


_WORDS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_PARTS = {"ubyte": (1, False), "sbyte": (1, True), "ushort": (2, False), "sshort": (2, True)}
_PARTS |= {"u8": (1, False), "i8": (1, True), "u16": (2, False), "i16": (2, True)}
_HALVES = {"": "low", "_hi": "high"}

LOADS = {name: DataFormat(size) for name, size in _WORDS.items()} | {name: DataFormat(*part) for name, part in _PARTS.items()}
"""Formats of loads, by the part of the mnemonic after "load_" or "read_"."""
for _hi, _half in _HALVES.items():
    for _name, (_size, _signed) in _PARTS.items():
        LOADS[f"{_name}_d16{_hi}"] = LOADS[f"d16{_hi}_{_name}"] = DataFormat(_size, _signed, _half)
    LOADS[f"short_d16{_hi}"] = LOADS[f"d16{_hi}_b16"] = DataFormat(2, False, _half)

STORES = {name: DataFormat(size) for name, size in _WORDS.items()}
"""Formats of stores, by the part of the mnemonic after "store_" or "write_"."""
for _name, _size in {"byte": 1, "short": 2, "b8": 1, "b16": 2}.items():
    STORES[_name] = DataFormat(_size)
    STORES[f"{_name}_d16_hi"] = STORES[f"d16_hi_{_name}"] = DataFormat(_size, half="high")


def returns_value(instruction: Instruction) -> bool:
    """True if an atomic instruction brings what was in memory: gfx9's glc and sc0, gfx11's glc, gfx12's th."""
    modifiers = instruction.modifiers
    return bool(modifiers.get("glc") or modifiers.get("sc0")) or "RETURN" in str(modifiers.get("th", ""))


def loaded(storage: Storage, place: np.ndarray, form: DataFormat) -> np.ndarray:
    """[..., registers, waves, lanes]: what lies at places, as registers get it; in the lower half, if the format has one."""
    if form.size >= 4:
        return storage.load(place, form.size // 4)
    value = storage.load_part(place, form.size)
    if form.signed:
        shift = 32 - 8 * form.size
        value = (value << np.uint32(shift)).view(np.int32) >> np.int32(shift)
        value = value.view(np.uint32)
    return value[..., None, :, :]


def stored(storage: Storage, place: np.ndarray, values: np.ndarray, form: DataFormat, lanes: np.ndarray | None) -> None:
    """Write values of [..., registers, waves, lanes] to places."""
    if form.size >= 4:
        storage.store(place, values, lanes)
    else:
        storage.store_part(place, values[..., 0, :, :], form.size, lanes)


def writes_data(
    instruction: Instruction, operand: Operand, form: DataFormat, kernel: Kernel
) -> Callable[[Waves, np.ndarray], None]:
    """Writes what `loaded` returns into an operand's registers, in the lanes that are on."""
    row = row_of(instruction, operand, form.registers, kernel)
    if not form.half:
        return writes_rows(row, form.registers)
    if kernel.architecture.startswith("gfx9"):
        raise unknown(instruction, "a d16 load of a GPU whose registers have ECC")
    keeps, shift = (np.uint32(0xFFFF), np.uint32(16)) if form.half == "high" else (np.uint32(0xFFFF0000), np.uint32(0))

    def write_half(waves: Waves, values: np.ndarray) -> None:
        put(waves, row, waves.vector[row] & keeps | (values[0] & np.uint32(0xFFFF)) << shift)

    return write_half


def data_target(instruction: Instruction, operand: Operand, form: DataFormat, kernel: Kernel) -> Piece:
    """The registers that a load of whole registers writes."""
    return rows_target(row_of(instruction, operand, form.registers, kernel), form.registers)


def rows_target(row: int, count: int, attribute: str = "vector") -> Piece:
    """A number of vector registers in an attribute of `Waves`, in the form to which an array is assigned."""
    return piece(f"waves.{attribute}[{{}}]", Row(tuple(range(row, row + count))))


def writes_rows(row: int, count: int) -> Callable[[Waves, np.ndarray], None]:
    """Writes [registers, waves, lanes] into consecutive registers, in the lanes that are on."""
    rows = slice(row, row + count)

    def write(waves: Waves, values: np.ndarray) -> None:
        if waves.lanes is None:
            waves.vector[rows] = values
        else:
            np.copyto(waves.vector[rows], values, where=waves.lanes)

    return write


def reads_data(instruction: Instruction, operand: Operand, form: DataFormat, kernel: Kernel) -> Callable[[Waves], np.ndarray]:
    """Reads what `stored` writes from an operand's registers."""
    return value_of(data_value(instruction, [operand], form, kernel))


def data_value(instruction: Instruction, operands: Sequence[Operand], form: DataFormat, kernel: Kernel) -> Piece:
    """[registers, waves, lanes]: what `stored` writes from an operand's registers; [operands, ...] of several."""
    first = [row_of(instruction, operand, form.registers, kernel) for operand in operands]
    rows = [tuple(range(row, row + form.registers)) for row in first]
    words = piece("waves.vector{}", SourceRow(rows[0] if len(rows) == 1 else tuple(rows)))
    return piece("({} >> {})", words, np.uint32(16)) if form.half == "high" else words
