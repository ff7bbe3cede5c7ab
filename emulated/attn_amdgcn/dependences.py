"""Finds instructions that may be swapped because either order leaves the same registers and the same memory.

An instruction touches the registers that it names, EXEC, and a few registers that some instructions read without naming them.
An instruction stays at its place if no meaning of `instructions.forms` says which of its operands are results.
"""

from typing import NamedTuple

from attn_amdgcn import waits
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.instructions.forms import GROUPED, INDEXED, SCALAR, VECTOR

_MEMORY = 1 << 4096
"""The bit of memory: no register has it in `waits.bits_of_register`."""
_OF_LANES = ("v_readlane_b32", "v_readfirstlane_b32", "v_writelane_b32")


class Effects(NamedTuple):
    """The registers and the memory that instructions touch and write: bits of `waits.bits_of_register`, and one for memory.

    SCC has no bit: only scalar instructions touch it, and they keep their order. The bit of memory stands for everything that
    has an order: loads and stores, what watches see, and which fault is the first one.
    """

    touched: int = 0
    written: int = 0

    def order(self, later: "Effects") -> bool:
        """True if a later instruction must stay after this group."""
        return bool(self.written & later.touched or self.touched & later.written)

    def feed(self, later: "Effects") -> bool:
        """True if a later instruction reads a register that this group writes (RAW). It may write what the group reads
        (WAR)."""
        return bool(self.written & later.touched & ~_MEMORY)

    def __or__(self, other: "Effects") -> "Effects":
        return Effects(self.touched | other.touched, self.written | other.written)


_ANY = Effects(-1, -1)


def effects(instruction: Instruction, kernel: Kernel) -> Effects:
    """The effects of an instruction; all bits, if its meaning does not say which."""
    name, implicit = instruction.name, ["exec"]
    if INDEXED in instruction.modifiers:
        return _ANY
    if waits.counters_of(instruction, kernel):
        written, implicit = waits.loaded(instruction, kernel) | _MEMORY, ["exec", "m0"]
    elif name in SCALAR:
        written, implicit = waits.bits_of(instruction.operands[: len({*SCALAR[name].results} - {"scc"})], kernel), []
    elif instruction.second:
        written, implicit = waits.result(instruction, kernel), ["exec", "vcc"]
    elif name in VECTOR:
        written = waits.bits_of(instruction.operands[: len(VECTOR[name].results)], kernel)
    elif name in GROUPED or name in _OF_LANES:
        written = waits.result(instruction, kernel)
    else:
        return _ANY
    named = waits.touched(instruction, kernel) | waits.bits_of([Operand(Register(bank, 0, 2)) for bank in implicit], kernel)
    return Effects(named | written, written)


def results_of(instruction: Instruction, kernel: Kernel) -> int:
    """The number of leading operands that are results."""
    name = instruction.name
    if waits.counters_of(instruction, kernel):
        return 1 if waits.loaded(instruction, kernel) else 0
    if name in SCALAR:
        return len({*SCALAR[name].results} - {"scc"})
    if name in VECTOR:
        return len(VECTOR[name].results)
    if name.startswith("v_") and "swap_b32" in name:
        return 2
    first = instruction.operands[0].of if instruction.operands else None
    return 1 if isinstance(first, Register) else 0
