"""Products of pairs of 16 bits, and their sum.

v_dot2_bf16_bf16 adds the product of the lower halves of its first two sources, the product of their upper halves, and its third
source, which is a bfloat16. op_sel names the half of the third source and, last, of the result. A constant is the 32 bits of
both halves: a float such as -1.0 is a bfloat16 in the lower half, and the upper half is 0.

AMD does not say where the sum is rounded. Here it is rounded once. Triton multiplies two bfloat16 by it, with zeros in all
other places: one product is rounded once, wherever the rounding is.

v_dot2_f32_f16 and v_dot2c_f32_f16 add a float32 and the two products of float16, the lower halves' first. A denormal float32
becomes 0, as a source and as the result, whatever the modes say. Each sum is rounded here, in the order of AMD's pseudocode;
AMD does not say that hardware does so. v_dot2_f32_bf16 and v_dot2c_f32_bf16 do the same with bfloat16, and keep its denormals.

Source: "VOP3 Instructions" in AMD's RDNA3 ISA and in AMD's RDNA4 ISA; "VOP2" and "VOP3P Instructions" in AMD's Instinct MI300
ISA, and of bfloat16 in AMD's Instinct MI355 ISA; in LLVM getInlineEncodingV2BF16 for constants, and performFMACombine for
denormals.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.instructions.convert import bf16_to_f32, f32_to_bf16
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, vector
from attn_amdgcn.instructions.fused import F16, F32, dot2_to_odd, fma32
from attn_amdgcn.operands import KINDS, reads_bits, reads_vector, unknown, writes_vector
from attn_amdgcn.waves import Waves


@own_step("v_dot2_bf16_bf16")
def dot2_bf16(instruction: Instruction, kernel: Kernel) -> Step:
    check_count(instruction, 4)
    check_modifiers(instruction, "op_sel")
    if any(operand.neg or operand.abs or operand.sext for operand in instruction.operands):
        raise unknown(instruction, "the sign of an operand")
    halves = instruction.modifiers.get("op_sel", (0, 0, 0, 0))
    if not isinstance(halves, tuple) or len(halves) != 4:
        raise unknown(instruction, "op_sel names 4 halves")
    target, first, second, third = (_without_floats(operand) for operand in instruction.operands)
    read_a, read_b = reads_bits(first, kernel), reads_bits(second, kernel)
    read_c = reads_vector(_half(third, halves[2]), KINDS["b16"], kernel)
    write = writes_vector(_half(target, halves[3]), KINDS["b16"], kernel, keeps_half=True)

    def step(waves: Waves) -> None:
        a, b = read_a(waves), read_b(waves)
        of_low, of_high = ((bf16_to_f32(part(a)), bf16_to_f32(part(b))) for part in (_low, _high))
        write(waves, f32_to_bf16(dot2_to_odd(*of_low, *of_high, bf16_to_f32(read_c(waves)))))

    return step


def _without_floats(operand: Operand) -> Operand:
    """The operand, a float constant as the bits of its bfloat16."""
    if isinstance(operand.of, Literal) and isinstance(operand.of.number, float):
        return replace(operand, of=Literal(int(np.float32(operand.of.number).view(np.uint32)) >> 16))
    return operand


def _half(operand: Operand, is_high: int) -> Operand:
    if is_high and isinstance(operand.of, Register):
        return replace(operand, of=replace(operand.of, half="h"))
    return operand


def _low(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16)


def _high(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint32(16)).astype(np.uint16)


@vector("v_dot2_f32_f16", "f32 = b32 b32 f32")
@vector("v_dot2c_f32_f16", "f32 = b32 b32 *f32")
def dot2_f16(a, b, c):
    return _sum(a, b, c, lambda bits: bits.view(F16).astype(F32))


@vector("v_dot2_f32_bf16", "f32 = b32 b32 f32")
@vector("v_dot2c_f32_bf16", "f32 = b32 b32 *f32")
def dot2_f32_bf16(a, b, c):
    return _sum(a, b, c, bf16_to_f32)


def _sum(a: np.ndarray, b: np.ndarray, c: np.ndarray, in_float32: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    total = _flushed(c)
    for part in (_low, _high):
        total = _flushed(fma32(in_float32(part(a)), in_float32(part(b)), total))
    return total


def _flushed(a: np.ndarray) -> np.ndarray:
    return np.where(np.abs(a) < np.finfo(F32).tiny, np.copysign(F32(0), a), a)
