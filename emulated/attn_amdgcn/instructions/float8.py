"""Conversions between float32 and floats of 8 bits.

fp8 has 3 bits of mantissa and bf8 has 2. gfx940 to gfx942 have the formats e4m3fnuz and e5m2fnuz: no infinities, no -0, and
0x80 is the NaN. Others have OCP's e4m3fn, which has no infinities, and e5m2. With fp16_overflow off, a number beyond the
largest one becomes an infinity, or the NaN of a format without infinities; with FP16_OVFL it becomes the largest one, and so
does an infinity (OCP's saturating mode). Rounding is to nearest even, and denormals are kept.

Source: "Number Formats" and V_CVT_PK_FP8_F32 in AMD's Instinct MI300 ISA, V_CVT_F32_FP8 in AMD's RDNA4 ISA, and
V_CVT_SCALEF32_PK_F32_FP8 in AMD's Instinct MI355 ISA; llvm.amdgcn.cvt.scale.pk8 in LLVM's intrinsics for gfx1250; "OCP 8-bit
Floating Point Specification", tables 1 and 2. FP16_OVFL: AMD's emulator rocjitsu (pull request 9030 of ROCm/rocm-systems),
and what Triton sets it for (pull request 7337).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Operand, Register
from attn_amdgcn.instructions import modes
from attn_amdgcn.instructions.formats import LOADS, data_row, writes_data
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, signed_value
from attn_amdgcn.instructions.fused import F64
from attn_amdgcn.instructions.matrix.elements import small_floats
from attn_amdgcn.operands import KINDS, put, reads_bits, row_of, unknown, writes_vector
from attn_amdgcn.pieces import value_of
from attn_amdgcn.waves import Waves


@dataclass(frozen=True)
class Format:
    """A float of 8 bits: a sign, an exponent and a mantissa.

    Attributes:
        mantissa: how many bits it has.
        bias: of the exponent.
        largest: the code of the largest number.
        beyond: the code of numbers beyond it: of infinity, or of a NaN.
        nan: the code of a NaN.
        has_negative_zero: else 0x80 is the NaN, and a negative number that rounds to 0 becomes 0.
    """

    mantissa: int
    bias: int
    largest: int
    beyond: int
    nan: int
    has_negative_zero: bool


FORMATS = {
    ("fp8", False): Format(3, 7, 0x7E, 0x7F, 0x7F, True),
    ("bf8", False): Format(2, 15, 0x7B, 0x7C, 0x7F, True),
    ("fp8", True): Format(3, 8, 0x7F, 0x80, 0x80, False),
    ("bf8", True): Format(2, 16, 0x7F, 0x80, 0x80, False),
}
"""By the word in the mnemonic, and whether it is the format of gfx940 to gfx942."""


_WITHOUT_NEGATIVE_ZERO = ("gfx940", "gfx941", "gfx942")


def format_of(instruction: Instruction, kernel: Kernel) -> Format:
    word = "bf8" if "bf8" in instruction.name else "fp8"
    found = FORMATS[word, kernel.architecture in _WITHOUT_NEGATIVE_ZERO]
    return replace(found, beyond=found.largest) if modes.sets_overflow(kernel) else found


def encoded(a: np.ndarray, to: Format) -> np.ndarray:
    """uint16: the codes of float32 numbers."""
    magnitude = np.abs(a).astype(F64)
    least = 1 - to.bias
    exponent = np.frexp(np.fmax(magnitude, 2.0**least))[1] - 1
    steps = np.rint(np.ldexp(magnitude, to.mantissa - exponent))  # a carry into the exponent is a carry of the code
    code = np.clip((exponent - least).astype(F64) * (1 << to.mantissa) + steps, 0, 0x7F00)
    code = np.where(code > to.largest, to.beyond, code)
    code = np.where(np.isnan(a), to.nan, code).astype(np.uint16)
    sign = np.signbit(a) if to.has_negative_zero else np.signbit(a) & (code != 0)
    return code | np.where(sign, np.uint16(0x80), np.uint16(0))


@cache
def numbers(of: Format) -> np.ndarray:
    """[256] float32: the number of each code."""
    special = "fnuz" if not of.has_negative_zero else "ocp" if of.beyond == of.nan else "ieee"
    return small_floats(7 - of.mantissa, of.mantissa, of.bias, special)


def part(instruction: Instruction, bits: int) -> int:
    """The first bit of the byte or word that src0_sel, byte_sel, op_sel or the register's name chooses."""
    selected = instruction.modifiers.get("src0_sel", "")
    source = instruction.operands[1].of
    word = "BYTE_" if bits == 8 else "WORD_"
    if selected == "DWORD":
        return 0
    if isinstance(selected, str) and selected.startswith(word):
        return bits * int(selected.removeprefix(word))
    if selected:
        raise unknown(instruction)
    halves = instruction.modifiers.get("op_sel", ())
    if bits == 8 and halves:
        raise unknown(instruction, "op_sel of bytes")
    if (isinstance(source, Register) and source.half == "h") or (isinstance(halves, tuple) and halves[:1] == (1,)):
        return 16
    return 8 * int(instruction.modifiers.get("byte_sel", 0))  # type: ignore[arg-type]


def _reads_codes(instruction: Instruction, kernel: Kernel, bits: int) -> Callable[[Waves], np.ndarray]:
    if instruction.encoding.endswith("dpp"):
        raise unknown(instruction, "DPP")
    word = instruction.operands[1]
    if word.neg or word.abs or word.sext:
        raise unknown(instruction, "the sign of a code")
    read, first = reads_bits(word, kernel), np.uint32(part(instruction, bits))
    return lambda waves: read(waves) >> first


@own_step("v_cvt_f32_fp8 v_cvt_f32_bf8")
def to_f32(instruction: Instruction, kernel: Kernel) -> Step:
    """The float32 of one byte."""
    check_count(instruction, 2)
    check_modifiers(instruction, "src0_sel", "byte_sel", *_whole_result(instruction))
    codes, row, table = (
        _reads_codes(instruction, kernel, 8),
        row_of(instruction.operands[0], instruction, kernel),
        numbers(format_of(instruction, kernel)),
    )
    return lambda waves: put(waves, row, table.take(codes(waves) & np.uint32(0xFF)))


@own_step("v_cvt_pk_f32_fp8 v_cvt_pk_f32_bf8")
def pk_to_f32(instruction: Instruction, kernel: Kernel) -> Step:
    """Two float32 of the two bytes of one half of a register."""
    check_count(instruction, 2)
    return _pk_to_f32(instruction, kernel)


@own_step("v_cvt_scalef32_pk_f32_fp8 v_cvt_scalef32_pk_f32_bf8")
def scaled_pk_to_f32(instruction: Instruction, kernel: Kernel) -> Step:
    """The same, times a power of two, which is the last operand's exponent. A factor of other than 1 is refused."""
    check_count(instruction, 3)
    _check_factor(instruction)
    _check_first_half(instruction)
    return _pk_to_f32(instruction, kernel)


def _check_factor(instruction: Instruction) -> None:
    """Refuse a factor, the last operand, of other than 1.0."""
    factor = instruction.operands[-1]
    # an integer in the text stands for the factor's bits
    is_float = isinstance(factor.of, Literal) and isinstance(factor.of.number, float)
    if not is_float or factor != Operand(Literal(1.0)):
        raise unknown(instruction, "a factor of other than 1.0")


def _check_first_half(instruction: Instruction) -> None:
    """Refuse op_sel of another operand than the first one."""
    halves = instruction.modifiers.get("op_sel", (0,))
    if not isinstance(halves, tuple) or any(halves[1:]):
        raise unknown(instruction, f"op_sel:{halves}")


@own_step("v_cvt_scalef32_pk_bf16_fp8 v_cvt_scalef32_pk_bf16_bf8")
def scaled_pk_to_bf16(instruction: Instruction, kernel: Kernel) -> Step:
    """Two bf16 of the two bytes of one half of a register, times a factor, of which 1.0 is known."""
    check_count(instruction, 3)
    check_modifiers(instruction, "op_sel")
    _check_factor(instruction)
    _check_first_half(instruction)
    codes, row, table = (
        _reads_codes(instruction, kernel, 16),
        row_of(instruction.operands[0], instruction, kernel),
        _bf16(instruction, kernel),
    )
    return lambda waves: put(waves, row, _pair_of_bf16(codes(waves), table))


@own_step("v_cvt_scale_pk8_bf16_fp8 v_cvt_scale_pk8_bf16_bf8")
def scaled_pk8_to_bf16(instruction: Instruction, kernel: Kernel) -> Step:
    """Eight bf16 of eight bytes, times a power of two."""
    target, source = _eight(instruction, Operand(Literal(0x7F)), "an exponent of other than 0x7f")
    write = writes_data(instruction, target, LOADS["b128"], kernel)
    row, table = data_row(instruction, source, 2, kernel), _bf16(instruction, kernel)

    def step(waves: Waves) -> None:
        words = waves.vector[row], waves.vector[row + 1]
        write(waves, np.stack([_pair_of_bf16(word >> np.uint32(first), table) for word in words for first in (0, 16)]))

    return step


@own_step("v_cvt_scale_pk8_f32_fp8 v_cvt_scale_pk8_f32_bf8")
def scaled_pk8_to_f32(instruction: Instruction, kernel: Kernel) -> Step:
    """Eight float32 of eight bytes, times a power of two."""
    target, source = _eight(instruction, Operand(Literal(0x7F)), "an exponent of other than 0x7f")
    first, table = data_row(instruction, target, 8, kernel), numbers(format_of(instruction, kernel))
    row = data_row(instruction, source, 2, kernel)

    def step(waves: Waves) -> None:
        words = waves.vector[row].copy(), waves.vector[row + 1].copy()
        for i in range(8):
            put(waves, first + i, table.take(words[i // 4] >> np.uint32(8 * (i % 4)) & np.uint32(0xFF)))

    return step


@own_step("v_cvt_scalef32_pk8_fp8_f32 v_cvt_scalef32_pk8_bf8_f32")
def scaled_pk8_to_float8(instruction: Instruction, kernel: Kernel) -> Step:
    """Eight codes of eight float32, divided by a factor."""
    target, source = _eight(instruction, Operand(Literal(1.0)), "a factor of other than 1.0")
    to, write = format_of(instruction, kernel), writes_data(instruction, target, LOADS["b64"], kernel)
    row = data_row(instruction, source, 8, kernel)

    def step(waves: Waves) -> None:
        codes = encoded(waves.vector_f32[row : row + 8], to).astype(np.uint32)
        write(waves, np.stack([sum(codes[4 * word + i] << np.uint32(8 * i) for i in range(4)) for word in range(2)]))

    return step


def _eight(instruction: Instruction, one: Operand, what: str) -> tuple[Operand, Operand]:
    """The result and the source of a conversion of eight numbers, whose factor, the last operand, is known to be 1."""
    check_count(instruction, 3)
    check_modifiers(instruction)
    target, source, factor = instruction.operands
    if factor != one or type(factor.of.number) is not type(one.of.number):  # type: ignore[union-attr]
        raise unknown(instruction, what)
    return target, source


def _bf16(instruction: Instruction, kernel: Kernel) -> np.ndarray:
    """[256] uint32: the bits of each code's number as a bf16, which has the bits that it needs."""
    word = "bf8" if instruction.name.endswith("bf8") else "fp8"
    return numbers(FORMATS[word, kernel.architecture in _WITHOUT_NEGATIVE_ZERO]).view(np.uint32) >> np.uint32(16)


def _pair_of_bf16(pair: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The bf16 of the two lowest bytes, the first one in the lower half."""
    return table.take(pair & np.uint32(0xFF)) | table.take(pair >> np.uint32(8) & np.uint32(0xFF)) << np.uint32(16)


def _pk_to_f32(instruction: Instruction, kernel: Kernel) -> Step:
    check_modifiers(instruction, "src0_sel", "op_sel", *_whole_result(instruction))
    codes, table = _reads_codes(instruction, kernel, 16), numbers(format_of(instruction, kernel))
    row = row_of(instruction.operands[0], instruction, kernel)

    def step(waves: Waves) -> None:
        pair = codes(waves)
        low, high = table.take(pair & np.uint32(0xFF)), table.take(pair >> np.uint32(8) & np.uint32(0xFF))
        put(waves, row, low)
        put(waves, row + 1, high)

    return step


def _whole_result(instruction: Instruction) -> tuple[str, ...]:
    """The modifiers of SDWA that say nothing of a result of 32 bits."""
    return ("dst_sel", "dst_unused") if instruction.modifiers.get("dst_sel", "DWORD") == "DWORD" else ()


@own_step("v_cvt_pk_fp8_f32 v_cvt_pk_bf8_f32")
def pk_to_float8(instruction: Instruction, kernel: Kernel) -> Step:
    """Two codes, the first one in the lower byte, in one half of a register; the other half stays."""
    check_count(instruction, 3)
    return _two_codes(instruction, kernel)


@own_step("v_cvt_scalef32_pk_fp8_f32 v_cvt_scalef32_pk_bf8_f32")
def scaled_pk_to_float8(instruction: Instruction, kernel: Kernel) -> Step:
    """The same, of numbers that are divided by a factor, of which 1.0 is known."""
    check_count(instruction, 4)
    _check_factor(instruction)
    return _two_codes(instruction, kernel)


def _two_codes(instruction: Instruction, kernel: Kernel) -> Step:
    check_modifiers(instruction, "op_sel")
    if instruction.encoding.endswith("dpp"):
        raise unknown(instruction, "DPP")
    halves = instruction.modifiers.get("op_sel", (0, 0, 0))
    if not isinstance(halves, tuple) or any(halves[:-1]) or len(halves) not in (3, 4):
        raise unknown(instruction, f"op_sel:{halves}")
    target, *sources = instruction.operands[:3]
    if halves[-1]:
        target = replace(target, of=replace(target.of, half="h"))
    to, write = format_of(instruction, kernel), writes_vector(target, KINDS["u16"], kernel, keeps_half=True)
    reads = [value_of(signed_value(operand, KINDS["f32"], kernel)) for operand in sources]

    def step(waves: Waves) -> None:
        low, high = (encoded(read(waves), to) for read in reads)
        write(waves, low | high << np.uint16(8))

    return step
