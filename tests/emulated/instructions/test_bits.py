"""Bits of vector registers against Python's integers."""

import numpy as np
import pytest

from tests.emulated.lines import JUNK, ran
from tests.emulated.tables import check

U32 = 1 << 32


def field(a, first, count):
    """A field's bits as an unsigned number."""
    first, count = first % 32, count % 32
    return (a >> first) % (1 << count)


def signed_field(a, first, count):
    value = field(a, first, count)
    return value - (1 << count % 32) if count % 32 and value >> count % 32 - 1 else value


def permuted(a, b, selectors):
    source = [*b.to_bytes(4, "little"), *a.to_bytes(4, "little")]
    source += [255 * (source[place] >= 128) for place in (1, 3, 5, 7)] + [0]
    return int.from_bytes([source[each] if each < 13 else 255 for each in selectors.to_bytes(4, "little")], "little")


def leading(a):
    return 32 - a.bit_length() if a else -1


ON_GFX9 = {
    "v_and_b32": ("b32 = b32 b32", lambda a, b: a & b),
    "v_or_b32": ("b32 = b32 b32", lambda a, b: a | b),
    "v_xor_b32": ("b32 = b32 b32", lambda a, b: a ^ b),
    "v_xnor_b32": ("b32 = b32 b32", lambda a, b: ~(a ^ b)),
    "v_not_b32": ("b32 = b32", lambda a: ~a),
    "v_and_or_b32": ("b32 = b32 b32 b32", lambda a, b, c: a & b | c),
    "v_or3_b32": ("b32 = b32 b32 b32", lambda a, b, c: a | b | c),
    "v_lshl_or_b32": ("b32 = b32 b32 b32", lambda a, b, c: a << b % 32 | c),
    "v_lshlrev_b16": ("b16 = b16 b16", lambda a, b: b << a % 16),
    "v_lshrrev_b16": ("b16 = b16 b16", lambda a, b: b >> a % 16),
    "v_ashrrev_i16": ("i16 = u16 i16", lambda a, b: b >> a % 16),
    "v_lshlrev_b32": ("b32 = b32 b32", lambda a, b: b << a % 32),
    "v_lshrrev_b32": ("b32 = b32 b32", lambda a, b: b >> a % 32),
    "v_ashrrev_i32": ("i32 = u32 i32", lambda a, b: b >> a % 32),
    "v_lshlrev_b64": ("b64 = b32 b64", lambda a, b: b << a % 64),
    "v_lshrrev_b64": ("b64 = b32 b64", lambda a, b: b >> a % 64),
    "v_ashrrev_i64": ("i64 = u32 i64", lambda a, b: b >> a % 64),
    "v_bfe_u32": ("u32 = u32 u32 u32", field),
    "v_bfe_i32": ("i32 = i32 u32 u32", signed_field),
    "v_bfi_b32": ("b32 = b32 b32 b32", lambda a, b, c: a & b | ~a & c),
    "v_bfm_b32": ("b32 = b32 b32", lambda a, b: ((1 << a % 32) - 1) << b % 32),
    "v_bfrev_b32": ("b32 = b32", lambda a: int(f"{a:032b}"[::-1], 2)),
    "v_bcnt_u32_b32": ("u32 = b32 u32", lambda a, b: a.bit_count() + b),
    "v_ffbh_u32": ("i32 = u32", leading),
    "v_ffbl_b32": ("i32 = u32", lambda a: f"{a:032b}"[::-1].find("1")),
    "v_ffbh_i32": ("i32 = i32", lambda a: leading(~a if a < 0 else a)),
    "v_alignbit_b32": ("b32 = b32 b32 b32", lambda a, b, c: (a * U32 + b) >> c % 32),
    "v_alignbyte_b32": ("b32 = b32 b32 b32", lambda a, b, c: (a * U32 + b) >> 8 * (c % 4)),
    "v_perm_b32": ("b32 = b32 b32 b32", permuted),
}
OF_HALVES = {
    "v_and_b16": ("b16 = b16 b16", lambda a, b: a & b),
    "v_or_b16": ("b16 = b16 b16", lambda a, b: a | b),
    "v_xor_b16": ("b16 = b16 b16", lambda a, b: a ^ b),
    "v_not_b16": ("b16 = b16", lambda a: ~a),
    "v_lshlrev_b16": ON_GFX9["v_lshlrev_b16"],
    "v_lshrrev_b16": ON_GFX9["v_lshrrev_b16"],
    "v_ashrrev_i16": ON_GFX9["v_ashrrev_i16"],
    "v_mov_b16": ("b16 = b16", lambda a: a),
    "v_cndmask_b16": ("b16 = b16 b16 mask", lambda a, b, mask: b if mask else a),
}
MOVES = {
    "v_mov_b32": ("b32 = b32", lambda a: a),
    "v_mov_b64": ("b64 = b64", lambda a: a),
    "v_cndmask_b32": ("b32 = b32 b32 mask", lambda a, b, mask: b if mask else a),
}


@pytest.mark.parametrize("name", [*ON_GFX9, *MOVES])
def test_bit_instructions_of_gfx9_agree(name):
    check(name, *{**ON_GFX9, **MOVES}[name])


@pytest.mark.parametrize("half", ["l", "h"])
@pytest.mark.parametrize("name", OF_HALVES)
def test_bit_instructions_of_halves_agree(name, half):
    check(name, *OF_HALVES[name], "gfx1201", half=half)


def test_later_names_of_instructions_agree():
    check("v_xor3_b32", "b32 = b32 b32 b32", lambda a, b, c: a ^ b ^ c, "gfx1100")
    check("v_clz_i32_u32", *ON_GFX9["v_ffbh_u32"], "gfx1100")
    check("v_ctz_i32_b32", *ON_GFX9["v_ffbl_b32"], "gfx1100")
    check("v_cls_i32", *ON_GFX9["v_ffbh_i32"], "gfx1100")


def test_every_table_of_v_bitop3():
    for first in (0, 128):
        lines = [f"v_bitop3_b32 v{3 + i}, v0, v1, v2 bitop3:{first + i:#x}" for i in range(128)]
        after = ran("\n".join(lines), "gfx950", v={0: 0xF0, 1: 0xCC, 2: 0xAA})  # bit i of the sources is bit 2, 1 and 0 of i
        assert (after.vector[3:131, 0, 0] & 0xFF).tolist() == list(range(first, first + 128))


def test_v_bitop3_of_16_bits_leaves_the_upper_half():
    after = ran("v_bitop3_b16 v3, v0, s0, 63 bitop3:0xf8", "gfx950", v={0: 0xFFFF00F0, 3: 0xABCD0000}, s={0: 0x3C})
    assert after.vector[3, 0, 0] == 0xABCD0000 | 0xF0 | 0x3C & 63
    after = ran("v_bitop3_b16 v3.h, v0.l, v1.h, 0xff bitop3:0xec", "gfx1250", v={0: 0xF0, 1: 0x12340000, 3: 0xABCD})
    assert after.vector[3, 0, 0] == (0xF0 & 0xFF | 0x1234) << 16 | 0xABCD


def test_v_dual_bitop2_applies_its_table():
    text = "v_dual_bitop2_b32 v2, v0, v1 bitop3:{} :: v_dual_mov_b32 v3, v1"
    expected = {"0x40": 0x0F0F & 0x3333, "0x54": 0x0F0F | 0x3333, "0x14": 0x0F0F ^ 0x3333}
    for table, value in expected.items():
        assert ran(text.format(table), "gfx1250", v={0: 0x0F0F, 1: 0x3333}).vector[2, 0, 0] == value


@pytest.mark.parametrize(
    "selectors",
    [0x05040100, 0x0C070C03, 0x0C0C0C0C, 0x07060302, 0x03020706, 0x00010203, 0x0C0C0404, 0x0D0A0B09, 0x04050607, 0xFF000102],
)
def test_a_permutation_that_is_the_same_in_all_lanes(selectors):
    a, b = np.random.default_rng(0).integers(0, U32, (2, 64), dtype=np.uint32)
    after = ran("v_perm_b32 v2, v0, v1, s0", v={0: a, 1: b}, s={0: selectors})
    assert after.vector[2, 0].tolist() == [permuted(int(x), int(y), selectors) for x, y in zip(a, b, strict=True)]
    after = ran("v_perm_b32 v2, s1, v1, s0", v={1: b}, s={0: selectors, 1: 0x89ABCDEF})
    assert after.vector[2, 0].tolist() == [permuted(0x89ABCDEF, int(y), selectors) for y in b]


def test_signs_of_a_choice():
    values = np.array([1.0, -2.0, np.nan, 0.0] * 16, np.float32)
    after = ran(
        "v_cndmask_b32_e64 v1, -v0, -|v0|, s[0:1]\nv_cndmask_b32_e32 v2, 1.0, v0, vcc",
        v={0: values},
        s={0: 0b1100, 1: 0},
        vcc=1,
    )
    assert after.vector[1, 0, :4].tolist() == [0xBF800000, 0x40000000, 0xFFC00000, 0x80000000]
    assert after.vector[2, 0].view(np.float32).tolist() == [1.0] * 64


def test_the_dual_choice_reads_vcc_if_it_names_no_mask():
    text = "v_dual_cndmask_b32 v2, 7, v0 :: v_dual_mov_b32 v3, v0"
    assert ran(text, "gfx1100", v={0: 9}, vcc=0b10).vector[2, 0, :3].tolist() == [7, 9, 7]
    text = "v_dual_cndmask_b32 v2, 7, v0, s4 :: v_dual_cndmask_b32 v3, 7, v0, vcc_lo"
    assert ran(text, "gfx1250", v={0: 9}, s={4: 0b01}, vcc=0b10).vector[2:4, 0, :2].tolist() == [[9, 7], [7, 9]]


def test_accumulation_registers_lie_behind_the_vector_registers():
    after = ran(
        "v_accvgpr_write_b32 a3, v0\nv_accvgpr_mov_b32 a4, a3\nv_accvgpr_read_b32 v1, a4\nv_accvgpr_write_b32 a5, 1.0",
        v={0: 77},
    )
    assert after.vector[[1, 192 + 3, 192 + 4, 192 + 5], 0, 9].tolist() == [77, 77, 77, 0x3F800000]


def test_copies_to_accumulation_registers_leave_lanes_that_are_off():
    """Unlike matrix instructions. findings/compilers/llvm-copies-before-exec.py shows a compiler that forgot it."""
    text = "v_accvgpr_write_b32 a3, v0\nv_accvgpr_mov_b32 a4, a3\nv_accvgpr_read_b32 v1, a3"
    after = ran(text, "gfx950", v={0: 77}, exec=0b101)
    assert after.vector[[1, 192 + 3, 192 + 4], 0, :4].tolist() == 3 * [[77, JUNK, 77, JUNK]]
    after = ran(text, "gfx950", v={0: 77}, exec=0)
    assert (after.vector[[1, 192 + 3, 192 + 4]] == JUNK).all()
