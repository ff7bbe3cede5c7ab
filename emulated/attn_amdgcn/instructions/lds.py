"""Loads and stores of LDS, the memory of a workgroup.

An address is vaddr plus `offset`, in bytes and modulo 2 ** 32, so vaddr may be negative. The forms of two addresses add
offset0 and offset1 times an element's size, and st64 or stride64 another factor of 64. An address beyond the workgroup's LDS is
a fault.

Source: "LDS Indexed Instructions" in AMD's Instinct MI300 ISA, and "DS Instructions" in AMD's RDNA4 ISA; for negative vaddr
isDSOffsetLegal in LLVM.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand
from attn_amdgcn.errors import Fault
from attn_amdgcn.instructions.formats import (
    LOADS,
    STORES,
    Format,
    data_row,
    loaded,
    number,
    reads_data,
    stored,
    writes_data,
    writes_rows,
)
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.operands import unknown
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import Waves

_PAIRS = {"read2": 1, "read2st64": 64, "load_2addr": 1, "load_2addr_stride64": 64}
_PAIRS |= {"write2": 1, "write2st64": 64, "store_2addr": 1, "store_2addr_stride64": 64}
"""By the name of a form with two addresses: the factor of its offsets."""


def reads(waves: Waves, place: np.ndarray, form: Format, instruction: Instruction) -> np.ndarray:
    """What lies at places in LDS."""
    for watch in waves.shared.watches:
        watch.lds_read(Access(waves, place, form.size, waves.lanes, instruction))
    return loaded(waves.shared.lds_storage, place, form)


def writes(waves: Waves, place: np.ndarray, values: np.ndarray, form: Format, instruction: Instruction) -> None:
    """Write values to places in LDS."""
    for watch in waves.shared.watches:
        watch.lds_written(Access(waves, place, form.size, waves.lanes, instruction), values)
    stored(waves.shared.lds_storage, place, values, form, waves.lanes)


@own_step(
    " ".join(f"ds_{verb}_{name}" for verb in ("read", "load") for name in LOADS if "word" not in name and "byte" not in name)
)
def load(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    form = LOADS[instruction.name.split("_", 2)[2]]
    target, address = instruction.operands
    places = places_of(instruction, address, form.size, kernel)
    write, offset = writes_data(instruction, target, form, kernel), number(instruction, "offset")
    return lambda waves: write(waves, reads(waves, places(waves, offset), form, instruction))


@own_step(
    " ".join(f"ds_{verb}_{name}" for verb in ("write", "store") for name in STORES if "word" not in name and "byte" not in name)
)
def store(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 2)
    check_modifiers(instruction, "offset")
    form = STORES[instruction.name.split("_", 2)[2]]
    address, source = instruction.operands
    places = places_of(instruction, address, form.size, kernel)
    read, offset = reads_data(instruction, source, form, kernel), number(instruction, "offset")
    return lambda waves: writes(waves, places(waves, offset), read(waves), form, instruction)


@own_step(" ".join(f"ds_{name}_{size}" for name in _PAIRS if name.startswith(("read", "load")) for size in ("b32", "b64")))
def load_two(instruction: Instruction, kernel: Kernel) -> Step:
    """The first element goes into the first half of the result's registers, and the second one into the other half."""
    check_count(instruction, 2)
    form, offsets = _pair(instruction)
    target, address = instruction.operands
    places = places_of(instruction, address, form.size, kernel)
    write = writes_rows(data_row(instruction, target, 2 * form.registers, kernel), 2 * form.registers)
    first, second = offsets

    def step(waves: Waves) -> None:
        before, behind = (reads(waves, places(waves, offset), form, instruction) for offset in (first, second))
        write(waves, np.concatenate([before, behind]))

    return step


@own_step(" ".join(f"ds_{name}_{size}" for name in _PAIRS if name.startswith(("write", "store")) for size in ("b32", "b64")))
def store_two(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    form, offsets = _pair(instruction)
    address, *sources = instruction.operands
    places = places_of(instruction, address, form.size, kernel)
    both = [(offset, reads_data(instruction, source, form, kernel)) for offset, source in zip(offsets, sources, strict=True)]

    def step(waves: Waves) -> None:
        for offset, read in both:
            writes(waves, places(waves, offset), read(waves), form, instruction)

    return step


def _pair(instruction: Instruction) -> tuple[Format, tuple[int, int]]:
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
    form, count = Format(size), size // width
    target, address = instruction.operands
    places, write = places_of(instruction, address, size, kernel), writes_data(instruction, target, form, kernel)
    offset = number(instruction, "offset")
    source = np.array([[comes_from(lane, j) for j in range(count)] for lane in range(kernel.wave_size)])
    element = (source[..., 0] * count + source[..., 1]).reshape(-1)

    def step(waves: Waves) -> None:
        if waves.lanes is not None:
            raise Fault("a transposing load while lanes are off")
        words = np.ascontiguousarray(reads(waves, places(waves, offset), form, instruction).transpose(1, 2, 0))
        elements = words.reshape(len(waves), -1).view(f"u{width}").take(element, axis=1)
        write(waves, elements.view(np.uint32).reshape(words.shape).transpose(2, 0, 1))

    return step


def places_of(instruction: Instruction, operand: Operand, size: int, kernel: Kernel) -> Callable[[Waves, int], np.ndarray]:
    """Where an access begins in the LDS of all workgroups: a function of waves and of an offset.

    A lane that is off begins where another lane does.
    """
    if "gds" in instruction.modifiers:
        raise unknown(instruction)
    row = data_row(instruction, operand, 1, kernel)

    def places(waves: Waves, offset: int) -> np.ndarray:
        address = waves.vector[row]
        if waves.lanes is not None:
            some = address[waves.lanes]
            if not some.size:
                return np.zeros(waves.shape, np.int64)
            address = np.where(waves.lanes, address, some[0])
        if int(np.maximum.reduce(address, axis=None)) + offset + size > waves.shared.lds_bytes:
            return place_of(waves, (address + np.uint32(offset)).astype(np.int64), size)
        return address + (waves.lds_begin + offset)

    return places


def place_of(waves: Waves, address: np.ndarray, size: int) -> np.ndarray:
    """Where bytes lie in the LDS of all workgroups, by their addresses [waves, lanes] int64 in the workgroup's.

    Raises:
        Fault: a lane that is on accesses a byte beyond it.
    """
    has = waves.shared.lds_bytes
    outside = (address < 0) | (address + size > has)
    if waves.lanes is not None:
        outside &= waves.lanes
    if outside.any():
        wave, lane = (int(number) for number in np.argwhere(outside)[0])
        what = f"{size} bytes at byte {int(address[wave, lane])} of LDS, of which a workgroup has {has} bytes"
        raise Fault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)
    return address + waves.lds_begin
