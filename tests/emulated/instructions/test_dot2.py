"""v_dot2_bf16_bf16, against sums of fractions that are rounded once."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import bits_of, edges, is_same, number, product_sum, results, rounded
from tests.emulated.lines import ran
from tests.emulated.tables import check, number_of

Pair = tuple[float, float]


def dot(a: Pair, b: Pair, c: float) -> float:
    terms = [x * y for x, y in zip(a, b, strict=True)] + [c]
    if not all(map(math.isfinite, terms)):
        return sum(terms[1:], terms[0])
    total = sum(Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)) + Fraction(c)
    if total:
        return rounded(total, "bf16")
    return -0.0 if all(math.copysign(1, term) < 0 for term in terms) else 0.0


@pytest.mark.parametrize("architecture", ["gfx1100", "gfx1201"])
def test_every_kind_of_number(architecture):
    check("v_dot2_bf16_bf16", "bf16 = 2bf16 2bf16 bf16", dot, architecture)


def test_ordinary_numbers_that_round():
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(0x3C00, 0x4400, size, np.uint32) for size in ((2, 40), (2, 40), 8))
    pairs = [(low | high << np.uint32(16)).tolist() for low, high in (a, b)]
    found = results("v_dot2_bf16_bf16 v9, v0, v1, v2", *pairs, c.tolist(), architecture="gfx1201")
    assert len(found) == 40 * 40 * 8
    for (a, b, c), bits in found:
        assert is_same(bits, dot(number_of(a, "2bf16"), number_of(b, "2bf16"), number(c, "bf16")), "bf16")


def test_a_product_alone_is_that_of_torch():
    """Products as Triton makes them: upper halves and the third source are 0."""
    values = [bits for bits in edges("bf16") if bits & 0x7F80 != 0x7F80]
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
    assert after.vector[9, 0, 7] == 0xABCD0000 | bits_of(expected, "bf16")


@pytest.mark.parametrize("target", ["v9, v0, v0, 0 op_sel:[0,0,0,1]", "v9.h, v0, v0, 0"])
def test_the_upper_half_of_the_result(target):
    after = ran(f"v_dot2_bf16_bf16 {target}", "gfx1201", v={0: ONE_TWO, 9: 0x1234}, exec=0b10)
    assert after.vector[9, 0, :2].tolist() == [0x1234, bits_of(5.0, "bf16") << 16 | 0x1234]


@pytest.mark.parametrize("line", ["v9, -v0, v0, 0", "v9, v0, |v0|, 0", "v9, v0, v0, 0 clamp", "v9, v0, v0, 0 op_sel:[1,0]"])
def test_operands_without_a_meaning_here_are_refused(line):
    with pytest.raises(UnknownInstructionError):
        ran(f"v_dot2_bf16_bf16 {line}", "gfx1201")


def flushed(value: float) -> float:
    return value if abs(value) >= 2.0**-126 or math.isnan(value) else math.copysign(0, value)


def of_two_products(a: Pair, b: Pair, c: float) -> float:
    """A float32, and the products of the lower and then of the upper halves: rounded after each, and 0 for a denormal."""
    total = flushed(c)
    for x, y in zip(a, b, strict=True):
        total = flushed(product_sum(x, y, total, "f32"))
    return total


@pytest.mark.parametrize(("kind", "architecture"), [("f16", "gfx942"), ("bf16", "gfx950")])
def test_two_products_and_a_float32(kind, architecture):
    check(f"v_dot2_f32_{kind}", f"f32 = 2{kind} 2{kind} f32", of_two_products, architecture)
    check(f"v_dot2c_f32_{kind}", f"f32 = 2{kind} 2{kind} *f32", of_two_products, architecture)
