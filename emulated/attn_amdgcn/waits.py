"""Which registers a memory instruction has not written yet: what a program must wait for before it touches them.

Hardware does not wait by itself. A load writes its registers when its data comes, and until then they hold what they held. The
program counts the loads that are under way, and waits until a counter has fallen. Here a load writes at once, so a forgotten wait
would go unseen: each register that a load writes is pending until an instruction waits for it, and touching a pending register is
a fault.

A counter falls in the order in which its instructions began, except for the loads of scalar memory, which end in any order: only
a wait for 0 covers them, and, while one of them is under way, for the others of their counter. A basic block changes the pending
registers in the same way each time it runs, so the result is kept for each block and each state that it was entered with.

Source: "Data Dependency Resolution" in AMD's Instinct MI300 ISA, section 4.4, in RDNA3 ISA, section 5.6 and in RDNA4 ISA,
section 5.7; "Memory Model" in LLVM's User Guide for AMDGPU Backend.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from attn_amdgcn.assembly import Instruction, Kernel, Named, Register
from attn_amdgcn.errors import Fault
from attn_amdgcn.operands import scalar_index, unknown, vector_row
from attn_amdgcn.waves import SCALARS


class Pending(NamedTuple):
    """A memory instruction under way.

    Attributes:
        counter: "vm" (vector memory), "vs" (its stores, where they have a counter of their own), "ds" (LDS) or "km" (scalar memory).
        ordered: whether the counter's instructions end in their order.
        registers: a bit for each register that it will write.
        line: of the instruction.
    """

    counter: str
    ordered: bool
    registers: int
    line: int


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
}


def after(block: Sequence[Instruction], state: State, kernel: Kernel) -> State:
    """What is under way after a block.

    Raises:
        Fault: an instruction touches a pending register. Its instruction is filled in.
    """
    for instruction in block:
        if awaited := _awaited(instruction, kernel):
            for counters, most in awaited:
                state = waited(state, counters, most)
            continue
        if state and (early := [each for each in state if each.registers & touched(instruction, kernel)]):
            fault = Fault(f"line {early[0].line} loads a register, and no wait stands before its use")
            fault.instruction, fault.line, fault.source = instruction.text, instruction.line, instruction.source
            raise fault
        if (counter := counter_of(instruction, kernel)) is not None:
            state = (*state, Pending(counter, counter != "km", loaded(instruction, kernel), instruction.line))
    return state


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
            joined.append(Pending(counter, all(each.ordered for each in both), registers, both[0].line))
    return tuple(joined[::-1])


def counter_of(instruction: Instruction, kernel: Kernel) -> str | None:
    """The counter that a memory instruction raises; None if it is no memory instruction."""
    name = instruction.name
    if name.startswith(("s_load", "s_buffer_load")):
        return "km"
    if name.startswith("ds_"):
        return "ds"
    if re.match(r"(buffer|global|scratch|flat)_(load|atomic)", name):
        return "vm"
    if re.match(r"(buffer|global|scratch|flat)_store", name):
        return "vm" if kernel.architecture.startswith("gfx9") else "vs"
    return None


def loaded(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that a memory instruction writes: its first operand, if it is a load."""
    if not re.search(r"load|read|bpermute|permute|swizzle", instruction.name) or not instruction.operands:
        return 0
    first = instruction.operands[0].of
    return _bits(first, kernel) if isinstance(first, Register) else 0


def touched(instruction: Instruction, kernel: Kernel) -> int:
    """The registers that an instruction names."""
    bits = 0
    for operand in instruction.operands:
        if isinstance(operand.of, Register):
            bits |= _bits(operand.of, kernel)
    return bits | (touched(instruction.second, kernel) if instruction.second else 0)


def _bits(register: Register, kernel: Kernel) -> int:
    row = vector_row(register, kernel)
    if row is None:
        if register.bank == "scc" or (row := scalar_index(register)) is None:
            return 0
    else:
        row += SCALARS
    return (1 << register.count) - 1 << row


def _awaited(instruction: Instruction, kernel: Kernel) -> list[tuple[tuple[str, ...], int]]:
    """The counters that an instruction waits for, and the most that may be under way behind it."""
    name = instruction.name
    if name == "s_waitcnt":
        found = [_named(operand.of.text, instruction) for operand in instruction.operands if isinstance(operand.of, Named)]
        return [(_BEFORE_GFX12[counter], most) for counter, most in found]
    if name.startswith("s_waitcnt_") and name != "s_waitcnt_depctr":
        return [(_BEFORE_GFX12[name.removeprefix("s_waitcnt_")], _number(instruction))]
    if name.startswith("s_wait_") and name != "s_wait_alu":
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
