"""Rounding to 16 bits against exact fractions, where torch's own conversion of float64 rounds twice."""

import math
from fractions import Fraction

import pytest
import torch
from attn_contract import FLOAT_DTYPES
from attn_reference import dequantize, merge_attn_states, paged_attention
from attn_reference.rounding import rounded

PRECISION = {torch.float16: 11, torch.bfloat16: 8}
"""Bits of a significand."""
HALVES = tuple(PRECISION)


def nearest(number: float, dtype: torch.dtype) -> float:
    """The nearest number of the dtype, ties to even: a whole multiple of the spacing of its numbers there."""
    if number == 0 or not math.isfinite(number):
        return number
    info = torch.finfo(dtype)
    exponent = max(math.frexp(number)[1], math.frexp(info.smallest_normal)[1])
    spacing = Fraction(2) ** (exponent - PRECISION[dtype])
    result = round(Fraction(number) / spacing) * spacing  # Python's round takes ties to even
    return math.copysign(float(result) if abs(result) <= Fraction(info.max) else math.inf, number)


def assert_rounds_to_nearest(got: torch.Tensor, exact: torch.Tensor) -> None:
    expected = [nearest(number, got.dtype) for number in exact.flatten().tolist()]
    assert got.double().flatten().tolist() == expected
    assert got.signbit().flatten().tolist() == exact.signbit().flatten().tolist()


def assert_shows(exact: torch.Tensor, dtype: torch.dtype) -> None:
    """Check that torch's conversion rounds some of these numbers twice. If it did not, the test would prove nothing."""
    twice = exact.to(dtype).double().flatten().tolist()
    assert twice != [nearest(number, dtype) for number in exact.flatten().tolist()]


def around_midpoints(dtype: torch.dtype) -> torch.Tensor:
    """float64 numbers: some of the dtype, the midpoints above them, and close numbers on both sides of each midpoint."""
    bits = torch.arange(0, 2**15, 31, dtype=torch.int16)
    numbers = bits.view(dtype)[bits.view(dtype).isfinite()].double()
    above = (bits + 1).view(dtype)[bits.view(dtype).isfinite()].double()
    midpoints = ((numbers + above) / 2)[above.isfinite()]
    nudges = [torch.nextafter(midpoints, torch.tensor(to, dtype=torch.float64)) for to in (-torch.inf, torch.inf)]
    magnitudes = torch.cat([numbers, midpoints, *nudges, midpoints * (1 + 2.0**-30), midpoints * (1 - 2.0**-30)])
    return torch.cat([magnitudes, -magnitudes])


@pytest.mark.parametrize("dtype", HALVES)
def test_float64_is_rounded_once(dtype):
    numbers = around_midpoints(dtype)
    assert_rounds_to_nearest(rounded(numbers, dtype), numbers)
    assert_shows(numbers, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_ends_of_the_range(dtype):
    info = torch.finfo(dtype)
    overflow = Fraction(info.max) * (1 + Fraction(1, 2 ** (PRECISION[dtype] + 1) - 2))
    at_overflow = torch.tensor(float(overflow), dtype=torch.float64)
    edges = [
        *(torch.nextafter(at_overflow, at_overflow * 0), at_overflow, torch.nextafter(at_overflow, at_overflow * 2)),
        *(torch.tensor(x, dtype=torch.float64) for x in (0.0, -0.0, 5e-324, 1e-46, 1e39, -1e39, 1e308, torch.inf, -torch.inf)),
    ]
    assert_rounds_to_nearest(rounded(torch.stack(edges), dtype), torch.stack(edges))
    assert rounded(torch.tensor([torch.nan, -torch.nan], dtype=torch.float64), dtype).isnan().all()


def test_other_conversions_are_exact_or_those_of_torch(randn):
    numbers = randn(1000)
    for dtype in FLOAT_DTYPES:
        assert torch.equal(rounded(numbers, dtype), numbers.to(dtype))
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(rounded(numbers.double() / 3, dtype), (numbers.double() / 3).to(dtype))


def test_attention_rounds_its_output_once(paged_call):
    """Four equal weights: the output is 1 + 2^-11 + 2^-26, just above the midpoint of 1 and the next float16 number."""
    values = torch.tensor([4, 2.0**-9, 2.0**-24, 0], dtype=torch.float16).view(4, 1, 1)
    zeros = torch.zeros(1, 1, 1, dtype=torch.float16), torch.zeros(4, 1, 1, dtype=torch.float16)
    out = paged_attention(*paged_call([(*zeros, values)]), precision=torch.float64)
    assert out[0].item() == 1 + 2**-10


def test_a_merge_rounds_its_output_once(randn):
    out_a, out_b = (randn(16, 4, 256).half() for _ in range(2))
    lse_a, lse_b = randn(4, 16), randn(4, 16)
    lse = torch.logaddexp(lse_a.double(), lse_b.double())
    exact = sum(torch.exp(part - lse).T[..., None] * out for part, out in ((lse_a, out_a.double()), (lse_b, out_b.double())))
    assert_rounds_to_nearest(merge_attn_states(out_a, lse_a, out_b, lse_b), exact)
    assert_shows(exact, torch.float16)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_dequantized_number_is_rounded_once(dtype):
    """Each scale takes one stored number to about the midpoint of 1 and the next number of the dtype."""
    stored = torch.arange(-127, 128, dtype=torch.int8).repeat(127, 1)
    scales = (1 + 2.0 ** -PRECISION[dtype]) / torch.arange(1.0, 128)[:, None]
    exact = stored.double() * scales.double()
    assert_rounds_to_nearest(dequantize(stored, scales, dtype), exact)
    assert_shows(exact, dtype)
