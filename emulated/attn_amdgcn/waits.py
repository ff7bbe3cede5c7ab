"""Which registers a memory instruction has not written yet: what a program must wait for before it touches them.

Hardware does not wait by itself. A load writes its registers when its data comes, and until then they hold what they held.
The program counts the loads that are under way, and waits until a counter has fallen. Here a load writes at once, so a
forgotten wait would go unseen: each register that a load writes is pending until an instruction waits for it, and touching a
pending register is a fault.

A counter falls in the order in which its instructions began, except for the loads of scalar memory and for flat instructions,
which end in any order: only a wait for 0 covers them, and, while one of them is under way, for the others of their counter. A
flat instruction raises two counters, that of vector memory and that of LDS, and needs both waits. A load may write a register
(or one half of it) that an older load of the same counter writes, because both come in order. From gfx11 on, a load of 16 bits
writes its half alone, so a load of the other half may be under way.

A basic block changes the pending registers in the same way each time it runs, so the result is kept for each block and each
state that it was entered with.

Which counters there are: on gfx9 vmcnt counts loads and stores of vector memory, and lgkmcnt LDS and scalar memory. On gfx11
vscnt counts the stores. gfx12 has loadcnt, storecnt, dscnt and kmcnt, and gfx1250 asynccnt and tensorcnt, too, for loads into
LDS and for tiles. gfx1250's xcnt counts translations of addresses, whose end brings no register. A load from global memory
into LDS brings none, either: `attn_amdgcn.lds_loads` looks at what it brings.

Source: "Data Dependency Resolution" in AMD's Instinct MI300 ISA, in RDNA3 ISA and in RDNA4 ISA; "Memory Model" in LLVM's User
Guide for AMDGPU Backend; counterOutOfOrder and determineVGPR16Dependency in LLVM's SIInsertWaitcnts.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from attn_amdgcn.assembly import Instruction, Kernel, Named, Register
from attn_amdgcn.errors import Fault, Hazards
from attn_amdgcn.operands import scalar_index, unknown, vector_row
from attn_amdgcn.waves import SCALARS, VCC


class Pending(NamedTuple):
    """A memory instruction under way.

    Attributes:
        counter: "vm" (vector memory), "vs" (its stores, where they have their own counter), "ds" (LDS), "km" (scalar memory),
            "async" (gfx1250's loads into LDS by lanes) or "tensor" (those by tiles, and stores).
        ordered: whether the counter's instructions end in their order.
        registers: a bit for each register that it will write.
        lds: whether it reads or writes LDS.
        line: of the instruction.
        text: of the instruction.
    """

    counter: str
    ordered: bool
    registers: int
    lds: bool
    line: int
    text: str


State = tuple[Pending, ...]
"""What is under way, the oldest first."""

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
_MOST = 64
"""No counter counts further: an instruction waits until its counter has fallen."""


def after(block: Sequence[Instruction], state: State, kernel: Kernel, hazards: Hazards | None = None) -> State:
    """What is under way after a block.

    Args:
        hazards: where faults are recorded. Then the load counts as if it had come.

    Raises:
        Fault: an instruction touches a pending register, and there is no record. Its instruction is filled in.
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
            fault = Fault(what).at(instruction)
            if hazards is None:
                raise fault
            hazards.setdefault((load.line, instruction.line), fault)
            state = tuple(each._replace(registers=0) if each is load else each for each in state)
        if begun:
            state = (*state, *begun)
    return _shortened(state)


def begins(instruction: Instruction, kernel: Kernel) -> State:
    """What an instruction leaves under way: one entry for each counter that it raises."""
    counters = counters_of(instruction, kernel)
    if not counters:
        return ()
    name, registers = instruction.name, loaded(instruction, kernel)
    lds = name.startswith(("ds_", "flat_")) and not re.search("permute|swizzle", name)
    return tuple(
        Pending(counter, counter != "km" and not name.startswith("flat_"), registers, lds, instruction.line, instruction.text)
        for counter in counters
    )


def _early(instruction: Instruction, begun: State, state: State, kernel: Kernel) -> tuple[Pending, int] | None:
    """A load whose register the instruction touches, and the bits of such registers; None if there is none."""
    uses = touched(instruction, kernel)
    again = begun[0].registers & ~_sources(instruction, kernel) if begun else 0
    for each in state:
        in_order = begun and each.ordered and begun[0].ordered and len(begun) == 1 and each.counter == begun[0].counter
        may_write = in_order or _write_different_halves(instruction.name, each.text)
        if bits := each.registers & (uses & ~again if may_write else uses):
            return each, bits
    return None


def _write_different_halves(load: str, other: str) -> bool:
    """Whether two loads, by their names or texts, write the two halves of a register, and each its own alone."""
    halves = [found[1] for found in (re.search(r"_d16(_hi)?", each) for each in (load, other)) if found]
    return len(set(halves)) == 2  # gfx9's loads of 16 bits are unknown instructions


def _sources(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that a load reads. A d16 load writes one half of its result, and does not read the other half."""
    bits = 0
    for operand in instruction.operands[1:]:
        if isinstance(operand.of, Register):
            bits |= bits_of_register(operand.of, kernel)
    return bits


def _shortened(state: State) -> State:
    """A state that means the same: without entries that can no longer matter, so that loops come back to a state."""
    kept: list[Pending] = []
    number: dict[str, int] = {}
    met: set[Pending] = set()
    for each in reversed(state):
        number[each.counter] = number.get(each.counter, 0) + 1
        if number[each.counter] <= _MOST if each.ordered else each not in met:  # a wait for 0 covers all of an instruction
            kept.append(each)
            met.add(each)
    counts: set[str] = set()
    short: list[Pending] = []
    for each in reversed(kept):
        if each.registers or each.lds:
            counts.add(each.counter)
        if each.counter in counts:  # a store of memory brings nothing, and is counted behind what brings something
            short.append(each)
    return tuple(short)


def waited(state: State, counters: tuple[str, ...], most: int) -> State:
    """What is under way when at most so many instructions of some counters are."""
    counted = [each for each in state if each.counter in counters]
    if most and not all(each.ordered for each in counted):
        return state
    over = {id(each) for each in counted[: max(0, len(counted) - most)]}
    return tuple(each for each in state if id(each) not in over)


def merged(first: State, second: State) -> State:
    """What may be under way in waves that come from two places: the newest of one beside the newest of the other."""
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
        returns = found[2] == "load" or (found[2] == "atomic" and _returns(instruction))
        return ("vm" if returns else stores, *(("ds",) if found[1] == "flat" else ()))
    return ()


def _returns(instruction: Instruction) -> bool:
    """Whether an atomic instruction brings what was in memory: gfx9's glc and sc0, gfx11's glc, gfx12's th."""
    modifiers = instruction.modifiers
    return bool(modifiers.get("glc") or modifiers.get("sc0")) or "RETURN" in str(modifiers.get("th", ""))


def loaded(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that a memory instruction writes: its first operand, if it is a load."""
    brings = re.search(r"load|read|permute|swizzle|rtn", instruction.name) or (
        "atomic" in instruction.name and _returns(instruction)
    )
    if not brings or loads_into_lds(instruction) or not instruction.operands or not counters_of(instruction, kernel):
        return 0
    first = instruction.operands[0].of
    return bits_of_register(first, kernel) if isinstance(first, Register) else 0


def loads_into_lds(instruction: Instruction) -> bool:
    """Whether a load of global memory brings its data into LDS: it writes no register."""
    return instruction.name.startswith(_INTO_LDS) or "lds" in instruction.modifiers


_INTO_LDS = ("global_load_lds_", "global_load_async_to_lds_", "tensor_load_to_lds")
_IMPLICIT = {"s_cbranch_vccz": "vcc", "s_cbranch_vccnz": "vcc", "s_cbranch_execz": "exec", "s_cbranch_execnz": "exec"}


def touched(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that an instruction names, or reads without a name."""
    implicit = _IMPLICIT.get(instruction.name)
    bits = bits_of_register(Register(implicit, 0, kernel.wave_size // 32), kernel) if implicit else 0
    for operand in instruction.operands:
        if isinstance(operand.of, Register):
            bits |= bits_of_register(operand.of, kernel)
    return bits | (touched(instruction.second, kernel) if instruction.second else 0)


def result(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that an instruction with one result writes, or one with two halves; a store writes none."""
    if counters_of(instruction, kernel):
        return loaded(instruction, kernel)
    first = instruction.operands[0].of
    bits = bits_of_register(first, kernel) if isinstance(first, Register) else 0
    return bits | (result(instruction.second, kernel) if instruction.second else 0)


def bits_of_register(register: Register, kernel: Kernel) -> int:
    row = vector_row(register, kernel)
    if row is None:
        if register.bank == "scc" or (row := scalar_index(register)) is None:
            return 0
    else:
        row += SCALARS
    return (1 << register.count) - 1 << row


def _named_register(bits: int, kernel: Kernel) -> str:
    """The first register of some bits."""
    index = (bits & -bits).bit_length() - 1
    if index < SCALARS:
        return "vcc" if index in (VCC, VCC + 1) else f"s{index}"
    row, accumulation = index - SCALARS, kernel.settings.get("accum_offset", 256)
    return f"v{row}" if row < accumulation else f"a{row - accumulation}"


def awaited(instruction: Instruction) -> list[tuple[tuple[str, ...], int]]:
    """The counters that an instruction waits for, and the most that may be under way behind it."""
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
