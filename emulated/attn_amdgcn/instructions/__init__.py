"""The meanings of instructions: one function for each meaning, in a module for each family."""

from collections.abc import Sequence

from attn_amdgcn.assembly import Instruction, Kernel, Register
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
    indexing,
    integer_arithmetic,
    lds,
    matrix,
    moves,
    packed,
    scalar,
    scalar_float,
    scalar_memory,
    scratch,
    tensor_dma,
    to_lds,
    transcendental,
)
from attn_amdgcn.instructions.forms import REGISTERED, SCALAR, Step, dual_step, scalar_step
from attn_amdgcn.operands import unknown

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
    tensor_dma,
    matrix,
    indexing,
    control,
)
"""The modules that register instructions when they are imported."""


def step(instruction: Instruction, kernel: Kernel, *, scc_matters: bool = True) -> Step:
    """The function that carries out an instruction on waves.

    Args:
        scc_matters: True if a later instruction may read the SCC of this one.

    Raises:
        UnknownInstructionError: the instruction, an operand or a modifier has no meaning here.
    """
    if instruction.second is not None:
        return dual_step(instruction, kernel)
    if instruction.name not in REGISTERED:
        raise unknown(instruction)
    if instruction.name in SCALAR:
        return scalar_step(instruction, kernel, scc_matters=scc_matters)
    return REGISTERED[instruction.name](instruction, kernel)


def scc_matters(code: Sequence[Instruction]) -> list[bool]:
    """For each instruction of a block, True if another one may read its SCC before SCC is written again."""
    matters, found = True, []
    for instruction in reversed(code):
        found.append(matters)
        meaning = SCALAR.get(instruction.name)
        if _may_read_scc(instruction):
            matters = True
        elif meaning is not None and "scc" in meaning.results:
            matters = False
    return found[::-1]


def _may_read_scc(instruction: Instruction) -> bool:
    """False for vector instructions and loads. Scalar instructions whose operands have no common form may read SCC."""
    if any(isinstance(operand.of, Register) and operand.of.bank == "scc" for operand in instruction.operands):
        return True
    if instruction.name in SCALAR:
        return "scc" in SCALAR[instruction.name].sources
    return instruction.name.startswith("s_") and not instruction.name.startswith("s_load") and instruction.name not in _PASSIVE


def changes_nothing(instruction: Instruction) -> bool:
    """True if an instruction changes only timing or caches."""
    return instruction.name in _PASSIVE


_PASSIVE = frozenset(f"{control.NO_EFFECT} {control.WAITS}".split())
