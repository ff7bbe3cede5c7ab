"""Scalar arithmetic: one value for each wave.

Source: "SOP2", "SOPK", "SOP1" and "SOPC Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA.
"""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.instructions import moves
from attn_amdgcn.instructions.bits import bit_field_mask, shift_left, shift_right
from attn_amdgcn.instructions.forms import Step, check_count, register, scalar
from attn_amdgcn.instructions.integer_arithmetic import mul_hi_i32, mul_hi_u32
from attn_amdgcn.operands import KINDS, reads_scalar, writes_scalar
from attn_amdgcn.waves import Waves

U64 = np.uint64


def _wraps(total, a, b):
    return total < a


def _carries(total, a, b, carry):
    partial = a + b
    return (partial < a) | (total < partial)


def _is_less(value, a, b):
    return a < b


def _borrows(difference, a, b, borrow):
    partial = a - b
    return (a < b) | (partial < borrow)


def _sum_overflows(total, a, b):
    """A sum whose sign is neither that of one nor that of the other does not fit."""
    return (total ^ a) & (total ^ b) < 0


def _difference_overflows(difference, a, b):
    """A difference of numbers of two signs has the sign of the first one, if it fits."""
    return (a ^ b) & (a ^ difference) < 0


scalar("s_mov_b32", "b32 = b32")(moves.mov)
scalar("s_mov_b64", "b64 = b64")(moves.mov)
scalar("s_movk_i32", "i32 = i16")(lambda a: a.astype(np.int32))  # the text writes a literal without a sign: 0xfe20 is -480
scalar("s_add_u32 s_add_co_u32", "u32 scc = u32 u32", scc=_wraps)(np.add)
scalar("s_addc_u32 s_add_co_ci_u32", "u32 scc = u32 u32 scc", scc=_carries)(lambda a, b, carry: a + b + carry)
scalar("s_sub_u32 s_sub_co_u32", "u32 scc = u32 u32", scc=_is_less)(np.subtract)
scalar("s_subb_u32 s_sub_co_ci_u32", "u32 scc = u32 u32 scc", scc=_borrows)(lambda a, b, borrow: a - b - borrow)
scalar("s_add_i32 s_add_co_i32", "i32 scc = i32 i32", scc=_sum_overflows)(np.add)
scalar("s_sub_i32 s_sub_co_i32", "i32 scc = i32 i32", scc=_difference_overflows)(np.subtract)
scalar("s_addk_i32 s_addk_co_i32", "i32 scc = *i32 i16", scc=_sum_overflows)(np.add)
scalar("s_mulk_i32", "i32 = *i32 i16")(np.multiply)
scalar("s_add_nc_u64", "u64 = u64 u64")(np.add)
scalar("s_sub_nc_u64", "u64 = u64 u64")(np.subtract)
scalar("s_mul_i32", "u32 = u32 u32")(np.multiply)
scalar("s_mul_u64", "u64 = u64 u64")(np.multiply)
scalar("s_mul_hi_u32", "u32 = u32 u32")(mul_hi_u32)
scalar("s_mul_hi_i32", "i32 = i32 i32")(mul_hi_i32)
for _kind in ("i32", "u32"):
    scalar(f"s_min_{_kind}", f"{_kind} scc = {_kind} {_kind}", scc=_is_less)(np.minimum)
    scalar(f"s_max_{_kind}", f"{_kind} scc = {_kind} {_kind}", scc=lambda value, a, b: a >= b)(np.maximum)
scalar("s_abs_i32", "i32 scc = i32")(np.abs)


_LOGIC = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
    "andn2": lambda a, b: a & ~b,
    "and_not1": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "or_not1": lambda a, b: a | ~b,
}
"""Functions of two masks. gfx9 writes n2 where later architectures write not1."""
for _name, _combine in _LOGIC.items():
    for _bits in ("b32", "b64"):
        scalar(f"s_{_name}_{_bits}", f"{_bits} scc = {_bits} {_bits}")(_combine)


for _bits in (32, 64):
    scalar(f"s_not_b{_bits}", f"b{_bits} scc = b{_bits}")(np.invert)
    scalar(f"s_lshl_b{_bits}", f"b{_bits} scc = b{_bits} u32")(shift_left)
    scalar(f"s_lshr_b{_bits}", f"b{_bits} scc = b{_bits} u32")(shift_right)
    scalar(f"s_ashr_i{_bits}", f"i{_bits} scc = i{_bits} u32")(shift_right)


def _shift_left_and_add(count: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A sum of 64 bits, of which the register gets the lower 32."""
    return lambda a, b: (a.astype(U64) << U64(count)) + b


for _count in range(1, 5):
    _with_overflow = scalar(f"s_lshl{_count}_add_u32", "u32 scc = u32 u32", scc=lambda wide, a, b: wide > 0xFFFFFFFF)
    _with_overflow(_shift_left_and_add(_count))


@scalar("s_bfe_u32", "u32 scc = u32 u32")
@scalar("s_bfe_i32", "i32 scc = i32 u32")
@scalar("s_bfe_u64", "u64 scc = u64 u32")
@scalar("s_bfe_i64", "i64 scc = i64 u32")
def bit_field(a, place):
    """Bits 4:0 of `place` are the first bit (5:0 for 64 bits), and bits 22:16 the number of bits."""
    bits = 8 * a.dtype.itemsize
    first, count = place & np.uint32(bits - 1), np.minimum(place >> np.uint32(16) & np.uint32(0x7F), bits)
    wide = np.int64 if np.issubdtype(a.dtype, np.signedinteger) else np.uint64
    above = np.minimum(64 - count.astype(np.int64), 63).astype(wide)  # the bits above a field go out, and come back as its sign
    field = ((a.astype(wide) >> first.astype(wide)) << above) >> above
    return np.where(count > 0, field, 0).astype(a.dtype)


scalar("s_bfm_b32", "b32 = u32 u32")(bit_field_mask)
scalar("s_sext_i32_i8", "i32 = i32")(lambda a: a.astype(np.int8).astype(np.int32))
scalar("s_sext_i32_i16", "i32 = i32")(lambda a: a.astype(np.int16).astype(np.int32))
scalar("s_bitcmp0_b32", "scc = b32 u32")(lambda a, place: shift_right(a, place) & np.uint32(1) == 0)
scalar("s_bitcmp1_b32", "scc = b32 u32")(lambda a, place: shift_right(a, place) & np.uint32(1) == 1)
scalar("s_bitset0_b32", "b32 = *b32 u32")(lambda a, place: a & ~shift_left(np.uint32(1), place))
scalar("s_bitset1_b32", "b32 = *b32 u32")(lambda a, place: a | shift_left(np.uint32(1), place))
for _kind in ("b32", "b64"):
    scalar(f"s_cselect_{_kind}", f"{_kind} = {_kind} {_kind} scc")(lambda a, b, scc: np.where(scc, a, b))


def _packed(of_low: int, of_high: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The half of the first source that `of_low` names, 0 or 1, below the half of the second one that `of_high` names."""
    low, high = np.uint32(16 * of_low), np.uint32(16 * of_high)
    return lambda a, b: a >> low & np.uint32(0xFFFF) | b >> high << np.uint32(16)


for _of_low, _of_high in itertools.product((0, 1), repeat=2):
    scalar(f"s_pack_{'lh'[_of_low]}{'lh'[_of_high]}_b32_b16", "b32 = b32 b32")(_packed(_of_low, _of_high))


for _kind in ("b32", "b64"):
    scalar(f"s_bcnt1_i32_{_kind}", f"i32 scc = {_kind}")(lambda a: np.bitwise_count(a).astype(np.int32))
    scalar(f"s_bcnt0_i32_{_kind}", f"i32 scc = {_kind}")(lambda a: np.bitwise_count(~a).astype(np.int32))


@scalar("s_brev_b32", "b32 = b32")
@scalar("s_brev_b64", "b64 = b64")
def reverse(a):
    bits = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]


_COMPARISONS = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}
for _name, _compare in _COMPARISONS.items():
    for _kind in ("i32", "u32", "u64"):
        scalar(f"s_cmp_{_name}_{_kind}", f"scc = {_kind} {_kind}")(_compare)
    scalar(f"s_cmpk_{_name}_i32", "scc = i32 i16")(_compare)
    scalar(f"s_cmpk_{_name}_u32", "scc = u32 u16")(_compare)


_EXEC = {32: Operand(Register("exec_lo", 0, 1)), 64: Operand(Register("exec", 0, 2))}
"""The register EXEC, by the number of lanes."""


def _switch_lanes(combine: Callable[..., np.ndarray], saves: bool, instruction: Instruction, kernel: Kernel) -> Step:
    """EXEC becomes the combination of EXEC and the source, and SCC is 1 if a lane is on.

    Args:
        saves: True if the result is the old EXEC; False: the new one.
    """
    check_count(instruction, 2)
    kind = KINDS[instruction.name[-3:]]
    target, source = instruction.operands
    read, write = reads_scalar(source, kind, kernel), writes_scalar(target, kind)
    read_lanes, write_lanes = reads_scalar(_EXEC[kind.bits], kind, kernel), writes_scalar(_EXEC[kind.bits], kind)

    def step(waves: Waves) -> None:
        lanes = read_lanes(waves).copy()
        value = combine(read(waves), lanes)
        write(waves, lanes if saves else value)
        write_lanes(waves, value)
        waves.scc = value != 0

    return step


for _name, _combine in _LOGIC.items():
    register(f"s_{_name}_saveexec_b32 s_{_name}_saveexec_b64", partial(_switch_lanes, _combine, True))
register("s_andn2_wrexec_b64 s_and_not1_wrexec_b32", partial(_switch_lanes, _LOGIC["andn2"], False))
register("s_andn1_wrexec_b64 s_and_not0_wrexec_b32", partial(_switch_lanes, lambda mask, lanes: ~mask & lanes, False))
