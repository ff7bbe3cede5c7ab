"""Division as LLVM expands it is rounded once; the three instructions that it needs, case by case."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.emulated.floats import EDGES16, EDGES32, bits32, f16, f32, is_same, results, rounded
from tests.emulated.lines import ran

DIVIDE = """
v_div_scale_f32 v3, s[4:5], v1, v1, v0
v_div_scale_f32 v4, vcc, v0, v1, v0
v_rcp_f32_e32 v5, v3
v_fma_f32 v6, -v3, v5, 1.0
v_fmac_f32_e32 v5, v6, v5
v_mul_f32_e32 v6, v4, v5
v_fma_f32 v7, -v3, v6, v4
v_fmac_f32_e32 v6, v7, v5
v_fma_f32 v3, -v3, v6, v4
v_div_fmas_f32 v3, v3, v5, v6
v_div_fixup_f32 v9, v3, v1, v0
"""


DIVIDE16 = """
v_cvt_f32_f16_e32 v3, v1
v_rcp_f32_e32 v3, v3
v_fma_mix_f32 v4, v0, v3, neg(0) op_sel_hi:[1,0,0]
v_fma_mix_f32 v5, -v1, v4, v0 op_sel_hi:[1,0,1]
v_fmac_f32_e32 v4, v5, v3
v_fma_mix_f32 v5, -v1, v4, v0 op_sel_hi:[1,0,1]
v_mul_f32_e32 v3, v5, v3
v_and_b32_e32 v3, 0xff800000, v3
v_add_f32_e32 v3, v3, v4
v_cvt_f16_f32_e32 v3, v3
v_div_fixup_f16 v9, v3, v1, v0
"""


def quotient(a: float, b: float, kind: str = "f32") -> float:
    if math.isnan(a) or math.isnan(b) or (a == b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isinf(a) or b == 0:
        return sign * math.inf
    if math.isinf(b) or a == 0:
        return sign * 0.0
    return math.copysign(rounded(Fraction(a) / Fraction(b), kind), sign)


def test_quotients_of_edge_values():
    more = [bits32(value) for value in (3.0, -7.0, 2.0**126, 2.0**127, 3 * 2.0**125, 2.0**-100, 5 * 2.0**-140, 2.0**-126 * 1.5)]
    for (a, b), found in results(DIVIDE, EDGES32 + more, EDGES32 + more):
        assert is_same(found, quotient(f32(a), f32(b)), "f32"), (f32(a), f32(b), f32(found))


def test_quotients_of_float16_are_rounded_once():
    for (a, b), found in results(DIVIDE16, EDGES16, EDGES16):
        expected = quotient(f16(a), f16(b), "f16")
        assert is_same(found & 0xFFFF, expected, "f16"), (f16(a), f16(b), f16(found & 0xFFFF), expected)


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201"])
@pytest.mark.parametrize("exponents", [(0, 255), (120, 130), (1, 40), (230, 255)])
def test_quotients_are_rounded_once(exponents, architecture):
    draw = np.random.default_rng(0)
    text = DIVIDE if architecture == "gfx942" else DIVIDE.replace("s[4:5]", "null").replace("vcc", "vcc_lo")
    lanes = 64 if architecture == "gfx942" else 32
    a, b = (draw.integers(*exponents, (16, lanes)) << 23 | draw.integers(0, 1 << 23, (16, lanes)) for _ in range(2))
    after = ran(text, architecture, v={0: a.astype(np.uint32), 1: b.astype(np.uint32)}, num_waves=16)
    for x, y, found in zip(a.ravel().tolist(), b.ravel().tolist(), after.vector[9].ravel().tolist(), strict=True):
        assert found == bits32(quotient(f32(x), f32(y))), (f32(x), f32(y), f32(found))


def test_scaling_sets_a_bit_for_the_lanes_that_fmas_scales():
    numerators, denominators = [1.0, 2.0**100, 2.0**-120, 2.0**10, 2.0**-110], [3.0, 2.0**2, 2.0**20, 2.0**127, 1.0]
    v = {0: np.resize(np.float32(numerators), 64), 1: np.resize(np.float32(denominators), 64)}
    after = ran("v_div_scale_f32 v9, vcc, v0, v1, v0\nv_div_scale_f32 v8, s[2:3], v1, v1, v0", v=v)
    assert after.vector[9, 0, :5].view(np.float32).tolist() == [1.0, 2.0**100, 2.0**-56, 2.0**-54, 2.0**-46]
    assert after.vector[8, 0, :5].view(np.float32).tolist() == [3.0, 2.0**66, 2.0**20, 2.0**63, 2.0**64]
    assert int(after.scalar[0, 106]) & 0b11111 == 0b00110
    assert int(after.scalar[0, 2]) & 0b11111 == 0b00110


def test_fmas_scales_by_the_exponent_of_the_quotient():
    v = {0: np.float32(1), 1: np.resize(np.float32([1.0, 1.0]), 64), 2: np.resize(np.float32([3.0, 0.5]), 64)}
    assert ran("v_div_fmas_f32 v9, v0, v1, v2", v=v, vcc=0).vector[9, 0, :2].view(np.float32).tolist() == [4.0, 1.5]
    scaled = ran("v_div_fmas_f32 v9, v0, v1, -v2", v=v, vcc=0b11).vector[9, 0, :2].view(np.float32).tolist()
    assert scaled == [-2.0 * 2.0**64, 0.5 * 2.0**-64]


def test_fixup_makes_infinity_of_a_quotient_that_is_no_number():
    after = ran("v_div_fixup_f32 v9, v0, v1, v2", v={0: 0x7FC00000, 1: np.float32(-2), 2: np.float32(2.0**127)})
    assert f32(int(after.vector[9, 0, 0])) == -math.inf
