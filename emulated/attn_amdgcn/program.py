"""A kernel made ready to run: basic blocks, and a function for each instruction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from attn_amdgcn import groups, instructions, lds_loads, waits
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Register
from attn_amdgcn.collector import collector_paused
from attn_amdgcn.errors import MALFORMED, AssemblyError, Hazards, UnknownInstructionError, malformed, shown
from attn_amdgcn.instructions import indexing, modes
from attn_amdgcn.instructions.control import BARRIERS, BRANCHES, CONDITIONS, ENDS
from attn_amdgcn.operands import label_of, unknown, vector_row
from attn_amdgcn.waves import Waves

ARCHITECTURES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")
"""The architectures that are known. Others have instructions of the same names, whose meanings were not compared."""


@dataclass(frozen=True)
class Block:
    """Instructions that run one after another.

    Attributes:
        code: its instructions, the one that ends it included.
        steps: what they do, without the one that ends it and those that change no value. A step may serve several instructions
            (`attn_amdgcn.groups`); with each stands the place of its first one in `code`.
        condition: [waves] bool, which waves go to `target`; None if all do.
        target: the block to which a branch leads; None if the block ends without a branch.
        ends: True if waves end after the block.
        is_barrier: True if waves wait after the block for the others of their workgroup.
    """

    code: tuple[Instruction, ...]
    steps: tuple[tuple[int, Callable[[Waves], None]], ...]
    condition: Callable[[Waves], np.ndarray] | None = None
    target: int | None = None
    ends: bool = False
    is_barrier: bool = False


@dataclass(frozen=True)
class Program:
    """A kernel and its blocks. A block without a branch is followed by the next one.

    Attributes:
        loads_into_lds: True if it has loads from memory into LDS (`attn_amdgcn.lds_loads`).
        evenly: see `prepare`.
    """

    kernel: Kernel
    blocks: tuple[Block, ...]
    loads_into_lds: bool = False
    evenly: bool = False
    _after: dict[tuple[int, waits.State], tuple[waits.State, Hazards]] = field(default_factory=dict, repr=False, compare=False)

    def after(self, block: int, state: waits.State, hazards: Hazards | None = None) -> waits.State:
        """The loads and stores under way after a block that was entered with a state. The answer is kept for all launches.

        Args:
            hazards: the record of faults.

        Raises:
            EmulationFault: an instruction touches a pending register, and there is no record.
        """
        key = block, state
        if key not in self._after:
            found: Hazards = {}
            self._after[key] = waits.after(self.blocks[block].code, state, self.kernel, found), found
        state_after, found = self._after[key]
        if hazards is None and found:
            raise next(iter(found.values()))
        if hazards is not None:
            hazards.update(found)
        return state_after


@collector_paused()
def prepare(kernel: Kernel, *, evenly: bool = False) -> Program:
    """Make a kernel ready to run.

    Args:
        evenly: True if blocks end before each s_waitcnt, too, and of groups of waves that stand at several blocks the one runs
            next that has run the fewest instructions since the last barrier. So waves in copies of one loop keep in step, as on
            hardware, and a race between them does not decide what is read.

    Raises:
        UnknownInstructionError: the architecture, an instruction or a mode has no meaning here. Nothing was run.
        AssemblyError: a branch leads to no label, or the code does not end.
    """
    if kernel.architecture not in ARCHITECTURES:
        raise UnknownInstructionError(f"architecture {shown(repr(kernel.architecture))}: {', '.join(ARCHITECTURES)} are known")
    modes.check(kernel)
    for instruction in kernel.instructions:
        _check_registers(instruction, kernel)
        _check_form(waits.awaited, instruction)
    final = kernel.instructions[-1]
    if final.name not in (*ENDS, "s_branch"):
        raise AssemblyError(f"line {final.line}: `{final.text}`: the code ends without s_endpgm")
    last = (*BRANCHES, *ENDS, *BARRIERS)
    branches = [label_of(instruction) for instruction in kernel.instructions if instruction.name in BRANCHES]
    begins = {0, *(kernel.labels[label] for label in branches if label in kernel.labels)}  # other labels are a debugger's
    begins |= {i + 1 for i, instruction in enumerate(kernel.instructions) if instruction.name in last}
    if evenly:
        begins |= {i for i, instruction in enumerate(kernel.instructions) if instruction.name == "s_waitcnt"}
    places = sorted(place for place in begins if place < len(kernel.instructions))
    number = {place: i for i, place in enumerate(places)}
    into_lds = lds_loads.are_in(kernel)
    blocks = (_block(kernel, begin, end, number, into_lds) for begin, end in zip(places, [*places[1:], None], strict=True))
    return Program(kernel, tuple(blocks), into_lds, evenly)


def _block(kernel: Kernel, begin: int, end: int | None, number: dict[int, int], loads_into_lds: bool) -> Block:
    code = indexing.marked(kernel.instructions[begin:end])
    final = code[-1]
    ending = final.name in (*BRANCHES, *ENDS, *BARRIERS)
    plain = code[:-1] if ending else code
    try:
        steps = (_steps_seen if loads_into_lds else groups.steps_of)(plain, kernel)
    except MALFORMED:
        for instruction in plain:
            _check_form(instructions.step, instruction, kernel)
        raise
    if final.name == "s_barrier_wait" and [operand.of for operand in final.operands] != [Literal(-1)]:
        raise unknown(final, "a barrier of another number than -1")
    if final.name in BRANCHES:
        label = label_of(final)
        if label not in kernel.labels or kernel.labels[label] not in number:
            raise AssemblyError(f"line {final.line}: `{final.text}`: there is no such label")
        return Block(code, steps, CONDITIONS.get(final.name), number[kernel.labels[label]])
    return Block(code, steps, ends=final.name in ENDS, is_barrier=final.name in BARRIERS)


def _check_registers(instruction: Instruction, kernel: Kernel) -> None:
    """Refuse a vector register that the kernel does not have.

    Raises:
        AssemblyError: it has fewer.
    """
    has = kernel.settings["next_free_vgpr"]
    for register in (operand.of for operand in instruction.operands if isinstance(operand.of, Register)):
        row = vector_row(register, kernel)
        if row is not None and row + register.count > has:
            what = f"{register.bank}{register.index + register.count - 1}"
            raise AssemblyError(f"line {instruction.line}: `{instruction.text}`: {what}: the kernel has {has} vector registers")
    if instruction.second:
        _check_registers(instruction.second, kernel)


def _check_form(read: Callable[..., object], instruction: Instruction, *kernel: Kernel) -> None:
    """Raises AssemblyError, with the line, if the instruction has other operands or modifiers than its name says."""
    try:
        read(instruction, *kernel)
    except MALFORMED as error:
        raise malformed(instruction, error) from error


def _steps_seen(code: Sequence[Instruction], kernel: Kernel) -> tuple[groups.Placed, ...]:
    """The steps of a block at which watches see what vmcnt counts."""
    return tuple(
        (place, lds_loads.seen(instruction, instructions.step(instruction, kernel), kernel))
        for place, instruction in enumerate(code)
    )
