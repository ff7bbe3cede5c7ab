"""Loads, stores and atomic changes of global memory, by addresses of 64 bits.

An address is vaddr, 64 bits, plus the signed `offset`. With saddr it is saddr, 64 bits, plus vaddr, 32 bits, plus `offset`.
With saddr, vaddr is unsigned, and from gfx1250 on signed; with `scale_offset` it counts elements of the instruction's size.

Modifiers that choose a cache's policy or a scope change nothing here. Lanes that change one word atomically do so one after
the other, here in the order of the waves and of their lanes; each may return the word that it found. From GLOBAL_ATOMIC_ADD
in AMD's manuals: tmp = MEM[addr], MEM[addr] = tmp + DATA, RETURN_DATA = tmp.

Source: "FLAT, Scratch and Global Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA; LLVM's GCNSubtarget
(hasSignedGVSOffset, hasScaleOffset) for gfx1250. Atomics at no multiple of their size are a memory violation: "Memory Alignment
and Out-of-Range Behavior" in AMD's RDNA4 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Named, Operand, Register
from attn_amdgcn.errors import EmulationFault
from attn_amdgcn.instructions.formats import LOADS, STORES, DataFormat, loaded, reads_data, returns_value, stored, writes_data
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step
from attn_amdgcn.memory import BASE
from attn_amdgcn.operands import KINDS, number, reads_scalar, row_of, scalar_index, unknown
from attn_amdgcn.watch import Access
from attn_amdgcn.waves import Waves

CACHE = ("glc", "slc", "dlc", "sc0", "sc1", "nt", "nv", "scope", "th")
"""Modifiers of caches."""
CHANGES: dict[str, Callable[[int, int], int]] = {
    **dict.fromkeys(("add", "add_u32"), lambda old, given: old + given),
    **dict.fromkeys(("swap", "swap_b32"), lambda old, given: given),
}
"""Functions of a word and the data that give the word after an atomic instruction. A sum keeps its low 32 bits."""


@own_step(" ".join(f"global_load_{name}" for name in LOADS))
def global_load(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", "scale_offset", *CACHE)
    form = LOADS[instruction.name.removeprefix("global_load_")]
    target, address, base = instruction.operands
    places = places_of(instruction, address, base, form, kernel)
    write = writes_data(instruction, target, form, kernel)
    return lambda waves: write(waves, values_at(waves, places(waves), form, instruction, waves.lanes))


@own_step(" ".join(f"global_store_{name}" for name in STORES))
def global_store(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 3)
    check_modifiers(instruction, "offset", "scale_offset", *CACHE)
    form = STORES[instruction.name.removeprefix("global_store_")]
    address, source, base = instruction.operands
    places = places_of(instruction, address, base, form, kernel)
    read = reads_data(instruction, source, form, kernel)
    return lambda waves: store_at(waves, places(waves), read(waves), form, instruction, waves.lanes)


@own_step(" ".join(f"global_atomic_{name}" for name in CHANGES))
def global_atomic(instruction: Instruction, kernel: Kernel) -> Step:
    returns, form = returns_value(instruction), LOADS["b32"]
    check_count(instruction, 3 + returns)
    check_modifiers(instruction, "offset", "scale_offset", *CACHE)
    address, source, base = instruction.operands[-3:]
    places = places_of(instruction, address, base, form, kernel)
    read = reads_data(instruction, source, form, kernel)
    write = writes_data(instruction, instruction.operands[0], form, kernel) if returns else None

    def step(waves: Waves) -> None:
        on = np.ones(waves.shape, bool) if waves.lanes is None else waves.lanes
        found = changed_at(waves, places(waves), read(waves), instruction, on)
        if write:
            write(waves, found)
            waves.shared.memory.atomic_readers.update(waves.workgroup[on.any(axis=1)].tolist())

    return step


def changed_at(waves: Waves, place: np.ndarray, given: np.ndarray, instruction: Instruction, on: np.ndarray) -> np.ndarray:
    """[1, waves, lanes]: what the lanes that are on find at addresses less BASE, which they change."""
    memory, change = waves.shared.memory, CHANGES[instruction.name.removeprefix("global_atomic_")]
    place = memory.writable(memory.readable(place, 4, on, waves), 4, on, waves)
    if (misplaced := on & (place % 4 != 0)).any():
        wave, lane = np.argwhere(misplaced)[0].tolist()
        what = "an atomic instruction at an address that is no multiple of its 4 bytes"
        raise EmulationFault(what, wave=int(waves.number[wave]), workgroup=int(waves.workgroup[wave]), lane=lane)
    for watch in waves.shared.watches:
        watch.global_updated(Access(waves, place, 4, on, instruction), given)
    words, found = memory.bytes.view(np.uint32), np.zeros_like(given)
    for wave, lane in np.argwhere(on).tolist():
        word = place[wave, lane] // 4
        found[0, wave, lane] = words[word]
        words[word] = change(int(words[word]), int(given[0, wave, lane])) & 0xFFFFFFFF
    return found


def values_at(
    waves: Waves, address: np.ndarray, form: DataFormat, instruction: Instruction, lanes: np.ndarray | None
) -> np.ndarray:
    """The values at addresses less BASE. Lanes that are not in `lanes` get any value."""
    memory = waves.shared.memory
    place = memory.readable(address, form.size, lanes, waves)
    for watch in waves.shared.watches:
        watch.global_read(Access(waves, place, form.size, lanes, instruction))
    return loaded(memory, place, form)


def store_at(
    waves: Waves,
    address: np.ndarray,
    values: np.ndarray,
    form: DataFormat,
    instruction: Instruction,
    lanes: np.ndarray | None,
) -> None:
    """Write the values of some lanes, or of all, to addresses less BASE."""
    memory = waves.shared.memory
    place = memory.writable(address, form.size, lanes, waves)
    for watch in waves.shared.watches:
        watch.global_written(Access(waves, place, form.size, lanes, instruction), values)
    stored(memory, place, values, form, lanes)


def places_of(
    instruction: Instruction, address: Operand, base: Operand, form: DataFormat, kernel: Kernel
) -> Callable[[Waves], np.ndarray]:
    """[waves, lanes] int64: addresses less BASE."""
    offset = np.int64(number(instruction, "offset") - BASE)
    if isinstance(base.of, Named) and base.of.text == "off":
        if "scale_offset" in instruction.modifiers:
            raise unknown(instruction, "scale_offset without a scalar address")
        row = row_of(instruction, address, 2, kernel)

        def places(waves: Waves) -> np.ndarray:
            pair = np.empty((*waves.shape, 2), np.uint32)
            pair[..., 0], pair[..., 1] = waves.vector[row], waves.vector[row + 1]
            place = pair.view(np.int64)[..., 0]
            place += offset
            return place

        return places
    if not isinstance(base.of, Register) or base.of.count != 2 or scalar_index(base.of) is None:
        raise unknown(instruction, "a scalar address is 2 registers")
    read_base, row = reads_scalar(base, KINDS["u64"], kernel), row_of(instruction, address, 1, kernel)
    newest = kernel.architecture == "gfx1250"
    dtype = np.int32 if newest else np.uint32
    scale = form.size if "scale_offset" in instruction.modifiers else 1
    if scale != 1 and not newest:
        raise unknown(instruction, "scale_offset before gfx1250")

    def places_of_base(waves: Waves) -> np.ndarray:
        index = waves.vector[row].view(dtype)
        begin = (read_base(waves).view(np.int64) + offset)[:, None]
        return begin + (index if scale == 1 else index.astype(np.int64) * scale)

    return places_of_base


@own_step("global_prefetch_b8")
def prefetch(instruction: Instruction, kernel: Kernel) -> Step:
    """A prefetch moves a line into a cache. An address without memory is no fault."""
    return lambda waves: None
