"""v_dot2_bf16_bf16, against sums of fractions that are rounded once."""

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
