"""Conversions against Python's integers and fractions."""

import math
from fractions import Fraction
from functools import partial

import pytest

from tests.emulated.floats import EDGES16, bits16, bits32, f16, f32, is_same, number, results, rounded
from tests.emulated.lines import ran
from tests.emulated.tables import check, edges


def clamped(value: float, kind: str) -> int:
    """The integer of a kind below a number, or the nearest one that the kind has."""
    bits, is_signed = int(kind[1:]), kind[0] == "i"
    least, most = -(1 << bits - 1) * is_signed, (1 << bits - is_signed) - 1
    return 0 if math.isnan(value) else most if value >= most else least if value <= least else math.trunc(value)


def nearest(value: float, kind: str) -> float:
    return math.copysign(rounded(Fraction(value), kind), value) if math.isfinite(value) else value


BETWEEN = [(to, of) for of in ("f32", "f64") for to in ("u32", "i32")] + [("u16", "f16"), ("i16", "f16")]
BETWEEN += [("f16", "u16"), ("f16", "i16"), ("f32", "u32"), ("f32", "i32"), ("f64", "i32"), ("f16", "f32"), ("f32", "f16")]
BETWEEN += [("f32", "f64"), ("f64", "f32")]
SCALAR = [("u32", "f32"), ("i32", "f32"), ("f32", "u32"), ("f32", "i32"), ("f16", "f32"), ("f32", "f16")]


@pytest.mark.parametrize(
    ("name", "architecture", "to", "of"),
    [("v", "gfx942", *each) for each in BETWEEN] + [("s", "gfx1201", *each) for each in SCALAR],
)
def test_a_conversion_rounds_to_nearest_or_clamps(name, architecture, to, of):
    formula = nearest if to[0] == "f" else clamped
    check(f"{name}_cvt_{to}_{of}", f"{to} = {of}", partial(formula, kind=to), architecture)


def test_downwards_and_of_bytes():
    check("v_cvt_flr_i32_f32", "i32 = f32", lambda a: clamped(math.floor(a) if math.isfinite(a) else a, "i32"))
    for byte in range(4):
        check(f"v_cvt_f32_ubyte{byte}", "f32 = u32", lambda a, byte=byte: float(a >> 8 * byte & 0xFF))
    text = "v_cvt_f32_i32_sdwa v9, sext(v0) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_2"
    for (a,), found in results(text, edges("i32")):
        byte = a >> 16 & 0xFF
        assert f32(found) == byte - (byte >> 7 << 8)


def test_upper_halves_are_converted():
    check("v_cvt_f16_f32", "f16 = f32", partial(nearest, kind="f16"), "gfx1100", half="h")
    upper = "v_cvt_f32_f16_sdwa v9, v0 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1"
    for (a,), found in results(upper, [bits << 16 | 0x3C00 for bits in EDGES16]):
        assert is_same(found, f16(a >> 16), "f32")


def towards_zero(value: float) -> float:
    found = nearest(value, "f16")
    return number(bits16(found) - 1, "f16") if abs(found) > abs(value) else found


PAIRS = {
    ("v_cvt_pkrtz_f16_f32", "gfx942"): ("2f16 = f32 f32", towards_zero),
    ("v_cvt_pk_rtz_f16_f32", "gfx1100"): ("2f16 = f32 f32", towards_zero),
    ("s_cvt_pk_rtz_f16_f32", "gfx1201"): ("2f16 = f32 f32", towards_zero),
    ("v_cvt_pk_f16_f32", "gfx950"): ("2f16 = f32 f32", partial(nearest, kind="f16")),
    ("v_cvt_pk_bf16_f32", "gfx950"): ("2bf16 = f32 f32", partial(nearest, kind="bf16")),
    ("v_cvt_pk_u16_u32", "gfx942"): ("2u16 = u32 u32", lambda a: min(a, 0xFFFF)),
    ("v_cvt_pk_i16_i32", "gfx942"): ("2i16 = i32 i32", lambda a: max(min(a, 0x7FFF), -0x8000)),
    ("v_pack_b32_f16", "gfx942"): ("2b16 = b16 b16", lambda a: a),
}


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_pairs_are_converted(name, architecture):
    signature, formula = PAIRS[name, architecture]
    check(name, signature, lambda a, b: (formula(a), formula(b)), architecture)


@pytest.mark.parametrize(
    ("text", "architecture", "source", "expected"),
    [
        ("v_cvt_pk_rtz_f16_f32 v9, v0, -v0", "gfx1100", 0x7F800000, 0xFC007C00),
        ("v_cvt_pk_bf16_f32 v9, v0, -v0", "gfx950", 0x40490000, 0xC0494049),
        ("v_cvt_f32_bf16_e32 v9, v0.l", "gfx1250", 0xFFFF4049, 0x40490000),
        ("v_cvt_u32_u16_e32 v9, v0.h", "gfx1100", 0x8001FFFF, 0x8001),
        ("v_cvt_i32_i16_e32 v9, v0.h", "gfx1100", 0x8001FFFF, 0xFFFF8001),
        ("v_pack_b32_f16 v9, v0, -v1", "gfx942", 0xAAAA1234, 0xBC001234),
        ("v_pack_b32_f16 v9, v0, v1 op_sel:[1,0,0]", "gfx942", 0xAAAA1234, 0x3C00AAAA),
        ("v_pack_b32_f16 v9, v0.l, v0.h", "gfx1100", 0xAAAA1234, 0xAAAA1234),
        ("v_cvt_pk_f16_f32 v9, v0, 1.0", "gfx950", bits32(-2.0), 0x3C00C000),
        ("v_cvt_pk_u8_f32 v9, v0, 2, v1", "gfx942", bits32(300.0), 0xBBFF3C00),
    ],
)
def test_halves_signs_and_bytes(text, architecture, source, expected):
    assert ran(text, architecture, v={0: source, 1: 0xBBBB3C00}).vector[9, 0, 0] == expected
