"""Packed instructions: one operation on the lower and one on the upper halves of their operands.

The halves are 32 bits of two registers (v_pk_*_f32, v_pk_mov_b32), or 16 bits of one register. For the lower result op_sel
names the half of each source, and op_sel_hi for the upper one; neg_lo and neg_hi change the signs of what they read. A scalar
source of v_pk_*_f32 is a pair of registers until gfx950; gfx1250 reads one register or literal for both halves. The upper
half of the constant 0 is 0; the upper half of another inline constant is refused.

Source: "VOP3P Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA; LLVM, GCNSubtarget,
"hasPKF32InstsReplicatingLower32BitsOfScalarInput".
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.instructions import modes
from attn_amdgcn.instructions.convert import bf16_to_f32, f32_to_bf16
from attn_amdgcn.instructions.extremes import max_ieee, max_num, maximum, min_ieee, min_num, minimum, three
from attn_amdgcn.instructions.float_arithmetic import in_float32
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, finishes, own_step, register, register_statements
from attn_amdgcn.instructions.fused import fma16, fma32, fma32_to_odd
from attn_amdgcn.operands import (
    KINDS,
    Read,
    bits_of,
    numbers,
    put,
    put_statement,
    reads_bits,
    row_of,
    scalar_index,
    unknown,
    vector_row,
)
from attn_amdgcn.pieces import Piece, Row, SourceRow, call, piece
from attn_amdgcn.waves import Waves


def _halves(instruction: Instruction, i: int) -> tuple[int, int]:
    """The halves of a source that the lower and the upper operation read."""
    sources = len(instruction.operands) - 1
    return numbers(instruction, "op_sel", sources)[i], numbers(instruction, "op_sel_hi", sources, 1)[i]


def _signs(instruction: Instruction, i: int, bits: int) -> np.ndarray | None:
    """The sign bits that change in the lower and in the upper operation."""
    flags = [numbers(instruction, name, len(instruction.operands) - 1)[i] for name in ("neg_lo", "neg_hi")]
    return np.array([flag << bits - 1 for flag in flags], f"u{bits // 8}") if any(flags) else None


def _constant(instruction: Instruction, number: float, kind: str, halves: tuple[int, int]) -> list[int]:
    """The bits that both operations read of a literal."""
    bits = bits_of(number, KINDS[kind])
    if 1 in halves and bits:
        raise unknown(instruction, "the upper half of a constant")
    return [0 if half else bits for half in halves]


def _distinct(halves: tuple[int, int]) -> tuple[int, ...]:
    """The halves, or the one that both operations read."""
    return halves if halves[0] != halves[1] else halves[:1]


def pair_value(instruction: Instruction, operand: Operand, i: int, kernel: Kernel) -> Piece:
    """[2, waves, lanes] float32 of a pair of registers, the i-th source, or what fits that shape."""
    if operand.neg or operand.abs:
        raise unknown(instruction, "the sign of a packed operand")
    one, halves = kernel.architecture.startswith("gfx125"), _halves(instruction, i)
    if isinstance(operand.of, Literal):
        constant = _constant(instruction, operand.of.number, "f32", (0, 0) if one else halves)
        value = piece("{}", np.array(constant, np.uint32).view(np.float32)[:, None, None])
    elif not isinstance(operand.of, Register):
        raise unknown(instruction)
    elif (row := vector_row(operand.of, kernel)) is not None:
        value = piece("waves.vector_f32{}", SourceRow(tuple(row + half for half in _distinct(halves))))
    elif (column := scalar_index(operand.of)) is None:
        raise unknown(instruction)
    else:
        value = piece("waves.uniform_f32[{}]", Row((column,) if one else tuple(column + half for half in _distinct(halves))))
    if (signs := _signs(instruction, i, 32)) is None:
        return value
    return piece("({}.view({}) ^ {}).view({})", value, np.uint32, signs[:, None, None], np.float32)


def write_pair(waves: Waves, row: int, value: np.ndarray) -> None:
    """Write [2, waves, lanes] into two registers."""
    if waves.lanes is None:
        waves.vector[row : row + 2] = value
    else:
        np.copyto(waves.vector[row : row + 2], value, where=waves.lanes)


def _pair_statements(
    function: Callable[..., np.ndarray], sources: int, instruction: Instruction, kernel: Kernel
) -> Sequence[Piece]:
    check_count(instruction, 1 + sources)
    check_modifiers(instruction, "op_sel", "op_sel_hi", "neg_lo", "neg_hi", "clamp")
    values = [pair_value(instruction, operand, i, kernel) for i, operand in enumerate(instruction.operands[1:])]
    row, end = row_of(instruction, instruction.operands[0], 2, kernel), finishes(instruction, KINDS["f32"])
    function = modes.flushing(instruction, kernel, function, (("f32",), ("f32",) * sources))
    result, target = call(function, values), piece("waves.vector_f32[{}]", Row((row, row + 1)))
    return piece("on = waves.lanes"), put_statement(target, piece("{}({})", end, result) if end else result)


for _name, _function, _sources in (("add", np.add, 2), ("mul", np.multiply, 2), ("fma", fma32, 3)):
    register_statements(f"v_pk_{_name}_f32", partial(_pair_statements, _function, _sources))


@own_step("v_pk_mov_b32")
def pk_mov(instruction: Instruction, kernel: Kernel) -> Step:
    """The lower result is the half of the first source that op_sel names first, the upper one that of the second source."""
    check_count(instruction, 3)
    check_modifiers(instruction, "op_sel", "op_sel_hi")
    low, high = numbers(instruction, "op_sel", 2)
    _, first, second = instruction.operands
    half = _whole(instruction, first, low, kernel), _whole(instruction, second, high, kernel)
    row = row_of(instruction, instruction.operands[0], 2, kernel)

    def step(waves: Waves) -> None:
        value = np.empty((2, *waves.shape), np.uint32)
        value[0], value[1] = half[0](waves), half[1](waves)
        write_pair(waves, row, value)

    return step


def _whole(instruction: Instruction, operand: Operand, half: int, kernel: Kernel) -> Read:
    if operand.neg or operand.abs:
        raise unknown(instruction, "the sign of a packed operand")
    if isinstance(operand.of, Literal):
        value = np.array([[_constant(instruction, operand.of.number, "b32", (half, half))[0]]], np.uint32)
        return lambda waves: value
    return reads_bits(operand, kernel, half)


def _short_step(function: Callable[..., np.ndarray], kind: str, sources: int, instruction: Instruction, kernel: Kernel) -> Step:
    """The step of an instruction on 16 bits. The function takes and returns [waves, lanes, 2] values of the kind."""
    check_count(instruction, 1 + sources)
    is_float = kind in ("f16", "bf16")
    check_modifiers(
        instruction, "op_sel", "op_sel_hi", *(("neg_lo", "neg_hi") if is_float else ()), *(("clamp",) if kind == "f16" else ())
    )
    reads = [_short_pair(instruction, operand, i, kind, kernel) for i, operand in enumerate(instruction.operands[1:])]
    row = row_of(instruction, instruction.operands[0], 1, kernel)
    end = finishes(instruction, KINDS["f16"]) if kind == "f16" else None
    function = modes.overflowing(instruction, kernel, function)

    def step(waves: Waves) -> None:
        value = function(*[read(waves) for read in reads])
        value = end(value) if end else value
        put(waves, row, np.ascontiguousarray(np.broadcast_to(value, (*value.shape[:2], 2))).view(np.uint32)[..., 0])

    return step


def _short_pair(instruction: Instruction, operand: Operand, i: int, kind: str, kernel: Kernel) -> Read:
    """Reads [waves, lanes, 2] of 16 bits."""
    if operand.neg or operand.abs:
        raise unknown(instruction, "the sign of a packed operand")
    halves, signs = _halves(instruction, i), _signs(instruction, i, 16)
    dtype = KINDS[kind].dtype
    if isinstance(operand.of, Literal):
        number = operand.of.number
        if isinstance(number, int) and not -16 <= number <= 64:  # a literal of 32 bits has two halves
            bits = [number >> 16 * half & 0xFFFF for half in halves]
        else:
            bits = _constant(instruction, number, kind, halves)
        constant = np.array([[bits]], np.uint16)
        constant = (constant if signs is None else constant ^ signs).view(dtype)
        return lambda waves: constant
    read = reads_bits(operand, kernel)
    chosen = {(0, 1): slice(None), (1, 0): slice(None, None, -1), (0, 0): slice(0, 1), (1, 1): slice(1, 2)}[halves]

    def pair(waves: Waves) -> np.ndarray:
        bits = read(waves)
        value = np.ascontiguousarray(bits).view(np.uint16).reshape(*bits.shape, 2)[..., chosen]
        return (value if signs is None else value ^ signs).view(dtype)

    return pair


def in_bf16(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of bfloat16 bits, computed in float32 and rounded."""
    return lambda *values: f32_to_bf16(function(*(bf16_to_f32(value) for value in values)))


def _bf16_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return f32_to_bf16(fma32_to_odd(bf16_to_f32(a), bf16_to_f32(b), bf16_to_f32(c)))


_SHORT: dict[str, tuple[Callable[..., np.ndarray], str, int]] = {
    "v_pk_add_f16": (in_float32(np.add), "f16", 2),
    "v_pk_mul_f16": (in_float32(np.multiply), "f16", 2),
    "v_pk_fma_f16": (fma16, "f16", 3),
    "v_pk_max_f16": (max_ieee, "f16", 2),
    "v_pk_min_f16": (min_ieee, "f16", 2),
    "v_pk_max_num_f16": (max_num, "f16", 2),
    "v_pk_min_num_f16": (min_num, "f16", 2),
    "v_pk_maximum_f16": (maximum, "f16", 2),
    "v_pk_minimum_f16": (minimum, "f16", 2),
    "v_pk_maximum3_f16": (three(maximum, maximum), "f16", 3),
    "v_pk_minimum3_f16": (three(minimum, minimum), "f16", 3),
    "v_pk_add_bf16": (in_bf16(np.add), "bf16", 2),
    "v_pk_mul_bf16": (in_bf16(np.multiply), "bf16", 2),
    "v_pk_fma_bf16": (_bf16_fma, "bf16", 3),
    "v_pk_max_num_bf16": (in_bf16(max_num), "bf16", 2),
    "v_pk_min_num_bf16": (in_bf16(min_num), "bf16", 2),
    "v_pk_mad_i16": (lambda a, b, c: a * b + c, "i16", 3),
    "v_pk_mad_u16": (lambda a, b, c: a * b + c, "u16", 3),
    "v_pk_mul_lo_u16": (np.multiply, "u16", 2),
    "v_pk_lshlrev_b16": (lambda count, a: a << (count & np.uint16(15)), "u16", 2),
    "v_pk_lshrrev_b16": (lambda count, a: a >> (count & np.uint16(15)), "u16", 2),
    "v_pk_ashrrev_i16": (lambda count, a: a >> (count & np.int16(15)), "i16", 2),
}
for _kind in ("i16", "u16"):
    _SHORT |= {
        f"v_pk_add_{_kind}": (np.add, _kind, 2),
        f"v_pk_sub_{_kind}": (np.subtract, _kind, 2),
        f"v_pk_max_{_kind}": (np.maximum, _kind, 2),
        f"v_pk_min_{_kind}": (np.minimum, _kind, 2),
    }
for _name, (_function, _kind, _sources) in _SHORT.items():
    register(_name, partial(_short_step, _function, _kind, _sources))
