"""Loads and stores of LDS, the memory of a workgroup.

An address is vaddr plus `offset`, in bytes and modulo 2 ** 32, so vaddr may be negative. The forms of two addresses add
offset0 and offset1 times an element's size, and st64 or stride64 another factor of 64. An address beyond the workgroup's LDS is
a fault. But for gfx1250 Triton gives lanes that are to store nothing the address 0x7fffffff, where hardware writes nothing.

Source: "LDS Indexed Instructions" in AMD's Instinct MI300 ISA, and "DS Instructions" in AMD's RDNA4 ISA; for negative vaddr
isDSOffsetLegal in LLVM; for 0x7fffffff Triton's pull request 10588.
"""

from collections.abc import Sequence

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.formats import (
    LOADS,
    STORES,
    DataFormat,
    data_target,
    data_value,
    loaded,
    rows_target,
    stored,
    writes_data,
)
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_statements, own_step
from attn_amdgcn.operands import number, put_statement, row_of, unknown
from attn_amdgcn.pieces import Alone, Piece, SourceRow, piece, value_of
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import Waves

NOWHERE = 0x7FFFFFFF
"""The address that tells a lane to write nothing into LDS."""
_PAIRS = {"read2": 1, "read2st64": 64, "load_2addr": 1, "load_2addr_stride64": 64}
_PAIRS |= {"write2": 1, "write2st64": 64, "store_2addr": 1, "store_2addr_stride64": 64}
"""The factor of the offsets of forms with two addresses."""


def reads(waves: Waves, place: np.ndarray, form: DataFormat, instruction: Instruction) -> np.ndarray:
    """The values at places in LDS."""
    for watch in waves.shared.watches:
        for each in place.reshape(-1, *place.shape[-2:]):
            watch.lds_read(Access(waves, each, form.size, waves.lanes, instruction))
    return loaded(waves.shared.lds_storage, place, form)


def writes(waves: Waves, place: np.ndarray, values: np.ndarray, form: DataFormat, instruction: Instruction) -> None:
    """Write values to places in LDS."""
    if place.ndim == 2 or (waves.lanes is None and not waves.shared.watches):
        writes_lanes(waves, place, values, form, instruction, waves.lanes)
    else:
        for each, data in zip(place, values, strict=True):
            writes(waves, each, data, form, instruction)


def writes_lanes(
    waves: Waves,
    place: np.ndarray,
    values: np.ndarray,
    form: DataFormat,
    instruction: Instruction,
    lanes: np.ndarray | None,
) -> None:
    """Write values [registers, waves, lanes] of some lanes, or of all, to places [waves, lanes] in LDS."""
    for watch in waves.shared.watches:
        watch.lds_written(Access(waves, place, form.size, lanes, instruction), values)
    stored(waves.shared.lds_storage, place, values, form, lanes)


_PLAIN = [name for name in LOADS if "word" not in name and "byte" not in name]


@own_statements(" ".join(f"ds_{verb}_{name}" for verb in ("read", "load") for name in _PLAIN if not LOADS[name].half))
def load(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    form = LOADS[instruction.name.split("_", 2)[2]]
    target, address = instruction.operands
    place = _place(instruction, address, _offset(instruction), form, kernel)
    value = piece("{}(waves, {}, {}, {})", reads, place, form, Alone(instruction))
    return piece("on = waves.lanes"), put_statement(data_target(instruction, target, form, kernel), value)


@own_step(" ".join(f"ds_{verb}_{name}" for verb in ("read", "load") for name in _PLAIN if LOADS[name].half))
def load_half(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    form = LOADS[instruction.name.split("_", 2)[2]]
    target, address = instruction.operands
    places = value_of(_place(instruction, address, _offset(instruction), form, kernel))
    write = writes_data(instruction, target, form, kernel)
    return lambda waves: write(waves, reads(waves, places(waves), form, instruction))


@own_statements(
    " ".join(f"ds_{verb}_{name}" for verb in ("write", "store") for name in STORES if "word" not in name and "byte" not in name)
)
def store(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    form = STORES[instruction.name.split("_", 2)[2]]
    address, source = instruction.operands
    if kernel.architecture != "gfx1250":
        return _store(instruction, address, _offset(instruction), [source], form, kernel)
    row, values = SourceRow(row_of(instruction, address, 1, kernel)), data_value(instruction, [source], form, kernel)
    named = piece("waves.vector{}", row), _offset(instruction), values, form, Alone(instruction)
    return (piece("{}(waves, {}, {}, {}, {}, {})", _writes_but_nowhere, *named),)


def _writes_but_nowhere(
    waves: Waves, address: np.ndarray, offset: np.ndarray, values: np.ndarray, form: DataFormat, instruction: Instruction
) -> None:
    """Write values of the lanes whose address is not NOWHERE."""
    nowhere = address == NOWHERE
    if not nowhere.any():
        writes(waves, _place_at(waves, address, offset, form.size), values, form, instruction)
        return
    each = [array.reshape(-1, *array.shape[-2:]) for array in (nowhere, (address.astype(np.int64) + offset) & 0xFFFFFFFF)]
    for some, place, data in zip(*each, values.reshape(len(each[0]), -1, *values.shape[-2:]), strict=True):
        lanes = lanes_but(some, waves)
        writes_lanes(waves, place_of(waves, place, form.size, lanes), data, form, instruction, lanes)


def lanes_but(nowhere: np.ndarray, waves: Waves) -> np.ndarray:
    """[waves, lanes]: the lanes that are on and whose address is not NOWHERE."""
    on = np.ones(waves.shape, bool) if waves.lanes is None else waves.lanes
    return on & ~nowhere


def _store(
    instruction: Instruction, address: Operand, offset: np.ndarray, sources: Sequence[Operand], form: DataFormat, kernel: Kernel
) -> Sequence[Piece]:
    place, values = _place(instruction, address, offset, form, kernel), data_value(instruction, sources, form, kernel)
    return (piece("{}(waves, {}, {}, {}, {})", writes, place, values, form, Alone(instruction)),)


@own_statements(
    " ".join(f"ds_{name}_{size}" for name in _PAIRS if name.startswith(("read", "load")) for size in ("b32", "b64"))
)
def load_two(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    """The first element goes into the first half of the result's registers, and the second one into the other half."""
    check_count(instruction, 2)
    form, offsets = _pair(instruction)
    target, address = instruction.operands
    place = _place(instruction, address, np.array(offsets)[:, None, None], form, kernel)
    value = piece("{}({}(waves, {}, {}, {}))", _side_by_side, reads, place, form, Alone(instruction))
    count = 2 * form.registers
    return piece("on = waves.lanes"), put_statement(rows_target(row_of(instruction, target, count, kernel), count), value)


def _side_by_side(values: np.ndarray) -> np.ndarray:
    """[..., 2 * registers, waves, lanes] of [..., 2, registers, waves, lanes]."""
    return values.reshape(*values.shape[:-4], -1, *values.shape[-2:])


@own_statements(
    " ".join(f"ds_{name}_{size}" for name in _PAIRS if name.startswith(("write", "store")) for size in ("b32", "b64"))
)
def store_two(instruction: Instruction, kernel: Kernel) -> Sequence[Piece]:
    check_count(instruction, 3)
    form, offsets = _pair(instruction)
    address, *sources = instruction.operands
    return _store(instruction, address, np.array(offsets)[:, None, None], sources, form, kernel)


def _pair(instruction: Instruction) -> tuple[DataFormat, tuple[int, int]]:
    """The format of one element, and both offsets in bytes."""
    check_modifiers(instruction, "offset0", "offset1")
    name, _, size = instruction.name.removeprefix("ds_").rpartition("_")
    form = LOADS[size]
    first, second = (number(instruction, f"offset{i}") * form.size * _PAIRS[name] for i in range(2))
    return form, (first, second)


_TRANSPOSED = {
    # 16 lanes read rows of 16 elements, 64 bits each: 4 lanes a row, or 2. Lane i gets column i of the rows.
    "ds_read_b64_tr_b16": (8, 2, lambda lane, j: (lane // 16 * 16 + 4 * j + lane % 16 // 4, lane % 4)),
    "ds_read_b64_tr_b8": (8, 1, lambda lane, j: (lane // 16 * 16 + 2 * j + lane % 16 // 8, lane % 8)),
    # 8 lanes read 8 elements each: lane i gets element i of each of them.
    "ds_load_tr16_b128": (16, 2, lambda lane, j: (lane // 8 * 8 + j, lane % 8)),
    # The 8 lanes that read are 4 and 4: lanes 0 to 7 get what lanes 0 to 3 and 8 to 11 read.
    "ds_load_tr8_b64": (8, 1, lambda lane, j: (lane // 16 * 16 + j % 4 + j // 4 * 8 + lane % 16 // 8 * 4, lane % 8)),
}
"""Bytes that a lane reads, bytes of an element, and where element j of a lane comes from: the lane, and its number."""


@own_step(" ".join(_TRANSPOSED))
def load_transposed(instruction: Instruction, kernel: Kernel) -> Step:
    """Each lane reads consecutive elements, and the lanes of a group exchange them: rows in LDS become columns in registers.

    Source: "MFMA Transpose Load from LDS" in AMD's CDNA4 ISA; for gfx1250, AMD's description of ds_load_tr in the lowering of
    Triton's local_load: for elements of 8 bits, lane 8 and register 4 come from lanes 4 and 8.
    """
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    size, width, comes_from = _TRANSPOSED[instruction.name]
    form, count = DataFormat(size), size // width
    target, address = instruction.operands
    places = value_of(_place(instruction, address, _offset(instruction), form, kernel))
    write = writes_data(instruction, target, form, kernel)
    source = np.array([[comes_from(lane, j) for j in range(count)] for lane in range(kernel.wave_size)])
    element = (source[..., 0] * count + source[..., 1]).reshape(-1)

    def step(waves: Waves) -> None:
        if waves.lanes is not None:
            raise EmulationFault("a transposing load while lanes are off")
        words = np.ascontiguousarray(reads(waves, places(waves), form, instruction).transpose(1, 2, 0))
        elements = words.reshape(len(waves), -1).view(f"u{width}").take(element, axis=1)
        write(waves, elements.view(np.uint32).reshape(words.shape).transpose(2, 0, 1))

    return step


def _offset(instruction: Instruction) -> np.ndarray:
    return np.array([[number(instruction, "offset")]])


def _place(instruction: Instruction, operand: Operand, offset: np.ndarray, form: DataFormat, kernel: Kernel) -> Piece:
    """The place in the LDS of all workgroups where an access begins, for each offset [waves, lanes]."""
    if "gds" in instruction.modifiers:
        raise unknown(instruction)
    address = piece("waves.vector{}", SourceRow(row_of(instruction, operand, 1, kernel)))
    if offset.ndim > 2:
        address = piece("{}[..., None, :, :]", address)
    return piece("{}(waves, {}, {}, {})", _place_at, address, offset, form.size)


def _place_at(waves: Waves, address: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """A lane that is off begins where another lane does."""
    if waves.lanes is not None:
        some = waves.lanes.ravel().argmax()
        address = np.where(waves.lanes, address, address.reshape(-1)[some] if waves.lanes.any() else np.uint32(0))
    place = address + offset
    if int(np.maximum.reduce(place, axis=None)) + size > waves.shared.lds_bytes:
        return place_of(waves, place & 0xFFFFFFFF, size, waves.lanes)
    return place + waves.lds_begin


def place_of(waves: Waves, address: np.ndarray, size: int, lanes: np.ndarray | None) -> np.ndarray:
    """The places of bytes in the LDS of all workgroups, from their addresses [waves, lanes] int64 in the workgroup's LDS.

    Args:
        lanes: the lanes that access LDS; None if all do.

    Raises:
        EmulationFault: one of them accesses a byte beyond it.
    """
    has = waves.shared.lds_bytes
    outside = (address < 0) | (address + size > has)
    if lanes is not None:
        outside &= lanes
    if outside.any():
        first = np.argwhere(outside)[0].tolist()
        *_, wave, lane = first
        what = f"{size} bytes at byte {int(address[*first])} of LDS, of which a workgroup has {has} bytes"
        raise EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)
    return address + waves.lds_begin
