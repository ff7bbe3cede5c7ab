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
from attn_amdgcn.instructions.formats import writes_rows
from attn_amdgcn.instructions.forms import Step, check_count, check_modifiers, own_step, signed_value
from attn_amdgcn.instructions.fused import F64
from attn_amdgcn.instructions.matrix.elements import small_floats
from attn_amdgcn.operands import KINDS, number, numbers, reads_bits, row_of, unknown, writes_vector
from attn_amdgcn.pieces import value_of
from attn_amdgcn.waves import Waves


@dataclass(frozen=True)
class Float8Format:
    """A float of 8 bits: a sign, an exponent and a mantissa.

    Attributes:
        mantissa: the number of its bits.
        bias: the bias of the exponent.
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
    ("fp8", False): Float8Format(3, 7, 0x7E, 0x7F, 0x7F, True),
    ("bf8", False): Float8Format(2, 15, 0x7B, 0x7C, 0x7F, True),
    ("fp8", True): Float8Format(3, 8, 0x7F, 0x80, 0x80, False),
    ("bf8", True): Float8Format(2, 16, 0x7F, 0x80, 0x80, False),
}
"""Formats by the word in the mnemonic, and by whether the architecture is gfx940 to gfx942."""


_WITHOUT_NEGATIVE_ZERO = ("gfx940", "gfx941", "gfx942")


def format_of(instruction: Instruction, kernel: Kernel) -> Float8Format:
    word = "bf8" if "bf8" in instruction.name else "fp8"
    return FORMATS[word, kernel.architecture in _WITHOUT_NEGATIVE_ZERO]


def encoded(a: np.ndarray, to: Float8Format) -> np.ndarray:
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
def values_of(of: Float8Format) -> np.ndarray:
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
    if not isinstance(halves, tuple) or any(halves[1:]) or (bits == 8 and halves):
        raise unknown(instruction, f"op_sel:{halves}")
    if (isinstance(source, Register) and source.half == "h") or halves[:1] == (1,):
        return 16
    return 8 * number(instruction, "byte_sel")


def _of_both(*names: str) -> str:
    """The mnemonics of two formats: `{}` stands for "fp8" and "bf8"."""
    return " ".join(name.format(word) for name in names for word in ("fp8", "bf8"))


@own_step(
    _of_both(
        *("v_cvt_f32_{}", "v_cvt_pk_f32_{}", "v_cvt_scalef32_pk_f32_{}", "v_cvt_scalef32_pk_bf16_{}"),
        *("v_cvt_scale_pk8_bf16_{}", "v_cvt_scale_pk8_f32_{}"),
    )
)
def decode(instruction: Instruction, kernel: Kernel) -> Step:
    """The numbers of one byte, of the two bytes of one half of a register, or of eight bytes.

    A float32 has a register. A bf16 has one half of a register, and all bits that it needs.
    """
    name = instruction.name
    count = 8 if "_pk8_" in name else 2 if "_pk_" in name else 1
    _check_factor(instruction, 2)
    target, source = instruction.operands[:2]
    if count == 1:
        check_modifiers(instruction, "src0_sel", "byte_sel", *_whole_result(instruction))
    elif count == 8:
        check_modifiers(instruction)
    else:
        check_modifiers(instruction, "op_sel", *(() if "bf16" in name else ("src0_sel", *_whole_result(instruction))))
    codes, table = _reads_codes(instruction, source, count, kernel), values_of(format_of(instruction, kernel)).view(np.uint32)
    registers = count // 2 if "bf16" in name else count
    write = writes_rows(row_of(instruction, target, registers, kernel), registers)
    if "bf16" not in name:
        return lambda waves: write(waves, table.take(codes(waves)))

    def step(waves: Waves) -> None:
        upper = table.take(codes(waves)) >> np.uint32(16)
        write(waves, upper[0::2] | upper[1::2] << np.uint32(16))

    return step


def _reads_codes(instruction: Instruction, source: Operand, count: int, kernel: Kernel) -> Callable[[Waves], np.ndarray]:
    """Reads [count, waves, lanes] of bytes."""
    if instruction.encoding.endswith("dpp"):
        raise unknown(instruction, "DPP")
    if source.neg or source.abs or source.sext:
        raise unknown(instruction, "the sign of a code")
    row = row_of(instruction, source, 2, kernel) if count == 8 else None
    read, first = reads_bits(source, kernel), 0 if count == 8 else part(instruction, 8 * count)
    shifts = np.array([first + 8 * i for i in range(min(count, 4))], np.uint32)[:, None, None]

    def codes(waves: Waves) -> np.ndarray:
        words = read(waves)[None] if row is None else waves.vector[row : row + 2]
        found = words[:, None] >> shifts & np.uint32(0xFF)
        return found.reshape(count, *found.shape[2:])

    return codes


def _check_factor(instruction: Instruction, others: int) -> None:
    """Check the number of operands, and refuse a factor, the operand after the others, of other than 1.

    A mnemonic with `scalef32` has a float32, of which the exponent counts, and one with `scale` an exponent.
    """
    scale = instruction.name.split("_")[2]
    known = {"scalef32": (1.0, "a factor of other than 1.0"), "scale": (0x7F, "an exponent of other than 0x7f")}.get(scale)
    check_count(instruction, others + (known is not None))
    if known is None:
        return
    one, what = known
    factor = instruction.operands[-1]
    # an integer in the text stands for the factor's bits
    is_alike = isinstance(factor.of, Literal) and type(factor.of.number) is type(one)
    if not is_alike or factor != Operand(Literal(one)):
        raise unknown(instruction, what)


def _whole_result(instruction: Instruction) -> tuple[str, ...]:
    """The modifiers of SDWA that say nothing of a result of 32 bits."""
    return ("dst_sel", "dst_unused") if instruction.modifiers.get("dst_sel", "DWORD") == "DWORD" else ()


def _encodes(instruction: Instruction, kernel: Kernel) -> Callable[[np.ndarray], np.ndarray]:
    """`encoded` in the mode that the kernel sets for numbers beyond the largest one."""
    to = format_of(instruction, kernel)
    to = replace(to, beyond=to.largest) if modes.sets_overflow(kernel) else to
    return lambda values: encoded(values, to)


@own_step(_of_both("v_cvt_pk_{}_f32", "v_cvt_scalef32_pk_{}_f32"))
def encode_two(instruction: Instruction, kernel: Kernel) -> Step:
    """Two codes, the first one in the lower byte, in one half of a register; the other half stays."""
    _check_factor(instruction, 3)
    check_modifiers(instruction, "op_sel")
    if instruction.encoding.endswith("dpp"):
        raise unknown(instruction, "DPP")
    halves = numbers(instruction, "op_sel", len(instruction.operands))
    if any(halves[:-1]):
        raise unknown(instruction, f"op_sel:{halves}")
    target, *sources = instruction.operands[:3]
    if halves[-1]:
        target = replace(target, of=replace(target.of, half="h"))
    encode, write = _encodes(instruction, kernel), writes_vector(target, KINDS["u16"], kernel, keeps_half=True)
    reads = [value_of(signed_value(operand, KINDS["f32"], kernel)) for operand in sources]

    def step(waves: Waves) -> None:
        low, high = (encode(read(waves)) for read in reads)
        write(waves, low | high << np.uint16(8))

    return step


@own_step(_of_both("v_cvt_scalef32_pk8_{}_f32"))
def encode_eight(instruction: Instruction, kernel: Kernel) -> Step:
    _check_factor(instruction, 2)
    check_modifiers(instruction)
    target, source = instruction.operands[:2]
    encode, write = _encodes(instruction, kernel), writes_rows(row_of(instruction, target, 2, kernel), 2)
    row = row_of(instruction, source, 8, kernel)

    def step(waves: Waves) -> None:
        codes = encode(waves.vector_f32[row : row + 8]).astype(np.uint32)
        write(waves, codes[0::4] | codes[1::4] << np.uint32(8) | codes[2::4] << np.uint32(16) | codes[3::4] << np.uint32(24))

    return step
