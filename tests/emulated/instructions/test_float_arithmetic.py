"""Sums, products, roundings of vector registers against exact fractions."""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from attn_amdgcn import UnknownInstructionError
from attn_amdgcn.assembly import Kernel, code_of
from attn_amdgcn.instructions.fused import fma32, fma64
from attn_amdgcn.program import prepare

from tests.emulated.floats import (
    EDGES32,
    bits16,
    bits32,
    bits_of,
    f32,
    is_same,
    plain_sum,
    product,
    product_sum,
    results,
    rounded,
)
from tests.emulated.lines import JUNK, ran
from tests.emulated.tables import check

FEW = [0, 0x80000000, 0x3F800000, 0xC0400000, 0x7F800000, 0x7FC00000]


def whole(of: Callable[[float], int], a: float, kind: str) -> float:
    return math.copysign(float(of(a)), a) if math.isfinite(a) else a


FORMULAS: dict[str, Callable[..., float]] = {
    "add": plain_sum,
    "sub": lambda a, b, kind: plain_sum(a, -b, kind),
    "subrev": lambda a, b, kind: plain_sum(b, -a, kind),
    "mul": product,
    "fma": product_sum,
    "floor": partial(whole, math.floor),
    "ceil": partial(whole, math.ceil),
    "trunc": partial(whole, math.trunc),
    "rndne": partial(whole, round),
}
"""Formulas by the middle of the names. They take numbers and their format."""
MIDDLE = "add", "sub", "mul", "floor", "ceil", "trunc", "rndne"
PACKED = [(f"v_pk_{name}", kind, "gfx950") for name in ("add", "mul", "fma") for kind in ("f16", "f32")]
PACKED += [(f"v_pk_{name}", "bf16", "gfx1250") for name in ("add", "mul", "fma")]


@pytest.mark.parametrize(
    ("name", "kind", "architecture"),
    [(f"v_{name}", kind, "gfx942") for name in FORMULAS for kind in ("f16", "f32")]
    + [(f"s_{name}", kind, "gfx1201") for name in MIDDLE for kind in ("f16", "f32")]
    + PACKED,
)
def test_sums_products_and_roundings(name, kind, architecture):
    formula = FORMULAS[name.split("_")[-1]]
    sources = {"fma": 3, "floor": 1, "ceil": 1, "trunc": 1, "rndne": 1}.get(name.split("_")[-1], 2)
    check(f"{name}_{kind}", f"{kind} = {' '.join([kind] * sources)}", partial(formula, kind=kind), architecture)


def fraction(a: float) -> float:
    return min(rounded(Fraction(a) - math.floor(a), "f32"), 1 - 2.0**-24) if math.isfinite(a) else math.nan


def mantissa(a: int) -> int:
    return bits32(math.frexp(f32(a))[0]) if math.isfinite(f32(a)) else a


def scaled(a: float, n: int) -> float:
    return math.copysign(rounded(Fraction(a) * Fraction(2) ** max(min(n, 1000), -1000), "f32"), a) if math.isfinite(a) else a


def test_parts_of_a_float32():
    check("v_fract_f32", "f32 = f32", fraction)
    check("v_ldexp_f32", "f32 = f32 i32", scaled)
    check("v_frexp_exp_i32_f32", "i32 = f32", lambda a: math.frexp(a)[1] if math.isfinite(a) else 0)
    check("v_frexp_mant_f32", "f32 = f32", mantissa, of_bits=True)


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
        assert is_same(found, product_sum(*sums[order](f32(a), f32(b)), "f32"), "f32"), (hex(a), hex(b), hex(found))


def test_mac_rounds_twice_and_flushes():
    values = [0x3F800001, 0x00000001, 0x807FFFFF, 0x1F800000, 0x3F7FFFFF, 0x00800001]

    def flushed(value):
        return 0.0 if abs(value) < 2.0**-126 else value

    for (a, b, c), found in results("v_mad_f32 v9, v0, v1, v2", values, values, values):
        step = flushed(product(flushed(f32(a)), flushed(f32(b)), "f32"))
        assert abs(f32(found)) == abs(flushed(plain_sum(step, flushed(f32(c)), "f32")))
    assert ran("v_mac_f32_e32 v9, 0, v0", "gfx90a", v={0: 1.5, 9: bits32(4.0)}).vector[9, 0, 0] == bits32(4.0)
    assert ran("v_madmk_f32 v9, v0, 0x40400000, v1", v={0: np.float32(2), 1: np.float32(1)}).vector[9, 0, 0] == bits32(7.0)


def test_modifiers_clamp_multiply_and_choose_halves():
    clamp = {f32(a): found for (a,), found in results("v_add_f32_e64 v9, v0, v0 clamp", FEW)}
    assert [f32(clamp[f32(a)]) for a in (0xC0400000, 0x3F800000, 0x7F800000)] == [0.0, 1.0, 1.0]
    assert f32(dict(results("v_add_f32_e64 v9, v0, v0 clamp", [0x7FC00000]))[(0x7FC00000,)]) == 0.0
    for (a, b), found in results("v_mul_f32_e64 v9, -|v0|, v1", FEW, FEW):
        assert is_same(found, product(-abs(f32(a)), f32(b), "f32"), "f32")
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


THIRD = Fraction(float(np.float32(3.1)))
MIXES = {
    "v0, v1, neg(0) op_sel_hi:[1,0,0]": Fraction(1.5) * THIRD,
    "-v0, v1, |v2| op_sel:[1,0,1] op_sel_hi:[1,0,1]": 2 * THIRD + Fraction(1, 4),
    "v0, v1, v2 op_sel:[0,0,1] op_sel_hi:[1,0,1]": Fraction(1.5) * THIRD + Fraction(1, 4),
}
"""The sums, where the lower half of v0 is 1.5 and the upper one -2, v1 is a float32, and the upper half of v2 is 1 / 4."""
OF_CONSTANTS = [
    ("f32", "gfx942", "-v1, 2.0, v0 op_sel_hi:[0,1,1]", Fraction(1.5) - 2 * THIRD),
    ("f32", "gfx1100", "-v1, 2.0, v0 op_sel_hi:[0,1,1]", Fraction(1.5) - 2 * THIRD),
    ("f32_bf16", "gfx1250", "v1, 2.0, v0 op_sel:[0,1,0] op_sel_hi:[0,1,1]", Fraction(1.5) + 2 * THIRD),
    ("f32_bf16", "gfx1250", "v1, 2.0, v0 op_sel_hi:[0,1,1]", Fraction(1.5)),
]
WHERE = (
    ("f32", "gfx942"),
    ("f32", "gfx1100"),
    ("f16", "gfx942"),
    ("f16", "gfx1100"),
    ("f32_bf16", "gfx1250"),
    ("bf16", "gfx1250"),
)


@pytest.mark.parametrize(
    ("kind", "architecture", "operands", "exact"), [(*where, *mix) for where in WHERE for mix in MIXES.items()] + OF_CONSTANTS
)
def test_mixed_sums_are_rounded_once(kind, architecture, operands, exact):
    of = "bf16" if "bf16" in kind else "f16"
    v = {0: bits_of(1.5, of) | bits_of(-2.0, of) << 16, 1: np.float32(3.1), 2: bits_of(0.25, of) << 16, 9: JUNK}
    single = rounded(exact, "f32")
    if kind.startswith("f32"):
        assert ran(f"v_fma_mix_{kind} v9, {operands}", architecture, v=v).vector[9, 0, 0] == bits32(single)
        return
    for half, shift in (("lo", 0), ("hi", 16)):
        after = int(ran(f"v_fma_mix{half}_{kind} v9, {operands}", architecture, v=v).vector[9, 0, 0])
        assert after >> 16 - shift & 0xFFFF == JUNK >> 16 - shift & 0xFFFF
        assert after >> shift & 0xFFFF == bits_of(rounded(Fraction(single), of), of)


@pytest.mark.parametrize("setting", ["float_round_mode_32", "ieee_mode", "float_denorm_mode_32"])
def test_other_modes_are_refused(setting):
    instructions, labels = code_of("s_endpgm")
    kernel = Kernel("lines", "gfx942", tuple(instructions), labels, (), 0, 64, 64, 0, 0, {setting: 2})
    with pytest.raises(UnknownInstructionError, match=setting):
        prepare(kernel)
