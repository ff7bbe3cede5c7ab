"""Copies and selections.

Source: "VOP1", "VOP2" and "VOP3 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA.
"""

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, vector
from attn_amdgcn.operands import put, row_of
from attn_amdgcn.waves import Waves


@vector("v_mov_b16", "b16 = b16")
@vector("v_mov_b32 v_accvgpr_read_b32 v_accvgpr_write_b32 v_accvgpr_mov_b32", "b32 = b32")
@vector("v_mov_b64", "b64 = b64")
def mov(a):
    return a


@vector("v_cndmask_b16", "f16 = f16 f16 mask")
@vector("v_cndmask_b32", "f32 = f32 f32 mask")
def cndmask(a, b, mask):
    """Bits, which as those of floats may have sign modifiers."""
    return np.where(mask, b, a)


@own_step("v_swap_b32")
def swap(instruction: Instruction, kernel: Kernel) -> Step:
    """Swap two registers."""
    check_count(instruction, 2)
    check_modifiers(instruction)
    first, second = (row_of(instruction, operand, 1, kernel) for operand in instruction.operands)

    def step(waves: Waves) -> None:
        kept = waves.vector[first].copy()
        put(waves, first, waves.vector[second])
        put(waves, second, kept)

    return step
