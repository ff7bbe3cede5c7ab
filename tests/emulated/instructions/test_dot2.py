"""v_dot2_bf16_bf16, against sums of fractions that are rounded once."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import results, rounded
from tests.emulated.lines import ran

EDGES = [
    *(0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3380, 0x3F00, 0x3F80, 0xBF80, 0x3F81, 0x3FC0, 0xC049, 0x4B81),
    *(0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC1, 0x7F81),
]
"""Bits of bfloat16: zeros, denormals, normal numbers, infinities, a quiet NaN and a signaling one."""


def number(bits: int) -> float:
    return float(np.array([bits << 16], np.uint32).view(np.float32)[0])


def bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32)) >> 16


def dot(a: int, b: int, c: int) -> float:
    """Of 32, 32 and 16 bits."""
    products = [(number(a >> shift & 0xFFFF), number(b >> shift & 0xFFFF)) for shift in (0, 16)]
    terms = [x * y for x, y in products] + [number(c)]
    if not all(map(math.isfinite, terms)):
        return sum(terms[1:], terms[0])
    total = sum(Fraction(x) * Fraction(y) for x, y in products) + Fraction(terms[2])
    if total:
        return rounded(total, "bf16")
    return -0.0 if all(math.copysign(1, term) < 0 for term in terms) else 0.0


def is_same(found: int, expected: float) -> bool:
    return found & 0x7FC0 == 0x7FC0 if math.isnan(expected) else found == bits_of(expected)


@pytest.mark.parametrize("architecture", ["gfx1100", "gfx1201"])
def test_every_kind_of_number(architecture):
    rng = np.random.default_rng(0)
    pairs = [[low | int(rng.choice(EDGES)) << 16 for low in EDGES] + EDGES for _ in range(2)]
    found = results("v_dot2_bf16_bf16 v9, v0, v1, v2", *pairs, EDGES[::2], architecture=architecture, old=0xABCD1234)
    for (a, b, c), bits in found:
        assert bits >> 16 == 0xABCD, "the half that is not named stays"
        assert is_same(bits & 0xFFFF, dot(a, b, c)), f"{a:#x} {b:#x} {c:#x}: {bits & 0xFFFF:#x}, not {dot(a, b, c)}"


def test_ordinary_numbers_that_round():
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(0x3C00, 0x4400, size, np.uint32) for size in ((2, 40), (2, 40), 40))
    found = results(
        "v_dot2_bf16_bf16 v9, v0, v1, v2",
        *([int(low | high << 16) for low, high in zip(*pair, strict=True)] for pair in (a, b)),
        [int(bits) for bits in c[:8]],
        architecture="gfx1201",
    )
    assert len(found) == 40 * 40 * 8
    assert all(is_same(bits, dot(*given)) for given, bits in found)


def test_a_product_alone_is_that_of_torch():
    """As Triton multiplies: upper halves and the third source are 0."""
    values = [bits for bits in EDGES if bits & 0x7F80 != 0x7F80]
    found = results("v_dot2_bf16_bf16 v9, v0, v1, 0", values, values, architecture="gfx1201")
    a, b, product = (
        torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        for bits in ([a for (a, _), _ in found], [b for (_, b), _ in found], [bits for _, bits in found])
    )
    assert torch.equal(product, a * b)


ONE_TWO = 0x40003F80  # 1 in the lower half, 2 in the upper one


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ("v9, v0, 0, 0", 0.0),
        ("v9, v0, -1.0, 0", -1.0),  # 0 in the upper half
        ("v9, v0, 2.0, 4.0", 6.0),
        ("v9, 0x40003f80, v0, 0", 5.0),
        ("v9, s3, v0, -0.5", 4.5),
        ("v9, v0, v0, v1", 8.0),
        ("v9, v0, v0, v1 op_sel:[0,0,1,0]", 12.0),
        ("v9, v0, v0, v1.h", 12.0),
    ],
)
def test_constants_scalars_and_halves(operands, expected):
    after = ran(f"v_dot2_bf16_bf16 {operands}", "gfx1201", v={0: ONE_TWO, 1: 0x40E04040, 9: 0xABCD0000}, s={3: ONE_TWO})
    assert after.vector[9, 0, 7] == 0xABCD0000 | bits_of(expected)


@pytest.mark.parametrize("target", ["v9, v0, v0, 0 op_sel:[0,0,0,1]", "v9.h, v0, v0, 0"])
def test_the_upper_half_of_the_result(target):
    after = ran(f"v_dot2_bf16_bf16 {target}", "gfx1201", v={0: ONE_TWO, 9: 0x1234}, exec=0b10)
    assert after.vector[9, 0, :2].tolist() == [0x1234, bits_of(5.0) << 16 | 0x1234]


@pytest.mark.parametrize("line", ["v9, -v0, v0, 0", "v9, v0, |v0|, 0", "v9, v0, v0, 0 clamp", "v9, v0, v0, 0 op_sel:[1,0]"])
def test_what_has_no_meaning_here_is_refused(line):
    with pytest.raises(UnknownInstructionError):
        ran(f"v_dot2_bf16_bf16 {line}", "gfx1201")


HALVES = [0x0000, 0x8000, 0x0001, 0x3C00, 0xBC01, 0x4248, 0x7BFF, 0x7C00, 0x7E00]
SUMS = [0x00000000, 0x3F800000, 0xC0490FDB, 0x4B800001, 0x00000001, 0x7F800000]


def half(bits: int) -> float:
    return float(np.array([bits], np.uint16).view(np.float16)[0])


def single(value: float) -> np.float32:
    """A number rounded to float32, and 0 for a denormal."""
    found = np.float32(rounded(Fraction(value), "f32") if math.isfinite(value) else value)
    return found if abs(found) >= np.finfo(np.float32).tiny or math.isnan(found) else np.float32(math.copysign(0, found))


def check_two_products(text, architecture, codes, number_of, two):
    """The sum of a float32, of drawn products of lower halves and then of one by two, rounded after each."""
    of_lanes = [*itertools.product(codes, codes, codes[3:6], SUMS)]
    for begin in range(0, len(of_lanes), 64):
        bits = np.array(of_lanes[begin : begin + 64], np.uint32)
        low_a, low_b, high, c = np.resize(bits, (64, 4)).T
        after = ran(text, architecture, v={0: high << 16 | low_a, 1: two << 16 | low_b, 2: c})
        found = after.vector[9 if " v9" in text else 2, 0, : len(bits)].view(np.float32)
        for lane, given in enumerate(of_lanes[begin : begin + 64]):
            total = of_two_products(*given, number_of)
            assert found[lane] == total or (math.isnan(found[lane]) and math.isnan(total)), [*map(hex, given)]


def of_two_products(low_a, low_b, high, c, number_of) -> np.float32:
    with np.errstate(all="ignore"):
        total = single(float(np.array([c], np.uint32).view(np.float32)[0]))
        for x, y in ((number_of(low_a), number_of(low_b)), (number_of(high), 2.0)):
            exact = Fraction(x) * Fraction(y) + Fraction(float(total)) if math.isfinite(x * y + float(total)) else None
            total = single(exact) if exact is not None else np.float32(x * y + float(total))
    return total


@pytest.mark.parametrize("text", ["v_dot2_f32_f16 v9, v0, v1, v2", "v_dot2c_f32_f16_e32 v2, v0, v1"])
def test_two_products_of_float16_and_a_float32(text):
    check_two_products(text, "gfx942", HALVES, half, two=0x4000)


@pytest.mark.parametrize("text", ["v_dot2_f32_bf16 v9, v0, v1, v2", "v_dot2c_f32_bf16_e32 v2, v0, v1"])
def test_two_products_of_bfloat16_and_a_float32(text):
    check_two_products(text, "gfx950", [*EDGES[:1], *EDGES[2:4], *EDGES[8:13], *EDGES[14:18:2], 0x7FC1], number, two=0x4000)
