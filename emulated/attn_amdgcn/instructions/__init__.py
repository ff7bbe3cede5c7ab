"""What each instruction does: one function for each meaning, in a module for each family."""

from collections.abc import Callable

from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.instructions import (
    bits,
    buffer_memory,
    compare,
    control,
    convert,
    cross_lane,
    division,
    dot,
    extremes,
    float8,
    float_arithmetic,
    global_memory,
    integer_arithmetic,
    lds,
    matrix,
    moves,
    packed,
    scalar,
    scalar_float,
    scalar_memory,
    scratch,
    to_lds,
    transcendental,
)
from attn_amdgcn.instructions.forms import REGISTERED, dual_step
from attn_amdgcn.operands import unknown
from attn_amdgcn.waves import Waves

FAMILIES = (
    scalar,
    scalar_float,
    scalar_memory,
    moves,
    bits,
    integer_arithmetic,
    float_arithmetic,
    extremes,
    transcendental,
    division,
    packed,
    dot,
    compare,
    convert,
    float8,
    cross_lane,
    global_memory,
    buffer_memory,
    scratch,
    lds,
    to_lds,
    matrix,
    control,
)
"""The modules that register instructions when they are imported."""


def step(instruction: Instruction, kernel: Kernel) -> Callable[[Waves], None]:
    """The function that carries out an instruction on waves.

    Raises:
        UnknownInstructionError: the instruction, an operand or a modifier has no meaning here.
    """
    if instruction.second is not None:
        return dual_step(instruction, kernel)
    if instruction.name not in REGISTERED:
        raise unknown(instruction)
    return REGISTERED[instruction.name](instruction, kernel)
