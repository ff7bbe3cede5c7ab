"""Integer arithmetic of vectors against Python's integers."""

import numpy as np
import pytest
from attn_amdgcn.errors import UnknownInstructionError

from tests.emulated.lines import JUNK, ran
from tests.emulated.tables import bits_of_kind, check

LANES = np.arange(64, dtype=np.uint32)
U32, U64 = 1 << 32, 1 << 64


def u24(a):
    return a % (1 << 24)


def i24(a):
    return (a + (1 << 23)) % (1 << 24) - (1 << 23)


def middle(*values):
    return sorted(values)[1]


ON_GFX9 = {
    "v_add_u32": ("u32 = u32 u32", lambda a, b: a + b),
    "v_sub_u32": ("u32 = u32 u32", lambda a, b: a - b),
    "v_subrev_u32": ("u32 = u32 u32", lambda a, b: b - a),
    "v_add_u16": ("u16 = u16 u16", lambda a, b: a + b),
    "v_sub_u16": ("u16 = u16 u16", lambda a, b: a - b),
    "v_subrev_u16": ("u16 = u16 u16", lambda a, b: b - a),
    "v_mul_lo_u16": ("u16 = u16 u16", lambda a, b: a * b),
    "v_add_i16": ("i16 = i16 i16", lambda a, b: a + b),
    "v_min_i16": ("i16 = i16 i16", min),
    "v_max_u16": ("u16 = u16 u16", max),
    "v_add_co_u32": ("u32 mask = u32 u32", lambda a, b: (a + b, a + b >= U32)),
    "v_sub_co_u32": ("u32 mask = u32 u32", lambda a, b: (a - b, a < b)),
    "v_subrev_co_u32": ("u32 mask = u32 u32", lambda a, b: (b - a, b < a)),
    "v_addc_co_u32": ("u32 mask = u32 u32 mask", lambda a, b, c: (a + b + c, a + b + c >= U32)),
    "v_subb_co_u32": ("u32 mask = u32 u32 mask", lambda a, b, c: (a - b - c, a - b - c < 0)),
    "v_subbrev_co_u32": ("u32 mask = u32 u32 mask", lambda a, b, c: (b - a - c, b - a - c < 0)),
    "v_add3_u32": ("u32 = u32 u32 u32", lambda a, b, c: a + b + c),
    "v_lshl_add_u32": ("u32 = u32 u32 u32", lambda a, b, c: (a << b % 32) + c),
    "v_lshl_add_u64": ("u64 = u64 u32 u64", lambda a, b, c: (a << b % 8) + c),
    "v_add_lshl_u32": ("u32 = u32 u32 u32", lambda a, b, c: a + b << c % 32),
    "v_xad_u32": ("u32 = u32 u32 u32", lambda a, b, c: (a ^ b) + c),
    "v_mul_lo_u32": ("u32 = u32 u32", lambda a, b: a * b),
    "v_mul_hi_u32": ("u32 = u32 u32", lambda a, b: a * b >> 32),
    "v_mul_hi_i32": ("i32 = i32 i32", lambda a, b: a * b >> 32),
    "v_mul_u32_u24": ("u32 = u32 u32", lambda a, b: u24(a) * u24(b)),
    "v_mul_i32_i24": ("i32 = i32 i32", lambda a, b: i24(a) * i24(b)),
    "v_mul_hi_u32_u24": ("u32 = u32 u32", lambda a, b: u24(a) * u24(b) >> 32),
    "v_mul_hi_i32_i24": ("i32 = i32 i32", lambda a, b: i24(a) * i24(b) >> 32),
    "v_mad_u32_u24": ("u32 = u32 u32 u32", lambda a, b, c: u24(a) * u24(b) + c),
    "v_mad_i32_i24": ("i32 = i32 i32 i32", lambda a, b, c: i24(a) * i24(b) + c),
    "v_mad_u32_u16": ("u32 = u16 u16 u32", lambda a, b, c: a * b + c),
    "v_mad_i32_i16": ("i32 = i16 i16 i32", lambda a, b, c: a * b + c),
    "v_mad_u64_u32": ("u64 mask = u32 u32 u64", lambda a, b, c: (a * b + c, a * b + c >= U64)),
    "v_mad_i64_i32": ("i64 mask = i32 i32 i64", lambda a, b, c: (a * b + c, a * b + c < 0)),
    "v_min_i32": ("i32 = i32 i32", min),
    "v_min_u32": ("u32 = u32 u32", min),
    "v_max_i32": ("i32 = i32 i32", max),
    "v_max_u32": ("u32 = u32 u32", max),
    "v_min3_i32": ("i32 = i32 i32 i32", min),
    "v_min3_u32": ("u32 = u32 u32 u32", min),
    "v_max3_i32": ("i32 = i32 i32 i32", max),
    "v_max3_u32": ("u32 = u32 u32 u32", max),
    "v_med3_i32": ("i32 = i32 i32 i32", middle),
    "v_med3_u32": ("u32 = u32 u32 u32", middle),
}
LATER = {
    "v_add_nc_u32": ON_GFX9["v_add_u32"],
    "v_sub_nc_u32": ON_GFX9["v_sub_u32"],
    "v_subrev_nc_u32": ON_GFX9["v_subrev_u32"],
    "v_add_nc_i32": ("i32 = i32 i32", lambda a, b: a + b),
    "v_sub_nc_i32": ("i32 = i32 i32", lambda a, b: a - b),
    "v_add_co_u32": ON_GFX9["v_add_co_u32"],
    "v_add_co_ci_u32": ON_GFX9["v_addc_co_u32"],
    "v_sub_co_ci_u32": ON_GFX9["v_subb_co_u32"],
    "v_subrev_co_ci_u32": ON_GFX9["v_subbrev_co_u32"],
    "v_mad_co_u64_u32": ON_GFX9["v_mad_u64_u32"],
    "v_mad_co_i64_i32": ON_GFX9["v_mad_i64_i32"],
    "v_mad_nc_u64_u32": ("u64 = u32 u32 u64", lambda a, b, c: a * b + c),
    "v_mad_nc_i64_i32": ("i64 = i32 i32 i64", lambda a, b, c: a * b + c),
    "v_mad_u32": ("u32 = u32 u32 u32", lambda a, b, c: a * b + c),
    "v_add_nc_u64": ("u64 = u64 u64", lambda a, b: a + b),
    "v_sub_nc_u64": ("u64 = u64 u64", lambda a, b: a - b),
    "v_mul_u64": ("u64 = u64 u64", lambda a, b: a * b),
    "v_min_i64": ("i64 = i64 i64", min),
    "v_max_u64": ("u64 = u64 u64", max),
    "v_min_u64": ("u64 = u64 u64", min),
    "v_max_i64": ("i64 = i64 i64", max),
    "v_maxmin_i32": ("i32 = i32 i32 i32", lambda a, b, c: min(max(a, b), c)),
    "v_maxmin_u32": ("u32 = u32 u32 u32", lambda a, b, c: min(max(a, b), c)),
    "v_minmax_i32": ("i32 = i32 i32 i32", lambda a, b, c: max(min(a, b), c)),
    "v_minmax_u32": ("u32 = u32 u32 u32", lambda a, b, c: max(min(a, b), c)),
}
OF_HALVES = {
    "v_add_nc_u16": ("u16 = u16 u16", lambda a, b: a + b),
    "v_sub_nc_u16": ("u16 = u16 u16", lambda a, b: a - b),
    "v_add_nc_i16": ("i16 = i16 i16", lambda a, b: a + b),
    "v_sub_nc_i16": ("i16 = i16 i16", lambda a, b: a - b),
    "v_mul_lo_u16": ("u16 = u16 u16", lambda a, b: a * b),
    "v_mad_u16": ("u16 = u16 u16 u16", lambda a, b, c: a * b + c),
    "v_mad_i16": ("i16 = i16 i16 i16", lambda a, b, c: a * b + c),
    "v_min_u16": ("u16 = u16 u16", min),
    "v_max_i16": ("i16 = i16 i16", max),
    "v_min3_i16": ("i16 = i16 i16 i16", min),
    "v_min3_u16": ("u16 = u16 u16 u16", min),
    "v_max3_i16": ("i16 = i16 i16 i16", max),
    "v_max3_u16": ("u16 = u16 u16 u16", max),
    "v_med3_i16": ("i16 = i16 i16 i16", middle),
    "v_med3_u16": ("u16 = u16 u16 u16", middle),
}
SATURATING = {
    "gfx942": ("v_add_u32", "v_sub_u32", "v_subrev_u32", "v_add_u16", "v_sub_u16", "v_subrev_u16", "v_add_i16"),
    "gfx1250": ("v_add_nc_u32", "v_sub_nc_u32", "v_subrev_nc_u32", "v_add_nc_i32", "v_sub_nc_i32"),
    "gfx1100": ("v_add_nc_u16", "v_sub_nc_u16", "v_add_nc_i16", "v_sub_nc_i16"),
}


@pytest.mark.parametrize("name", ON_GFX9)
def test_integer_instructions_of_gfx9_agree(name):
    check(name, *ON_GFX9[name])


@pytest.mark.parametrize(("architecture", "name"), [(each, name) for each, names in SATURATING.items() for name in names])
def test_clamp_of_a_sum_or_difference_ends_at_the_least_and_the_greatest_number(architecture, name):
    signature, formula = (ON_GFX9 | LATER | OF_HALVES)[name]
    kind = signature.split()[0]
    numbers = 1 << bits_of_kind(kind)
    least = 0 if kind[0] == "u" else -numbers // 2
    most = least + numbers - 1
    check(name, signature, lambda a, b: middle(least, formula(a, b), most), architecture, more="clamp")


def test_clamp_of_what_is_no_sum_is_refused():
    for text in ("v_mul_lo_u32 v2, v0, v1 clamp", "v_add_co_u32_e64 v2, vcc, v0, v1 clamp", "v_add3_u32 v2, v0, v1, v1 clamp"):
        with pytest.raises(UnknownInstructionError, match="clamp"):
            ran(text)


@pytest.mark.parametrize("name", LATER)
def test_integer_instructions_of_later_architectures_agree(name):
    check(name, *LATER[name], "gfx1250")


@pytest.mark.parametrize("half", ["l", "h"])
@pytest.mark.parametrize("name", OF_HALVES)
def test_integer_instructions_of_halves_agree(name, half):
    check(name, *OF_HALVES[name], "gfx1100", half=half)


@pytest.mark.parametrize("name", [name for name, (signature, _) in OF_HALVES.items() if len(signature.split()) == 5])
def test_three_sources_of_16_bits_leave_the_upper_half_on_gfx9(name):
    after = ran(f"{name} v3, v0, v1, v2", v={0: 300, 1: 301, 2: 0x70007, 3: 0xABCD0000})
    assert after.vector[3, 0, 0] == 0xABCD0000 | OF_HALVES[name][1](300, 301, 7) % 65536


@pytest.mark.parametrize("name", ["v_mad_legacy_u16", "v_mad_legacy_i16"])
def test_legacy_instructions_clear_the_upper_half(name):
    after = ran(f"{name} v3, v0, v1, v2", v={0: 300, 1: 301, 2: 0x70007, 3: 0xABCD0000})
    assert after.vector[3, 0, 0] == (300 * 301 + 7) % 65536


def test_literals_have_the_width_of_their_operand():
    after = ran(
        "v_lshl_add_u64 v[4:5], v[0:1], 0, -1\nv_add_u32_e32 v2, 1.0, v0\nv_mad_i64_i32 v[6:7], s[0:1], v0, -2, 0",
        v={0: 5, 1: 0},
    )
    assert after.vector[[4, 5, 2, 6, 7], 0, 3].tolist() == [4, 0, 0x3F800005, (-10) % U32, U32 - 1]


def test_a_carry_of_lanes_that_are_off_is_0_and_null_takes_none():
    after = ran("v_add_co_u32_e32 v1, vcc, -1, v0\nv_addc_co_u32_e32 v2, vcc, 0, v0, vcc", v={0: LANES}, vcc=-1, exec=0b1011)
    assert after.scalar64[0, 53] == 0
    assert after.vector[2, 0, :5].tolist() == [0, 2, JUNK, 4, JUNK]
    after = ran("v_mad_co_u64_u32 v[0:1], null, v2, 3, v[0:1]", "gfx1201", v={0: 1, 1: 2, 2: 0x80000000})
    assert after.vector[:2, 0, 0].tolist() == [0x80000001, 3]


def test_lanes_that_are_off_keep_their_register():
    after = ran("v_add_u32_e32 v2, v0, v0", v={0: LANES}, exec=0b101)
    assert after.vector[2, 0, :4].tolist() == [0, JUNK, 4, JUNK]


def test_scalar_sources_are_the_same_in_all_lanes():
    after = ran(
        "v_mul_hi_i32 v1, v0, s3\nv_lshl_add_u64 v[2:3], s[4:5], 2, v[0:1]", v={0: LANES, 1: 0}, s={3: -7, 4: -1, 5: 0x10}
    )
    assert after.vector[1, 0].view(np.int32).tolist() == [lane * -7 >> 32 for lane in range(64)]
    wide = [(((0x10FFFFFFFF << 2) + lane + ((lane * -7 >> 32) % U32 << 32)) % U64) for lane in range(64)]
    assert after.vector[2, 0].tolist() == [value % U32 for value in wide]
    assert after.vector[3, 0].tolist() == [value >> 32 for value in wide]


def test_both_halves_of_a_dual_instruction_read_before_one_writes():
    after = ran("v_dual_add_nc_u32 v0, 1, v1 :: v_dual_lshlrev_b32 v1, 2, v0", "gfx1100", v={0: LANES[:32], 1: 100})
    assert after.vector[0, 0].tolist() == [101] * 32
    assert after.vector[1, 0].tolist() == [4 * lane for lane in range(32)]
    after = ran("v_dual_mov_b32 v0, v1 :: v_dual_mov_b32 v1, v0", "gfx1100", v={0: 5, 1: 6})
    assert after.vector[:2, 0, 0].tolist() == [6, 5]


def test_registers_of_gfx1250_beyond_255_are_named_by_a_comment():
    after = ran("v_add_nc_u32_e32 v2 /*v130*/, v1 /*v129*/, v0", "gfx1250", v={0: 3, 129: 4})
    assert after.vector[[2, 130], 0, 0].tolist() == [JUNK, 7]
