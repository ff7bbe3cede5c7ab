"""Sums, products, roundings of vector registers against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from attn_amdgcn import UnknownInstructionError
from attn_amdgcn.assembly import Kernel, code_of
from attn_amdgcn.instructions.fused import fma32, fma64
from attn_amdgcn.program import prepare

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
    results,
    rounded,
)
from tests.emulated.lines import JUNK, ran

FEW = [0, 0x80000000, 0x3F800000, 0xC0400000, 0x7F800000, 0x7FC00000]

BINARY = {
    "v_add": plain_sum,
    "v_sub": lambda a, b, name: plain_sum(a, -b, name),
    "v_subrev": lambda a, b, name: plain_sum(b, -a, name),
    "v_mul": product,
}


@pytest.mark.parametrize("name", BINARY)
def test_sums_and_products(name):
    for (a, b), found in results(f"{name}_f32_e32 v9, v0, v1", EDGES32, EDGES32):
        assert is_same32(found, BINARY[name](f32(a), f32(b), "f32")), (hex(a), hex(b), hex(found))
    for (a, b), found in results(f"{name}_f16_e32 v9, v0, v1", EDGES16, EDGES16, old=0xFFFFFFFF):
        assert is_same16(found, BINARY[name](f16(a), f16(b), "f16")), (hex(a), hex(b), hex(found))


def random_floats(count: int, seed: int, *, exponents: tuple[int, int]) -> np.ndarray:
    """float32 with all bits of the mantissa drawn, some of them sparse so that sums lie halfway."""
    draw = np.random.default_rng(seed)
    mantissa = draw.integers(0, 1 << 23, count) & np.where(draw.random(count) < 0.5, 0x7FFFFF, 0x7F0003)
    bits = draw.integers(0, 2, count) << 31 | draw.integers(*exponents, count) << 23 | mantissa
    return bits.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("exponents", [(120, 134), (55, 72), (0, 4), (0, 255), (58, 66)])
def test_a_fused_sum_is_rounded_once(exponents):
    a, b, c = (random_floats(3000, seed, exponents=exponents) for seed in range(3))
    if exponents == (58, 66):  # products near the denormals, added to denormals
        c = random_floats(3000, 3, exponents=(0, 3))
    with np.errstate(all="ignore"):
        found = fma32(a, b, c)
    for x, y, z, value in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist(), strict=True):
        assert value == product_sum(x, y, z, "f32"), (x.hex(), y.hex(), z.hex())


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [
        (1 + 2.0**-23, 1 + 2.0**-23, 2.0**23),  # the sum in float64 lies halfway, and the exact one above it
        (1 + 2.0**-12, 1 + 2.0**-12, -(2.0**-60)),
        (-(1 + 2.0**-12), 1 + 2.0**-12, 2.0**-60),
        (2.0**-75 * (1 + 2.0**-23), 2.0**-75 * (1 + 2.0**-22), 2.0**-127 + 2.0**-149),  # a denormal halfway
        (1.0, 2.0**-24, 1.0),
        (1.0, 2.0**-24 + 2.0**-47, 1.0),
    ],
)
def test_fused_sums_that_rounding_twice_would_miss(a, b, c):
    with np.errstate(all="ignore"):
        (found,) = fma32(*(np.array([value], np.float32) for value in (a, b, c))).tolist()
    assert found == product_sum(a, b, c, "f32")


def test_fused_sums_of_edge_values():
    edges = EDGES32[::2]
    for (a, b, c), found in results("v_fma_f32 v9, v0, v1, v2", edges, edges, edges):
        expected = product_sum(f32(a), f32(b), f32(c), "f32")
        assert is_same32(found, expected), (hex(a), hex(b), hex(c), hex(found))
    edges = EDGES16[::2]
    for (a, b, c), found in results("v_fma_f16 v9, v0, v1, v2", edges, edges, edges, old=0xABCD0000):
        assert found >> 16 == 0xABCD
        assert is_same16(found & 0xFFFF, product_sum(f16(a), f16(b), f16(c), "f16")), (hex(a), hex(b), hex(c))


def test_a_fused_sum_of_float64_is_rounded_once():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 300))
    with np.errstate(all="ignore"):
        found = fma64(a, b, -a * b)
        assert found.tolist() == [
            rounded(Fraction(x) * Fraction(y) - Fraction(x * y), "f64") for x, y in zip(a, b, strict=True)
        ]
        assert fma64(np.array([1e300, np.inf]), np.array([1e300, 0]), np.zeros(2)).tolist()[0] == math.inf


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("v_fmac_f32_e32 v9, v0, v1", "01o"),
        ("v_fmaak_f32 v9, v0, v1, 0x40400000", "01k"),
        ("v_fmamk_f32 v9, v0, 0x40400000, v1", "0k1"),
        ("v_fma_f32 v9, -v0, |v1|, 1.0", "-0|1|1"),
        ("v_fma_f32 v9, v0, v1, -|v0|", "01-|0|"),
    ],
)
def test_the_forms_of_fused_sums(text, order):
    sums = {
        "01o": lambda a, b: (a, b, 2.5),
        "01k": lambda a, b: (a, b, 3.0),
        "0k1": lambda a, b: (a, 3.0, b),
        "-0|1|1": lambda a, b: (-a, abs(b), 1.0),
        "01-|0|": lambda a, b: (a, b, -abs(a)),
    }
    for (a, b), found in results(text, EDGES32, EDGES32, old=bits32(2.5)):
        assert is_same32(found, product_sum(*sums[order](f32(a), f32(b)), "f32")), (hex(a), hex(b), hex(found))


def test_mac_rounds_twice_and_flushes():
    values = [0x3F800001, 0x00000001, 0x807FFFFF, 0x1F800000, 0x3F7FFFFF, 0x00800001]

    def flushed(value):
        return 0.0 if abs(value) < 2.0**-126 else value

    for (a, b, c), found in results("v_mad_f32 v9, v0, v1, v2", values, values, values):
        step = flushed(product(flushed(f32(a)), flushed(f32(b)), "f32"))
        assert abs(f32(found)) == abs(flushed(plain_sum(step, flushed(f32(c)), "f32")))
    assert ran("v_mac_f32_e32 v9, 0, v0", "gfx90a", v={0: 1.5, 9: bits32(4.0)}).vector[9, 0, 0] == bits32(4.0)
    assert ran("v_madmk_f32 v9, v0, 0x40400000, v1", v={0: np.float32(2), 1: np.float32(1)}).vector[9, 0, 0] == bits32(7.0)


def _half_even(value: float) -> float:
    return math.copysign(float(round(value)), value)


ROUNDINGS = {
    "v_floor": lambda a: math.copysign(float(math.floor(a)), a),
    "v_ceil": lambda a: math.copysign(float(math.ceil(a)), a),
    "v_trunc": lambda a: math.copysign(float(math.trunc(a)), a),
    "v_rndne": _half_even,
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_roundings(name):
    values = [*EDGES32, *map(bits32, (0.5, -0.5, 1.5, 2.5, -2.5, -0.75, 0.999, 8388607.5, -3.0))]
    for (a,), found in results(f"{name}_f32_e32 v9, v0", values):
        assert is_same32(found, ROUNDINGS[name](f32(a)) if math.isfinite(f32(a)) else f32(a)), hex(a)
    for (a,), found in results(f"{name}_f16_e32 v9, v0", [*EDGES16, *map(bits16, (0.5, 1.5, 2.5, -2.5))]):
        assert is_same16(found, ROUNDINGS[name](f16(a)) if math.isfinite(f16(a)) else f16(a)), hex(a)


def test_fract_is_below_1():
    for (a,), found in results(
        "v_fract_f32_e32 v9, v0", [bits32(v) for v in (0.0, 1.25, -1.25, 3.0)] + [0x80000001, 0xB0000000]
    ):
        exact = Fraction(f32(a)) - math.floor(f32(a))
        assert f32(found) == min(rounded(exact, "f32"), 1 - 2.0**-24)


def test_ldexp_and_frexp():
    exponents = [0, 1, 0xFFFFFFFF, 24, 0xFFFFFFE8, 127, 0xFFFFFF6A, 300, 0xFFFFFE00, 0x7FFFFFFF, 0x80000000]
    for (a, n), found in results("v_ldexp_f32 v9, v0, v1", EDGES32, exponents):
        power = max(min(n - (n >> 31 << 32), 1000), -1000)
        value = f32(a)
        expected = rounded(Fraction(value) * Fraction(2) ** power, "f32") if math.isfinite(value) and value else value
        assert is_same32(found, math.copysign(expected, value) if not math.isnan(value) else value), (hex(a), power)
    for (a,), found in results("v_frexp_mant_f32_e32 v9, v0", EDGES32):
        assert found == (bits32(math.frexp(f32(a))[0]) if math.isfinite(f32(a)) else a)
    for (a,), found in results("v_frexp_exp_i32_f32_e32 v9, v0", EDGES32):
        assert found == (math.frexp(f32(a))[1] if math.isfinite(f32(a)) else 0) & 0xFFFFFFFF


def test_modifiers():
    clamp = {f32(a): found for (a,), found in results("v_add_f32_e64 v9, v0, v0 clamp", FEW)}
    assert [f32(clamp[f32(a)]) for a in (0xC0400000, 0x3F800000, 0x7F800000)] == [0.0, 1.0, 1.0]
    assert f32(dict(results("v_add_f32_e64 v9, v0, v0 clamp", [0x7FC00000]))[(0x7FC00000,)]) == 0.0
    for (a, b), found in results("v_mul_f32_e64 v9, -|v0|, v1", FEW, FEW):
        assert is_same32(found, product(-abs(f32(a)), f32(b), "f32"))
    with pytest.raises(UnknownInstructionError, match="mul"):
        ran("v_add_f32_e64 v9, v0, v0 mul:2")
    high = ran("v_add_f16_e64 v9, v0, v1 op_sel:[1,0,1]", v={0: 0x3C000000, 1: 0x4000, 9: 0x1234})
    assert high.vector[9, 0, 0] == bits16(3.0) << 16 | 0x1234
    half = ran("v_add_f16_e32 v9.h, v0.l, v0.h", "gfx1100", v={0: 0x3C004000, 9: 0x1234})
    assert half.vector[9, 0, 0] == bits16(3.0) << 16 | 0x1234


def test_dpp_lanes_that_are_off_and_dual_halves():
    lanes = np.arange(64, dtype=np.float32)
    after = ran("v_add_f32_dpp v9, v0, v0 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf bound_ctrl:1", v={0: lanes})
    assert after.vector[9, 0].view(np.float32).tolist() == [(lane ^ 1) + lane for lane in range(64)]
    off = ran("v_fma_f32 v9, v0, v0, v0", v={0: lanes}, exec=0b100)
    assert off.vector[9, 0, :3].tolist() == [JUNK, JUNK, bits32(6.0)]
    text = "v_dual_fmac_f32 v9, v0, v0 :: v_dual_sub_f32 v0, 1.0, v0"
    dual = ran(text, "gfx1201", v={0: np.float32(3), 9: np.float32(1)})
    assert (f32(int(dual.vector[9, 0, 0])), f32(int(dual.vector[0, 0, 0]))) == (10.0, -2.0)


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1100"])
def test_mixed_sums(architecture):
    v = {0: bits16(1.5) | bits16(-2.0) << 16, 1: np.float32(3.1), 2: bits16(0.25) << 16, 9: JUNK}
    third = float(np.float32(3.1))
    for text, expected in (
        ("v_fma_mix_f32 v9, v0, v1, neg(0) op_sel_hi:[1,0,0]", rounded(Fraction(1.5) * Fraction(third), "f32")),
        ("v_fma_mix_f32 v9, -v1, 2.0, v0 op_sel_hi:[0,1,1]", rounded(Fraction(1.5) - 2 * Fraction(third), "f32")),
        (
            "v_fma_mix_f32 v9, -v0, v1, |v2| op_sel:[1,0,1] op_sel_hi:[1,0,1]",
            rounded(2 * Fraction(third) + Fraction(1, 4), "f32"),
        ),
    ):
        assert ran(text, architecture, v=v).vector[9, 0, 0] == bits32(expected), text
    low = ran("v_fma_mixlo_f16 v9, v0, v1, v2 op_sel:[0,0,1] op_sel_hi:[1,0,1]", architecture, v=v).vector[9, 0, 0]
    expected = bits16(rounded(Fraction(rounded(Fraction(1.5) * Fraction(third) + Fraction(1, 4), "f32")), "f16"))
    assert low == JUNK & 0xFFFF0000 | expected
    high = ran("v_fma_mixhi_f16 v9, v0, v1, v2 op_sel:[0,0,1] op_sel_hi:[1,0,1]", architecture, v=v).vector[9, 0, 0]
    assert high == JUNK & 0xFFFF | expected << 16


def test_a_mix_of_bfloat16():
    v = {0: bits32(1.5) >> 16 | bits32(-2.0), 1: np.float32(3.1), 9: JUNK}
    for text, expected in (
        ("v_fma_mix_f32_bf16 v9, v0, v1, neg(0) op_sel_hi:[1,0,0]", Fraction(1.5) * Fraction(float(np.float32(3.1)))),
        (
            "v_fma_mix_f32_bf16 v9, v1, 2.0, v0 op_sel:[0,1,0] op_sel_hi:[0,1,1]",
            Fraction(1.5) + 2 * Fraction(float(np.float32(3.1))),
        ),
        ("v_fma_mix_f32_bf16 v9, v1, 2.0, v0 op_sel_hi:[0,1,1]", Fraction(1.5)),
        ("v_fma_mix_f32_bf16 v9, -v0, v1, |v0| op_sel:[1,0,1] op_sel_hi:[1,0,1]", 2 * Fraction(float(np.float32(3.1))) + 2),
    ):
        assert ran(text, "gfx1250", v=v).vector[9, 0, 0] == bits32(rounded(expected, "f32")), text


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("v0, v1, neg(0) op_sel_hi:[1,0,0]", Fraction(1.5) * Fraction(float(np.float32(3.1)))),
        ("-v0, v1, |v0| op_sel:[1,0,1] op_sel_hi:[1,0,1]", 2 * Fraction(float(np.float32(3.1))) + 2),
    ],
)
@pytest.mark.parametrize(("half", "shift"), [("lo", 0), ("hi", 16)])
def test_a_mix_in_half_of_a_register_as_bfloat16(half, shift, text, exact):
    v = {0: bits32(1.5) >> 16 | bits32(-2.0), 1: np.float32(3.1), 9: JUNK}
    after = int(ran(f"v_fma_mix{half}_bf16 v9, {text}", "gfx1250", v=v).vector[9, 0, 0])
    assert after >> 16 - shift & 0xFFFF == JUNK >> 16 - shift & 0xFFFF
    assert after >> shift & 0xFFFF == bits32(rounded(Fraction(rounded(exact, "f32")), "bf16")) >> 16


@pytest.mark.parametrize("setting", ["float_round_mode_32", "ieee_mode", "float_denorm_mode_32"])
def test_other_modes_are_refused(setting):
    instructions, labels = code_of("s_endpgm")
    kernel = Kernel("lines", "gfx942", tuple(instructions), labels, (), 0, 64, 64, 0, 0, {setting: 2})
    with pytest.raises(UnknownInstructionError, match=setting):
        prepare(kernel)
