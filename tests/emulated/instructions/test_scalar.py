"""Scalar instructions against Python's integers: those whose operands have no common form, and the condition code."""

import pytest
from attn_amdgcn import UnknownInstructionError

from tests.emulated.lines import ran

ALL = (1 << 64) - 1


def pair(waves, first: int) -> int:
    return int(waves.scalar[0, first]) | int(waves.scalar[0, first + 1]) << 32


LOGIC = {
    "and": "0001", "or": "0111", "xor": "0110", "nand": "1110", "nor": "1000", "xnor": "1001", "andn2": "0010", "orn2": "1011",
}  # fmt: skip
"""By the name of gfx9: the bit of a lane where (first, second) are (0, 0), (0, 1), (1, 0) and (1, 1)."""


def combined(name: str, first: int, second: int, bits: int) -> int:
    pairs = ((first >> lane & 1, second >> lane & 1) for lane in range(bits))
    return sum(int(LOGIC[name][2 * one + other]) << lane for lane, (one, other) in enumerate(pairs))


@pytest.mark.parametrize("name", LOGIC)
@pytest.mark.parametrize(("mask", "lanes"), [(0b1100, 0b1010), (ALL, ALL), (0, ALL), (1 << 63, 1)])
def test_masks_are_combined_and_exec_is_saved_before(name, mask, lanes):
    low, high = mask & 0xFFFFFFFF, mask >> 32
    after = ran(f"s_{name}_saveexec_b64 s[2:3], s[0:1]", s={0: low, 1: high}, exec=lanes)
    assert (pair(after, 2), pair(after, 126)) == (lanes, combined(name, mask, lanes, 64))
    assert bool(after.scc[0]) == bool(pair(after, 126))
    after = ran(f"s_{name}_b64 s[4:5], s[0:1], s[2:3]", s={0: low, 1: high, 2: lanes & 0xFFFFFFFF, 3: lanes >> 32})
    assert pair(after, 4) == combined(name, mask, lanes, 64)
    assert bool(after.scc[0]) == bool(pair(after, 4))
    after = ran(f"s_{name}_b32 s4, s0, s2", s={0: low, 2: lanes & 0xFFFFFFFF})
    assert int(after.scalar[0, 4]) == combined(name, low, lanes & 0xFFFFFFFF, 32)


def test_wrexec_writes_the_lanes_that_are_left():
    after = ran("s_and_not1_wrexec_b32 s2, s0", "gfx1201", s={0: 0b1100}, exec=0b1010)
    assert (int(after.scalar[0, 2]), int(after.scalar[0, 126])) == (0b0100, 0b0100)
    after = ran("s_and_not0_wrexec_b32 s2, s0", "gfx1201", s={0: 0b1110}, exec=0b1010)
    assert (int(after.scalar[0, 2]), int(after.scalar[0, 126]), bool(after.scc[0])) == (0, 0, False)


@pytest.mark.parametrize("value", [0, 1, 60, 0x80000001, 0xDEADBEEF])
def test_bits_are_reversed(value):
    after = ran("s_brev_b32 s2, s0\ns_brev_b64 s[4:5], s[0:1]", s={0: value, 1: 7})
    assert int(after.scalar[0, 2]) == int(f"{value:032b}"[::-1], 2)
    assert pair(after, 4) == int(f"{value | 7 << 32:064b}"[::-1], 2)


@pytest.mark.parametrize(
    ("text", "value", "scc"),
    [
        ("s_add_u32 s2, s0, s1", 2, True),
        ("s_addc_u32 s2, s1, 5", 9, False),  # 3 + 5 and the carry
        ("s_sub_u32 s2, s1, s0", 4, True),
        ("s_add_i32 s2, 0x7fffffff, 1", 0x80000000, True),
        ("s_sub_i32 s2, s0, s1", 0xFFFFFFFC, False),
        ("s_addk_i32 s0, 0x8000", 0xFFFF7FFF, False),
        ("s_movk_i32 s2, 0xfe20", 0xFFFFFE20, True),
        ("s_movk_i32 s2, 0x7fff", 0x7FFF, True),
        ("s_mulk_i32 s1, 0x50", 0xF0, True),
        ("s_mulk_i32 s1, 0x8000", 0xFFFE8000, True),
        ("s_subb_u32 s2, s1, 3", 0xFFFFFFFF, True),  # the borrow alone makes it negative
        ("s_subb_u32 s2, s1, 2", 0, False),
        ("s_mulk_i32 s1, 0xfffe", 0xFFFFFFFA, True),  # 3 * -2; the condition code stays
        ("s_mul_hi_u32 s2, s0, s1", 2, True),  # the condition code stays
        ("s_mul_hi_i32 s2, s0, s1", 0xFFFFFFFF, True),
        ("s_min_i32 s2, s0, s1", 0xFFFFFFFF, True),
        ("s_max_u32 s2, s0, s1", 0xFFFFFFFF, True),
        ("s_max_i32 s2, s0, s0", 0xFFFFFFFF, True),  # equal: the first one is taken
        ("s_min_i32 s2, s0, s0", 0xFFFFFFFF, False),
        ("s_abs_i32 s2, s0", 1, True),
        ("s_bfe_u32 s2, 0xabcd, 0x80004", 0xBC, True),
        ("s_bfe_i32 s2, 0xabcd, 0x80004", 0xFFFFFFBC, True),
        ("s_bfe_i32 s2, 0xabcd, 0x4", 0, False),
        ("s_bfe_i32 s2, s0, 0x8001c", 0xFFFFFFFF, True),  # the sign goes on above bit 31
        ("s_bfm_b32 s2, 4, 0x25", 0x1E0, True),
        ("s_bfm_b32 s2, 31, 4", 0xFFFFFFF0, True),
        ("s_bfe_u32 s2, s0, 0x200000", 0xFFFFFFFF, True),
        ("s_sext_i32_i16 s2, 0x128000", 0xFFFF8000, True),  # the condition code stays
        ("s_sext_i32_i16 s2, 0x1207fff", 0x7FFF, True),
        ("s_sext_i32_i8 s2, 0x1280", 0xFFFFFF80, True),
        ("s_sext_i32_i8 s2, 0xff7f", 0x7F, True),
        ("s_ashr_i32 s2, s0, 40", 0xFFFFFFFF, True),
        ("s_lshr_b32 s2, s0, 40", 0x00FFFFFF, True),
        ("s_lshl3_add_u32 s2, s0, s1", 0xFFFFFFFB, True),
        ("s_cselect_b32 s2, 7, 8", 7, True),
        ("s_bitset0_b32 s0, 35", 0xFFFFFFF7, True),
        ("s_not_b32 s2, s0", 0, False),
        ("s_pack_ll_b32_b16 s2, 0x12345678, 0x9abcdef0", 0xDEF05678, True),  # the condition code stays
        ("s_pack_lh_b32_b16 s2, 0x12345678, 0x9abcdef0", 0x9ABC5678, True),
        ("s_pack_hl_b32_b16 s2, 0x12345678, 0x9abcdef0", 0xDEF01234, True),
        ("s_pack_hh_b32_b16 s2, 0x12345678, 0x9abcdef0", 0x9ABC1234, True),
        ("s_pack_ll_b32_b16 s2, s1, 0", 3, True),
    ],
)
def test_a_result_and_the_condition_code(text, value, scc):
    after = ran(text, s={0: 0xFFFFFFFF, 1: 3}, scc=True)
    target = {"s_addk_i32": 0, "s_bitset0_b32": 0, "s_mulk_i32": 1}.get(text.split()[0], 2)
    assert (int(after.scalar[0, target]), bool(after.scc[0])) == (value, scc)


@pytest.mark.parametrize("value", [0, 1, 0x1234, 0xFFFF_0000_8000_7FFF, 1 << 63, ALL])
@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
def test_ones_and_zeros_are_counted(architecture, value):
    for bits in (32, 64):
        field = f"{value & (1 << bits) - 1:0{bits}b}"
        for one in "01":
            text = f"s_bcnt{one}_i32_b{bits} s2, s{'[0:1]' if bits == 64 else 0}"
            after = ran(text, architecture, s={0: value & 0xFFFFFFFF, 1: value >> 32})
            assert (int(after.scalar[0, 2]), bool(after.scc[0])) == (field.count(one), one in field)


@pytest.mark.parametrize("value", [0, 0x1234, 0x8000, 0xFFFF_0000_8000_7FFF, 1 << 63, ALL])
@pytest.mark.parametrize(("first", "count"), [(0, 16), (15, 17), (20, 44), (63, 1), (0, 64), (5, 0)])
def test_a_field_of_64_bits(value, first, count):
    """The field by Python's slices of a text of bits."""
    place = first | count << 16
    after = ran(
        f"s_bfe_i64 s[2:3], s[0:1], {place:#x}\ns_bfe_u64 s[4:5], s[0:1], {place:#x}", s={0: value & 0xFFFFFFFF, 1: value >> 32}
    )
    field = f"{value:064b}"[::-1][first : first + count][::-1]
    assert pair(after, 4) == int(field or "0", 2)
    assert pair(after, 2) == int((field[:1] * 64 + field)[-64:] or "0", 2)
    assert bool(after.scc[0]) == ("1" in field)


@pytest.mark.parametrize(
    ("text", "scc"),
    [
        ("s_cmp_lt_i32 s0, s1", True),
        ("s_cmp_lt_u32 s0, s1", False),
        ("s_cmp_eq_u64 s[0:1], s[0:1]", True),
        ("s_cmpk_lg_u32 s1, 0x3", False),
        ("s_cmpk_eq_i32 s0, 0xffff", True),
        ("s_bitcmp1_b32 s1, 33", True),
        ("s_bitcmp0_b32 s1, 33", False),
    ],
)
def test_a_comparison_sets_the_condition_code(text, scc):
    assert bool(ran(text, s={0: 0xFFFFFFFF, 1: 3}, scc=not scc).scc[0]) == scc


def test_a_mode_that_may_change_values_is_refused():
    ran("s_setreg_imm32_b32 hwreg(HW_REG_WAVE_SCHED_MODE, 0, 2), 2", "gfx1250")
    ran("s_setreg_imm32_b32 hwreg(HW_REG_WAVE_MODE, 2, 2), 0", "gfx1250")
    for field, value in (("0, 4", 15), ("2, 2", 3)):
        with pytest.raises(UnknownInstructionError, match=f"HW_REG_WAVE_MODE, {field}"):
            ran(f"s_setreg_imm32_b32 hwreg(HW_REG_WAVE_MODE, {field}), {value}", "gfx1250")
