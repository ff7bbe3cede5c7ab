"""Registers that M0 points at: between s_set_gpr_idx_on and s_set_gpr_idx_off, each wave reads its own register as SRC0.

Hardware keeps the mode in a bit of MODE, whichever way a wave comes. Here both instructions stand in one basic block, so it is
known before a kernel runs which instructions the mode changes. The waits for loads look at the register that is named, and not
at the one that M0 points at.

Source: "VGPR Indexing" and "SOPC Instructions" (S_SET_GPR_IDX_ON) in AMD's Instinct MI300 ISA.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Named, Register
from attn_amdgcn.instructions.forms import INDEXED, VECTOR, Step, check_count, own_step
from attn_amdgcn.operands import KINDS, reads_scalar, unknown
from attn_amdgcn.waves import M0, Waves

ON, OFF = "s_set_gpr_idx_on", "s_set_gpr_idx_off"
_SRC0 = 1
_OF_MODE = np.uint32(0xF0FF)
"""The bits of M0 that are written: the index, and above it the operands that it moves."""


@own_step(ON)
def set_index(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 2)
    if instruction.operands[1].of != Named("gpr_idx(SRC0)"):
        raise unknown(instruction, "an index of another operand than SRC0")
    index = reads_scalar(instruction.operands[0], KINDS["u32"], kernel)

    def step(waves: Waves) -> None:
        waves.scalars[M0] = waves.scalars[M0] & ~_OF_MODE | index(waves) & np.uint32(0xFF) | np.uint32(_SRC0 << 12)

    return step


@own_step(OFF)
def forget_index(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 0)
    return lambda waves: None


def marked(block: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """The instructions of a basic block; those whose SRC0 is indexed have the modifier INDEXED.

    Raises:
        UnknownInstructionError: what is indexed has no meaning here, or the mode does not end in the block.
    """
    found: list[Instruction] = []
    on: Instruction | None = None
    for instruction in block:
        if instruction.name in (ON, OFF):
            on = instruction if instruction.name == ON else None
        elif on is not None:
            instruction = _indexed(instruction)
        found.append(instruction)
    if on is not None:
        raise unknown(on, f"no {OFF} after it in its basic block")
    return tuple(found)


def _indexed(instruction: Instruction) -> Instruction:
    meaning = VECTOR.get(instruction.name)
    names_m0 = any(isinstance(each.of, Register) and each.of.bank == "m0" for each in instruction.operands)
    if names_m0 or (meaning is None and not instruction.name.startswith("s_")):
        raise unknown(instruction, f"an operand by index after {ON}")
    if meaning is None:
        return instruction
    if instruction.encoding.endswith(("dpp", "sdwa")) or len(instruction.operands) <= len(meaning.results):
        raise unknown(instruction, f"this form after {ON}")
    source = instruction.operands[len(meaning.results)].of
    if not isinstance(source, Register) or source.bank not in ("v", "a"):
        return instruction  # no vector register: the index moves nothing
    return replace(instruction, modifiers={**instruction.modifiers, INDEXED: True})
