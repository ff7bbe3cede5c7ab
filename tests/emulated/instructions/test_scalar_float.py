"""Scalar floats of gfx12 against exact fractions."""

import math
from fractions import Fraction

import pytest
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import (
    EDGES16,
    EDGES32,
    bits16,
    bits32,
    f16,
    f32,
    is_same16,
    is_same32,
    plain_sum,
    product,
    product_sum,
    rounded,
)
from tests.emulated.lines import ran


def one(text: str, a: int, b: int = 0, old: int = 0) -> int:
    return int(ran(text, "gfx1201", s={1: a, 2: b, 9: old}).scalar[0, 9])


BINARY = {
    "s_add_f32": lambda a, b: plain_sum(a, b, "f32"),
    "s_sub_f32": lambda a, b: plain_sum(a, -b, "f32"),
    "s_mul_f32": lambda a, b: product(a, b, "f32"),
    "s_max_num_f32": lambda a, b: b if math.isnan(a) else a if math.isnan(b) else max(a, b),
    "s_min_num_f32": lambda a, b: b if math.isnan(a) else a if math.isnan(b) else min(a, b),
}


@pytest.mark.parametrize("name", BINARY)
def test_of_two(name):
    for a in EDGES32[::3]:
        for b in EDGES32[1::3]:
            found, expected = one(f"{name} s9, s1, s2", a, b), BINARY[name](f32(a), f32(b))
            assert is_same32(found, expected) or (found << 1 & 0xFFFFFFFF == 0 == expected and "num" in name), (hex(a), hex(b))


HALVES = {
    "s_add_f16": lambda a, b: plain_sum(a, b, "f16"),
    "s_sub_f16": lambda a, b: plain_sum(a, -b, "f16"),
    "s_mul_f16": lambda a, b: product(a, b, "f16"),
    "s_max_num_f16": lambda a, b: b if math.isnan(a) else a if math.isnan(b) else max(a, b),
    "s_min_num_f16": lambda a, b: b if math.isnan(a) else a if math.isnan(b) else min(a, b),
}


@pytest.mark.parametrize("name", HALVES)
def test_of_two_float16_with_0_above(name):
    for a in EDGES16[::3]:
        for b in EDGES16[1::3]:
            found = one(f"{name} s9, s1, s2", a | 0xAAAA0000, b, old=0xFFFFFFFF)
            expected = HALVES[name](f16(a), f16(b))
            assert found >> 16 == 0
            assert is_same16(found, expected) or (found << 1 & 0xFFFF == 0 == expected and "num" in name), (hex(a), hex(b))


@pytest.mark.parametrize("bits", EDGES32)
def test_a_float16_of_a_float32_with_0_above(bits):
    number, found = f32(bits), one("s_cvt_f16_f32 s9, s1", bits, old=0xFFFFFFFF)
    expected = number if math.isnan(number) or math.isinf(number) else rounded(Fraction(number), "f16")
    assert found >> 16 == 0
    assert is_same16(found, math.copysign(0.0, number) if expected == 0 else expected)


def test_roundings_of_float16():
    for name, value, expected in (("trunc", -2.5, -2.0), ("floor", -2.5, -3.0), ("ceil", -2.5, -2.0), ("rndne", 2.5, 2.0)):
        assert one(f"s_{name}_f16 s9, s1", bits16(value) | 0x3C000000) == bits16(expected)


def test_fused_sums_and_roundings():
    a, b, old = bits32(1 + 2.0**-23), bits32(1 - 2.0**-23), bits32(-1.0)
    assert f32(one("s_fmac_f32 s9, s1, s2", a, b, old)) == product_sum(f32(a), f32(b), -1.0, "f32")
    assert f32(one("s_fmac_f32 s9, 0, 0x4f800000", 0, 0, bits32(3.0))) == 3.0
    assert f32(one("s_fmaak_f32 s9, s1, s2, 0x40000000", bits32(3.0), bits32(5.0))) == 17.0
    assert f32(one("s_fmamk_f32 s9, s1, 0x40000000, s2", bits32(3.0), bits32(5.0))) == 11.0
    for name, value, expected in (("trunc", -2.5, -2.0), ("floor", -2.5, -3.0), ("ceil", -2.5, -2.0), ("rndne", 2.5, 2.0)):
        assert f32(one(f"s_{name}_f32 s9, s1", bits32(value))) == expected


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("s_cvt_f32_u32 s9, s1", 0xFFFFFFFF, bits32(2.0**32)),
        ("s_cvt_f32_i32 s9, s1", 0xFFFFFFFF, bits32(-1.0)),
        ("s_cvt_u32_f32 s9, s1", bits32(-3.5), 0),
        ("s_cvt_u32_f32 s9, s1", bits32(2.0**33), 0xFFFFFFFF),
        ("s_cvt_i32_f32 s9, s1", bits32(-3.5), 0xFFFFFFFD),
        ("s_cvt_i32_f32 s9, s1", 0x7FC00000, 0),
        ("s_cvt_f32_f16 s9, s1", 0xAAAA3C00, bits32(1.0)),
        ("s_cvt_hi_f32_f16 s9, s1", 0x3C00AAAA, bits32(1.0)),
        ("s_cvt_pk_rtz_f16_f32 s9, s1, 1.0", bits32(-2.0), bits16(1.0) << 16 | bits16(-2.0)),
        ("v_s_exp_f32 s9, s1", bits32(3.0), bits32(8.0)),
        ("v_s_log_f32 s9, s1", bits32(8.0), bits32(3.0)),
        ("v_s_rcp_f32 s9, s1", bits32(8.0), bits32(0.125)),
        ("v_s_sqrt_f32 s9, s1", bits32(9.0), bits32(3.0)),
        ("v_s_rsq_f32 s9, s1", bits32(4.0), bits32(0.5)),
    ],
)
def test_of_one(text, source, expected):
    assert one(text, source) == expected


def test_comparisons():
    values = [0, 0x80000000, bits32(1.0), bits32(-1.0), 0x7F800000, 0x7FC00000]
    true_of = {"lt": "lt", "le": "lt eq", "eq": "eq", "ge": "gt eq", "gt": "gt", "lg": "lt gt", "o": "lt eq gt", "u": ""}
    negated = {"nlt": "lt", "nle": "le", "neq": "eq", "nge": "ge", "ngt": "gt", "nlg": "lg"}
    for a in values:
        for b in values:
            x, y = f32(a), f32(b)
            order = None if math.isnan(x) or math.isnan(y) else "lt" if x < y else "gt" if x > y else "eq"
            expected = {name: order in words.split() for name, words in true_of.items()} | {"u": order is None}
            expected |= {name: not expected[of] for name, of in negated.items()}
            for name, value in expected.items():
                assert bool(ran(f"s_cmp_{name}_f32 s1, s2", "gfx1201", s={1: a, 2: b}).scc[0]) == value, (name, x, y)


def test_signs_of_scalar_operands_are_refused():
    with pytest.raises(UnknownInstructionError, match="sign"):
        one("v_s_exp_f32 s9, -s1", 0)
