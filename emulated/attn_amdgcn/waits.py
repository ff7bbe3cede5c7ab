"""Pending registers: a memory instruction has not written them yet, and a program must wait before it touches them.

Hardware does not wait by itself. A load writes its registers when its data comes, and until then they hold what they held.
The program counts the loads that are under way, and waits until a counter has fallen. Here a load writes at once, so a
forgotten wait would go unseen: each register that a load writes is pending until an instruction waits for it, and touching a
pending register is a fault.

A counter falls in the order in which its instructions began, except for the loads of scalar memory and for flat instructions,
which end in any order: only a wait for 0 covers them, and, while one of them is under way, for the others of their counter. A
flat instruction raises two counters, that of vector memory and that of LDS, and needs both waits. A load may write a register
(or one half of it) that an older load of the same counter writes, because both come in order.

From gfx11 on, a load of 16 bits writes its half of a register alone. While it is under way, the other half may be loaded, and a
store of 8 or 16 bits may read it. On gfx12 other instructions that name only the other half may read or write it, too; gfx11
needs a wait there (LLVM: "d16 writes 32-bit VGPR").

On gfx9 vmcnt counts to 63 and lgkmcnt to 15, and an instruction that would count further does not begin before another has
ended. So of those that end in order, no more are under way. Whether gfx11 waits so is not known: LLVM's issue 172932 tells of
values that came too late there. Counters of gfx11 and gfx12 have no limit here.

A basic block changes the pending registers in the same way each time it runs, so the result is kept for each block and each
state that it was entered with.

Which counters there are: on gfx9 vmcnt counts loads and stores of vector memory, and lgkmcnt LDS and scalar memory. On gfx11
vscnt counts the stores. gfx12 has loadcnt, storecnt, dscnt and kmcnt, and gfx1250 asynccnt and tensorcnt, too, for loads into
LDS and for tiles. gfx1250's xcnt counts translations of addresses, whose end brings no register. A load from global memory
into LDS brings none, either: `attn_amdgcn.lds_loads` looks at what it brings.

Source: "Data Dependency Resolution" in AMD's Instinct MI300 ISA, in RDNA3 ISA and in RDNA4 ISA; "Memory Model" in LLVM's User
Guide for AMDGPU Backend; counterOutOfOrder and determineVGPR16Dependency in LLVM's SIInsertWaitcnts; ROCm/rocm-systems pull
request 10926 (AMD, 2026-08), on counters that are full.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from attn_amdgcn.assembly import Instruction, Kernel, Named, Operand, Register
from attn_amdgcn.errors import EmulationFault, Hazards
from attn_amdgcn.instructions.formats import LOADS, STORES, returns_value
from attn_amdgcn.operands import scalar_index, unknown, vector_row
from attn_amdgcn.waves import SCALARS, VCC


class Pending(NamedTuple):
    """A memory instruction under way.

    Attributes:
        counter: "vm" (vector memory), "vs" (its stores, where they have their own counter), "ds" (LDS), "km" (scalar memory),
            "async" (gfx1250's loads into LDS by lanes) or "tensor" (those by tiles, and stores).
        ordered: True if the counter's instructions end in their order.
        registers: two bits for each register that it will write: of its lower half and, `_UPPER` bits further, of the other.
        lds: True if it reads or writes LDS.
        line: the line of the instruction.
        text: the text of the instruction.
    """

    counter: str
    ordered: bool
    registers: int
    lds: bool
    line: int
    text: str


State = tuple[Pending, ...]
"""The loads and stores under way, the oldest first."""

_BEFORE_GFX12 = {"vmcnt": ("vm",), "lgkmcnt": ("ds", "km"), "expcnt": (), "vscnt": ("vs",)}
_GFX12 = {
    "loadcnt": ("vm",),
    "storecnt": ("vs",),
    "dscnt": ("ds",),
    "kmcnt": ("km",),
    "expcnt": (),
    "samplecnt": (),
    "bvhcnt": (),
    "xcnt": (),
    "asynccnt": ("async",),
    "tensorcnt": ("tensor",),
}
_MAX_COUNT = 64
"""The highest count of a counter of any architecture."""
FULL_VM_GFX9 = 63
_FULL_GFX9 = ((("vm",), FULL_VM_GFX9), (("ds", "km"), 15))
"""The most instructions that may be under way on gfx9, by its counters."""
_UPPER = 2048
"""A number above that of all registers."""
_LOWER = (1 << _UPPER) - 1


def after(block: Sequence[Instruction], state: State, kernel: Kernel, hazards: Hazards | None = None) -> State:
    """The loads and stores under way after a block.

    Args:
        hazards: the record of faults. Then the load counts as if it had come.

    Raises:
        EmulationFault: an instruction touches a pending register, and there is no record. Its instruction is filled in.
    """
    for instruction in block:
        if found := awaited(instruction):
            for counters, most in found:
                state = waited(state, counters, most)
            continue
        begun = begins(instruction, kernel)
        while state and (early := _early(instruction, begun, state, kernel)):
            load, bits = early
            register = _named_register(bits, kernel)
            what = f"line {load.line} (`{load.text}`) loads {register}, and no wait stands before its use"
            fault = EmulationFault(what).at(instruction)
            if hazards is None:
                raise fault
            hazards.setdefault((load.line, instruction.line), fault)
            state = tuple(each._replace(registers=0) if each is load else each for each in state)
        if begun:
            state = (*state, *begun)
            for counters, most in _FULL_GFX9 if kernel.architecture.startswith("gfx9") else ():
                state = waited(state, counters, most)
    return _shortened(state)


def begins(instruction: Instruction, kernel: Kernel) -> State:
    """The entries that an instruction adds: one for each counter that it raises."""
    counters = counters_of(instruction, kernel)
    if not counters:
        return ()
    name, registers = instruction.name, loaded(instruction, kernel)
    if registers:
        registers &= _halves(instruction, 0, kernel)
    lds = name.startswith(("ds_", "flat_")) and not re.search("permute|swizzle", name)
    return tuple(
        Pending(counter, counter != "km" and not name.startswith("flat_"), registers, lds, instruction.line, instruction.text)
        for counter in counters
    )


def _early(instruction: Instruction, begun: State, state: State, kernel: Kernel) -> tuple[Pending, int] | None:
    """A load whose register the instruction touches, and the bits of such registers; None if there is none."""
    uses = _touched_halves(instruction, kernel)
    again = begun[0].registers & ~_sources(instruction, kernel) if begun else 0
    for each in state:
        in_order = begun and each.ordered and begun[0].ordered and len(begun) == 1 and each.counter == begun[0].counter
        if bits := each.registers & (uses & ~again if in_order else uses):
            return each, bits
    return None


def _touched_halves(instruction: Instruction, kernel: Kernel) -> int:
    """See `touched`. Halves of registers that a memory instruction or an operand leaves alone are not among the bits."""
    bits = _implicit(instruction, kernel)
    for place, operand in enumerate(instruction.operands):
        if isinstance(operand.of, Register):
            bits |= bits_of_register(operand.of, kernel) & _halves(instruction, place, kernel)
    return bits | (_touched_halves(instruction.second, kernel) if instruction.second else 0)


def _halves(instruction: Instruction, place: int, kernel: Kernel) -> int:
    """The halves of registers that the operand at a place can mean: all, or the lower or upper ones."""
    found = re.match(r"(ds|global|flat|scratch|buffer)_(?:(load|read)|store|write)_(.*)", instruction.name)
    of = instruction.operands[place].of
    if found and found[2] and place == 0 and found[3] in LOADS:
        half = LOADS[found[3]].half
    elif found and not found[2] and found[3] in STORES and place == (0 if found[1] == "buffer" else 1):
        form = STORES[found[3]]
        half = form.half or ("low" if form.size < 4 else "")
    elif isinstance(of, Register) and of.half and kernel.architecture.startswith("gfx12"):
        half = {"l": "low", "h": "high"}[of.half]
    else:
        half = ""
    return {"": -1, "low": _LOWER, "high": _LOWER << _UPPER}[half]


def _sources(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that a load reads."""
    return bits_of(instruction.operands[1:], kernel)


def _shortened(state: State) -> State:
    """A state that means the same: without entries that can no longer matter, so that loops come back to a state."""
    kept: list[Pending] = []
    number: dict[str, int] = {}
    met: set[Pending] = set()
    for each in reversed(state):
        number[each.counter] = number.get(each.counter, 0) + 1
        if number[each.counter] <= _MAX_COUNT if each.ordered else each not in met:  # a wait for 0 covers all of an instruction
            kept.append(each)
            met.add(each)
    counts: set[str] = set()
    short: list[Pending] = []
    for each in reversed(kept):
        if each.registers or each.lds:
            counts.add(each.counter)
        if each.counter in counts:  # a store of memory brings nothing, and is counted after what brings something
            short.append(each)
    return tuple(short)


def waited(state: State, counters: tuple[str, ...], most: int) -> State:
    """The state after a wait that leaves at most `most` instructions of some counters under way."""
    counted = [each for each in state if each.counter in counters]
    if most and not all(each.ordered for each in counted):
        return state
    over = {id(each) for each in counted[: max(0, len(counted) - most)]}
    return tuple(each for each in state if id(each) not in over)


def merged(first: State, second: State) -> State:
    """The state of waves that come from two places. Entries are matched from the newest one back."""
    if first == second:
        return first
    joined: list[Pending] = []
    for counter in sorted({each.counter for each in first + second}):
        one, other = ([each for each in state if each.counter == counter][::-1] for state in (first, second))
        for i in range(max(len(one), len(other))):
            both = [each[i] for each in (one, other) if i < len(each)]
            registers = 0
            for each in both:
                registers |= each.registers
            ordered, lds = all(each.ordered for each in both), any(each.lds for each in both)
            joined.append(Pending(counter, ordered, registers, lds, both[0].line, both[0].text))
    return _shortened(tuple(joined[::-1]))


def counters_of(instruction: Instruction, kernel: Kernel) -> tuple[str, ...]:
    """The counters that a memory instruction raises; none if it is another instruction."""
    name = instruction.name
    if name.startswith(("s_load", "s_buffer_load")):
        return ("km",)
    if name.startswith("ds_"):
        return ("ds",)
    if name.startswith("tensor_"):
        return ("tensor",)
    if "_async_" in name:
        return ("async",)
    stores = "vm" if kernel.architecture.startswith("gfx9") else "vs"
    if found := re.match(r"(buffer|global|scratch|flat)_(load|store|atomic)", name):
        returns = found[2] == "load" or (found[2] == "atomic" and returns_value(instruction))
        return ("vm" if returns else stores, *(("ds",) if found[1] == "flat" else ()))
    return ()


def loaded(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that a memory instruction writes: its first operand, if it is a load."""
    brings = re.search(r"load|read|permute|swizzle|rtn", instruction.name) or (
        "atomic" in instruction.name and returns_value(instruction)
    )
    if not brings or loads_into_lds(instruction) or not counters_of(instruction, kernel):
        return 0
    return bits_of(instruction.operands[:1], kernel)


def loads_into_lds(instruction: Instruction) -> bool:
    """True if a load of global memory brings its data into LDS: it writes no register."""
    return instruction.name.startswith(_INTO_LDS) or "lds" in instruction.modifiers


_INTO_LDS = ("global_load_lds_", "global_load_async_to_lds_", "tensor_load_to_lds")
_READ_BY_BRANCHES = {"s_cbranch_vccz": "vcc", "s_cbranch_vccnz": "vcc", "s_cbranch_execz": "exec", "s_cbranch_execnz": "exec"}


def _implicit(instruction: Instruction, kernel: Kernel) -> int:
    bank = _READ_BY_BRANCHES.get(instruction.name)
    return bits_of_register(Register(bank, 0, kernel.wave_size // 32), kernel) if bank else 0


def touched(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that an instruction names, or reads without a name."""
    bits = _implicit(instruction, kernel) | bits_of(instruction.operands, kernel)
    return bits | (touched(instruction.second, kernel) if instruction.second else 0)


def result(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that an instruction with one result writes, or one with two halves; a store writes none."""
    if counters_of(instruction, kernel):
        return loaded(instruction, kernel)
    bits = bits_of(instruction.operands[:1], kernel)
    return bits | (result(instruction.second, kernel) if instruction.second else 0)


def bits_of(operands: Iterable[Operand], kernel: Kernel) -> int:
    """The registers among some operands."""
    bits = 0
    for operand in operands:
        if isinstance(operand.of, Register):
            bits |= bits_of_register(operand.of, kernel)
    return bits


def bits_of_register(register: Register, kernel: Kernel) -> int:
    """Both halves of a register, as in `Pending`."""
    row = vector_row(register, kernel)
    if row is None:
        if register.bank == "scc" or (row := scalar_index(register)) is None:
            return 0
    else:
        row += SCALARS
    lower = (1 << register.count) - 1 << row
    return lower | lower << _UPPER


def _named_register(bits: int, kernel: Kernel) -> str:
    """The first register of some bits."""
    bits = (bits | bits >> _UPPER) & _LOWER
    index = (bits & -bits).bit_length() - 1
    if index < SCALARS:
        return "vcc" if index in (VCC, VCC + 1) else f"s{index}"
    row, accumulation = index - SCALARS, kernel.settings.get("accum_offset", 256)
    return f"v{row}" if row < accumulation else f"a{row - accumulation}"


def awaited(instruction: Instruction) -> list[tuple[tuple[str, ...], int]]:
    """The counters that an instruction waits for, and the most that may be under way after it."""
    name = instruction.name
    if name == "s_waitcnt":
        found = [_named(operand.of.text, instruction) for operand in instruction.operands if isinstance(operand.of, Named)]
        return [(_BEFORE_GFX12[counter], most) for counter, most in found]
    if name.startswith("s_waitcnt_") and name != "s_waitcnt_depctr":
        return [(_BEFORE_GFX12[name.removeprefix("s_waitcnt_")], _number(instruction))]
    if name == "s_wait_idle":
        return [(("vm", "vs", "ds", "km", "async", "tensor"), 0)]
    if name.startswith("s_wait_") and name not in ("s_wait_alu", "s_wait_event"):
        parts = name.removeprefix("s_wait_").split("_")
        if len(parts) == 1:
            return [(_GFX12[parts[0]], _number(instruction))]
        both = _number(instruction)  # loadcnt or storecnt in bits 13:8, dscnt in bits 5:0
        return [(_GFX12[parts[0]], both >> 8 & 63), (_GFX12[parts[1]], both & 63)]
    return []


def _named(text: str, instruction: Instruction) -> tuple[str, int]:
    found = re.fullmatch(r"(\w+)\((\d+)\)", text)
    if found is None or found[1] not in _BEFORE_GFX12:
        raise unknown(instruction)
    return found[1], int(found[2])


def _number(instruction: Instruction) -> int:
    last = instruction.operands[-1].of
    number = getattr(last, "number", None)
    if not isinstance(number, int):
        raise unknown(instruction)
    return number
