"""Sums, products and roundings of floats in vector registers.

Denormals are kept unless the kernel's mode flushes them (`modes.flushing`), and a result is rounded once, to nearest even,
except in v_mac and v_mad of float32. float16 is computed in float32: a product of two has 22 bits and is exact; a sum, which
float32 rounds to 24 bits, rounds to the same 11 bits as the exact sum does, because 24 >= 2 * 11 + 2 (Figueroa, "When is
Double Rounding Innocuous?", 1995), and a denormal sum is exact.

Source: "VOP1", "VOP2" and "VOP3 Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA; v_mac_f32 and v_madmk_f32:
AMD's MI200 ISA.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal
from attn_amdgcn.instructions.convert import f32_to_bf16
from attn_amdgcn.instructions.forms import (
    Step,
    check_count,
    check_modifiers,
    finishes,
    own_step,
    signed_value,
    upper_half,
    vector,
    with_signs,
)
from attn_amdgcn.instructions.fused import F16, F32, fma16, fma32, fma64
from attn_amdgcn.instructions.modes import flushed, overflowing
from attn_amdgcn.operands import KINDS, Read, bits_value, numbers, unknown, vector_value, writes_vector
from attn_amdgcn.pieces import piece, value_of
from attn_amdgcn.waves import Waves


def in_float32(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of float16 that is computed in float32 and rounded."""
    return lambda *values: function(*(value.astype(F32) for value in values)).astype(F16)


def register_float(name: str, signature: str, function: Callable[..., np.ndarray], kinds: str = "f16 f32 f64") -> None:
    """Register `name_f16`, `name_f32` and `name_f64`; `f` in the signature is the kind."""
    for kind in kinds.split():
        compute = in_float32(function) if kind == "f16" else function
        takes = ("clamp", "op_sel") if kind == "f16" else ("clamp",)
        vector(f"{name}_{kind}", " ".join(kind if word == "f" else word for word in signature.split()), takes=takes)(compute)


def fract(a: np.ndarray) -> np.ndarray:
    """The fraction, in [0, 1): below 1 even where the difference rounds to 1."""
    return np.minimum(a - np.floor(a), np.nextafter(a.dtype.type(1), a.dtype.type(0)))


register_float("v_add", "f = f f", np.add)
register_float("v_sub", "f = f f", np.subtract)
register_float("v_subrev", "f = f f", lambda a, b: b - a, "f16 f32")
register_float("v_mul", "f = f f", np.multiply)
register_float("v_floor", "f = f", np.floor)
register_float("v_ceil", "f = f", np.ceil)
register_float("v_trunc", "f = f", np.trunc)
register_float("v_rndne", "f = f", np.rint)
register_float("v_fract", "f = f", fract, "f32 f64")
vector("v_add_num_f64", "f64 = f64 f64", takes=("clamp",))(np.add)
vector("v_mul_num_f64", "f64 = f64 f64", takes=("clamp",))(np.multiply)


@vector("v_fract_f16", "f16 = f16", takes=("clamp", "op_sel"))
def fract16(a):
    """The fraction. The difference is rounded to float16 before it is limited to below 1."""
    wide = a.astype(F32)
    return np.minimum((wide - np.floor(wide)).astype(F16), np.nextafter(F16(1), F16(0)))


@vector("v_mul_legacy_f32 v_mul_dx9_zero_f32", "f32 = f32 f32", takes=("clamp",))
def mul_legacy(a, b):
    """A product in which 0 times anything is +0."""
    return np.where((a == 0) | (b == 0), F32(0), a * b)


vector("v_fma_f32", "f32 = f32 f32 f32", takes=("clamp",))(fma32)
vector("v_fmaak_f32 v_fmamk_f32", "f32 = f32 f32 f32")(fma32)
vector("v_fmac_f32", "f32 = f32 f32 *f32", takes=("clamp",))(fma32)
vector("v_fma_f16", "f16 = f16 f16 f16", takes=("clamp", "op_sel"), keeps_half=True)(fma16)
vector("v_fmaak_f16 v_fmamk_f16", "f16 = f16 f16 f16")(fma16)
vector("v_fmac_f16", "f16 = f16 f16 *f16", takes=("clamp",))(fma16)
vector("v_fma_f64", "f64 = f64 f64 f64", takes=("clamp",))(fma64)
vector("v_fmac_f64", "f64 = f64 f64 *f64", takes=("clamp",))(fma64)


@vector("v_mad_f32 v_madmk_f32 v_madak_f32", "f32 = f32 f32 f32", takes=("clamp",))
@vector("v_mac_f32", "f32 = f32 f32 *f32", takes=("clamp",))
def mad(a, b, c):
    """The product is rounded, then the sum. Denormals are flushed in any mode (LLVM: AMDGPUISD::FMAD_FTZ)."""
    return flushed(flushed(flushed(a) * flushed(b)) + flushed(c))


@vector("v_ldexp_f32", "f32 = f32 i32", takes=("clamp",))
@vector("v_ldexp_f16", "f16 = f16 i16", takes=("clamp", "op_sel"))
@vector("v_ldexp_f64", "f64 = f64 i32", takes=("clamp",))
def ldexp(a, exponent):
    """a * 2^exponent, in float64 and rounded once. Exponents beyond 2500 give the same result as 2500."""
    return np.ldexp(a.astype(np.float64), np.clip(exponent, -2500, 2500).astype(np.int32)).astype(a.dtype)


for _kind in ("f16", "f32", "f64"):
    # in [0.5, 1); infinities and NaN as they are: some C libraries' frexp sets the quiet bit of a NaN
    vector(f"v_frexp_mant_{_kind}", f"{_kind} = {_kind}")(lambda a: np.where(np.isfinite(a), np.frexp(a)[0], a))


@vector("v_frexp_exp_i32_f32", "i32 = f32")
@vector("v_frexp_exp_i32_f64", "i32 = f64")
@vector("v_frexp_exp_i16_f16", "i16 = f16")
def frexp_exp(a):
    """The exponent of frexp; 0 for infinities and NaN."""
    return np.where(np.isfinite(a), np.frexp(a)[1], 0).astype(np.int16 if a.dtype == F16 else np.int32)


_CONSTANTS = (0.0, *(sign * number for number in (0.5, 1.0, 2.0, 4.0) for sign in (1, -1)))
"""Floats that stand in an instruction's own word."""


def mix_source(instruction: Instruction, kernel: Kernel, i: int) -> Read:
    """A source of v_fma_mix: float32, or, with op_sel_hi, the half of a register that op_sel names, made float32.

    Of gfx1250's v_fma_mix_f32_bf16 and its like a half is a bf16, which is the upper half of its float32. A constant such as
    1.0 is a float16 in the lower half of a source, and of v_fma_mix_f32_bf16 a float32 (LLVM pull request 183487).
    """
    operand = instruction.operands[1 + i]
    halves, wide = (numbers(instruction, name, 3) for name in ("op_sel", "op_sel_hi"))
    if not wide[i]:
        return value_of(signed_value(operand, KINDS["f32"], kernel))
    short = not instruction.name.endswith("bf16")
    if isinstance(operand.of, Literal) and (operand.of.number not in _CONSTANTS or (short and halves[i])):
        raise unknown(instruction, "a literal as a source of 16 bits")
    if not short:
        bits = bits_value(operand, kernel)
        half = piece("({} & {})", bits, np.uint32(0xFFFF0000)) if halves[i] else piece("({} << {})", bits, np.uint32(16))
        return value_of(with_signs(operand, piece("{}.view({})", half, F32), KINDS["f32"]))
    kind = KINDS["f16"]
    half = upper_half(bits_value(operand, kernel), kind) if halves[i] else vector_value(operand, kind, kernel)
    return value_of(piece("{}.astype({})", with_signs(operand, half, kind), F32))


def _narrow_sum(a, b, c):
    return fma32(a, b, c).astype(F16)


def _sum_in_bf16(a, b, c):
    return f32_to_bf16(fma32(a, b, c))


@own_step("v_fma_mix_f32 v_fma_mix_f32_bf16 v_fma_mixlo_f16 v_fma_mixhi_f16 v_fma_mixlo_bf16 v_fma_mixhi_bf16")
def fma_mix(instruction: Instruction, kernel: Kernel) -> Step:
    """A sum rounded to float32. mixlo and mixhi round it again, to 16 bits, and write one half of the result's register."""
    check_count(instruction, 4)
    to = "f32" if instruction.name.startswith("v_fma_mix_f32") else instruction.name.rpartition("_")[2]
    check_modifiers(instruction, "op_sel", "op_sel_hi", *(("clamp",) if to != "bf16" else ()))
    reads = [mix_source(instruction, kernel, i) for i in range(3)]
    target = instruction.operands[0]
    if instruction.name.startswith("v_fma_mixhi"):
        target = replace(target, of=replace(target.of, half="h"))
    kind = KINDS["u16" if to == "bf16" else to]
    write, end = writes_vector(target, kind, kernel, keeps_half=True), finishes(instruction, kind)
    total = {"f32": fma32, "f16": overflowing(instruction, kernel, _narrow_sum), "bf16": _sum_in_bf16}[to]

    def step(waves: Waves) -> None:
        value = total(*[read(waves) for read in reads])
        write(waves, end(value) if end else value)

    return step
