"""Conversions against Python's integers and fractions, and torch's bfloat16."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulated.floats import EDGES16, EDGES32, bits16, bits32, f16, f32, is_same16, is_same32, results, rounded
from tests.emulated.lines import ran

WHOLE = [
    bits32(value)
    for value in (0.5, -0.5, 1.5, 255.0, 2.0**31, -(2.0**31), 2.0**32, -(2.0**33), 2147483520.0, 4294967040.0, -7.9)
]
INTEGERS = [0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x1000001, 0x1000003, 0xFFFFFF80, 0x7FFFFFC0, 0x12345678, 0xFFFF, 0x8000]


def clamped(value: float, least: int, most: int) -> int:
    if math.isnan(value):
        return 0
    return most if value >= most else least if value <= least else math.trunc(value)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("u32_f32", 0, 2**32 - 1), ("i32_f32", -(2**31), 2**31 - 1), ("flr_i32_f32", -(2**31), 2**31 - 1)],
)
def test_integers_of_float32(name, least, most):
    down = "flr" in name
    for (a,), found in results(f"v_cvt_{name} v9, v0", EDGES32 + WHOLE):
        value = f32(a)
        value = math.floor(value) if down and math.isfinite(value) else value
        assert found == clamped(value, least, most) & 0xFFFFFFFF, (f32(a), hex(found))


@pytest.mark.parametrize(("name", "least", "most"), [("u16", 0, 65535), ("i16", -32768, 32767)])
def test_integers_of_float16_and_back(name, least, most):
    for (a,), found in results(f"v_cvt_{name}_f16_e32 v9, v0", EDGES16):
        assert found == clamped(f16(a), least, most) & 0xFFFF, f16(a)
    for (a,), found in results(f"v_cvt_f16_{name}_e32 v9, v0", [0, 1, 0x7FFF, 0x8000, 0xFFFF, 2049, 2051]):
        value = a - (1 << 16) if name == "i16" and a >> 15 else a
        assert is_same16(found, rounded(Fraction(value), "f16"))


def test_floats_of_integers():
    for (a,), found in results("v_cvt_f32_u32_e32 v9, v0", INTEGERS):
        assert is_same32(found, rounded(Fraction(a), "f32"))
    for (a,), found in results("v_cvt_f32_i32_e32 v9, v0", INTEGERS):
        assert is_same32(found, rounded(Fraction(a - (a >> 31 << 32)), "f32"))
    for byte in range(4):
        for (a,), found in results(f"v_cvt_f32_ubyte{byte}_e32 v9, v0", INTEGERS):
            assert f32(found) == a >> 8 * byte & 0xFF
    for (a,), found in results("v_cvt_f32_i32_sdwa v9, sext(v0) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_2", INTEGERS):
        byte = a >> 16 & 0xFF
        assert f32(found) == byte - (byte >> 7 << 8)


def test_float16_and_float32():
    ties = [bits32(value) for value in (1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 65520.0, 2.0**-25, 3 * 2.0**-25, -(2.0**-26))]
    for (a,), found in results("v_cvt_f16_f32_e32 v9, v0", EDGES32 + ties, old=0xFFFFFFFF):
        value = f32(a)
        expected = math.copysign(rounded(Fraction(value), "f16"), value) if math.isfinite(value) else value
        assert found >> 16 == 0
        assert is_same16(found, expected), value
    for (a,), found in results("v_cvt_f16_f32_e32 v9.h, v0", ties, old=0x1234, architecture="gfx1100"):
        assert found == bits16(rounded(Fraction(f32(a)), "f16") or math.copysign(0, f32(a))) << 16 | 0x1234
    for (a,), found in results("v_cvt_f32_f16_e32 v9, v0", EDGES16):
        assert is_same32(found, f16(a))
    upper = "v_cvt_f32_f16_sdwa v9, v0 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1"
    for (a,), found in results(upper, [bits << 16 | 0x3C00 for bits in EDGES16]):
        assert is_same32(found, f16(a >> 16))


def test_towards_zero():
    values = [value for value in EDGES32 if math.isfinite(f32(value))] + [
        bits32(v) for v in (1 + 2.0**-11, -1.9999, 1e5, 65520.0, 3e-8)
    ]
    for (a, b), found in results("v_cvt_pkrtz_f16_f32 v9, v0, v1", values, values):
        for bits, half in ((a, found & 0xFFFF), (b, found >> 16)):
            value, result = Fraction(f32(bits)), Fraction(f16(half))
            behind = half + 1 if half & 0x7FFF != 0x7BFF else None
            assert abs(result) <= abs(value)
            assert half >> 15 == bits >> 31
            assert behind is None or abs(Fraction(f16(behind))) > abs(value)
    assert ran("v_cvt_pk_rtz_f16_f32 v9, v0, -v0", "gfx1100", v={0: 0x7F800000}).vector[9, 0, 0] == 0xFC007C00


def test_bfloat16_against_torch():
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 1 << 32, (4, 64), dtype=np.uint32)
    bits[0, : len(EDGES32)], bits[1] = EDGES32, bits[1] & 0xFFFF8000
    found = ran("v_cvt_pk_bf16_f32 v9, v0, -v0", "gfx950", v={0: bits}, num_waves=4).vector[9]
    value = torch.from_numpy(bits.view(np.int32)).view(torch.float32)
    for half, expected in ((found & 0xFFFF, value.bfloat16()), (found >> 16, (-value).bfloat16())):
        same = torch.from_numpy(half.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
        assert torch.equal(same.nan_to_num(7.0), expected.nan_to_num(7.0))
    back = ran("v_cvt_f32_bf16_e32 v9, v0.l", "gfx1250", v={0: 0xFFFF4049}).vector[9, 0, 0]
    assert back == 0x40490000


def test_float64():
    values = [0.0, -0.0, 1.5, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, -1e-46, 5e9, -5e9, math.inf]
    doubles = np.resize(np.array(values), 64)
    v = {0: doubles.view(np.uint64).astype(np.uint32), 1: (doubles.view(np.uint64) >> np.uint64(32)).astype(np.uint32)}
    lines = (
        "v_cvt_f32_f64_e32 v2, v[0:1]\nv_cvt_i32_f64_e32 v3, v[0:1]\nv_cvt_u32_f64_e32 v4, v[0:1]\nv_cvt_f64_f32_e32 v[6:7], v2"
    )
    after = ran(lines, v=v)
    for i, value in enumerate(values):
        single = rounded(Fraction(value), "f32") or math.copysign(0, value) if math.isfinite(value) else value
        assert is_same32(int(after.vector[2, 0, i]), single)
        assert after.vector[3, 0, i] == clamped(value, -(2**31), 2**31 - 1) & 0xFFFFFFFF
        assert after.vector[4, 0, i] == clamped(value, 0, 2**32 - 1)
        assert (int(after.vector[7, 0, i]) << 32 | int(after.vector[6, 0, i])) == int(np.float64(single).view(np.uint64))
    assert ran("v_cvt_f64_i32_e32 v[8:9], v0", v={0: 0xFFFFFFFD}).vector[9, 0, 0] == 0xC0080000


def test_short_integers_and_packs():
    assert ran("v_cvt_u32_u16_e32 v9, v0.h", "gfx1100", v={0: 0x8001FFFF}).vector[9, 0, 0] == 0x8001
    assert ran("v_cvt_i32_i16_e32 v9, v0.h", "gfx1100", v={0: 0x8001FFFF}).vector[9, 0, 0] == 0xFFFF8001
    assert ran("v_pack_b32_f16 v9, v0, -v1", v={0: 0xAAAA1234, 1: 0xBBBB3C00}).vector[9, 0, 0] == 0xBC001234
    assert ran("v_pack_b32_f16 v9, v0, v1 op_sel:[1,0,0]", v={0: 0xAAAA1234, 1: 0xBBBB3C00}).vector[9, 0, 0] == 0x3C00AAAA
    assert ran("v_pack_b32_f16 v9, v0.l, v0.h", "gfx1100", v={0: 0xAAAA1234}).vector[9, 0, 0] == 0xAAAA1234
    assert ran("v_cvt_pk_u16_u32 v9, v0, v1", v={0: 0x12345, 1: 7}).vector[9, 0, 0] == 0x7FFFF
    assert ran("v_cvt_pk_i16_i32 v9, v0, v1", v={0: 0xFFFF0000, 1: 0x8000}).vector[9, 0, 0] == 0x7FFF8000
    assert ran("v_cvt_pk_f16_f32 v9, v0, 1.0", "gfx950", v={0: np.float32(-2)}).vector[9, 0, 0] == bits16(1.0) << 16 | bits16(
        -2.0
    )
    assert ran("v_cvt_pk_u8_f32 v9, v0, 2, v1", v={0: np.float32(300), 1: 0x11223344}).vector[9, 0, 0] == 0x11FF3344
