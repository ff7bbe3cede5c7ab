"""Quantized numbers against exact fractions, torch's decoding of all bytes, and torch's cast where it is defined."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from attn_contract import QUANTIZED_DTYPES
from attn_reference import dequantize, e8m0_numbers, e8m0_scales, quantize, row_scales

FLOAT8 = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}
LARGEST = {**FLOAT8, torch.int8: 127.0}
NAN_BYTE = {torch.float8_e4m3fn: 0x7F, torch.float8_e4m3fnuz: 0x80}
ONE = torch.tensor(1.0)
EVERY_BYTE = torch.arange(256, dtype=torch.uint8)
TINY = torch.finfo(torch.float32).smallest_normal


def stored_bytes(values, dtype, scale=ONE):
    return quantize(torch.as_tensor(values), scale, dtype).view(torch.uint8)


def numbers_of(dtype):
    """(number, byte) for all finite numbers of a type, in ascending order. The byte of 0 is the positive zero's."""
    decoded = EVERY_BYTE.view(dtype).double().tolist()
    found = {number: byte for byte, number in reversed(list(enumerate(decoded))) if number == number}
    return sorted(found.items())


@pytest.mark.parametrize("dtype", LARGEST)
def test_every_byte_is_decoded_as_torch_does(dtype):
    for precision in (torch.float32, torch.float64):
        ours, theirs = dequantize(EVERY_BYTE.view(dtype), ONE, precision), EVERY_BYTE.view(dtype).to(precision)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours.signbit()[~ours.isnan()], theirs.signbit()[~theirs.isnan()])


@pytest.mark.parametrize("dtype", LARGEST)
def test_every_number_is_stored_as_itself(dtype):
    decoded = EVERY_BYTE.view(dtype).float()
    expected = EVERY_BYTE.clone()
    if dtype == torch.int8:
        expected[0x80] = 0x81
    else:
        expected[decoded.isnan()] = NAN_BYTE[dtype]
    assert torch.equal(stored_bytes(decoded, dtype), expected)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_as_torch_casts_what_is_in_range(dtype):
    """torch rounds to nearest even, too. Its overflows depend on the type and are left out here."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    values = torch.cat(
        [bits.view(torch.float32), torch.randn(200_000, generator=generator) * 2.0 ** torch.randint(-12, 8, (1,))]
    )
    values = values[values.abs() <= FLOAT8[dtype]]
    assert torch.equal(stored_bytes(values, dtype), values.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("dtype", LARGEST)
def test_ties_go_to_the_even_code(dtype):
    """The midpoint of each pair of neighbours goes to the even code; the float32 numbers next to it go to their own side."""
    neighbours = [(a, b) for a, b in itertools.pairwise(numbers_of(dtype)) if a[0] >= -LARGEST[dtype]]
    midpoints = torch.tensor([(a[0] + b[0]) / 2 for a, b in neighbours])
    below, above = (torch.nextafter(midpoints, torch.tensor(to)) for to in (-torch.inf, torch.inf))
    decode = {byte: number for number, byte in numbers_of(dtype)}
    for values, choose in ((midpoints, None), (below, 0), (above, 1)):
        for byte, pair in zip(stored_bytes(values, dtype).tolist(), neighbours, strict=True):
            even = next(number for number, code in pair if code % 2 == 0)
            expected = even if choose is None else pair[choose][0]
            assert decode.get(byte, 0.0) == expected, (byte, pair)


@pytest.mark.parametrize("dtype", LARGEST)
def test_overflow_and_infinity_saturate(dtype):
    """torch's own cast turns an e4m3fnuz overflow into NaN."""
    largest = LARGEST[dtype]
    values = torch.tensor([largest, largest * 1.01, largest * 1.5, 1e38, torch.inf])
    for sign in (1, -1):
        read = dequantize(quantize(sign * values, ONE, dtype), ONE, torch.float64)
        assert read.tolist() == [sign * largest] * 5
    assert dequantize(quantize(torch.tensor([3e38]), torch.tensor(TINY), dtype), ONE, torch.float64).item() == largest


@pytest.mark.parametrize("dtype", FLOAT8)
def test_nan_is_the_canonical_one(dtype):
    nans = torch.tensor([0x7FC00000, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert stored_bytes(nans, dtype).tolist() == [NAN_BYTE[dtype]] * 3
    for half in (torch.float16, torch.bfloat16):
        assert stored_bytes(torch.tensor([torch.nan, -torch.nan], dtype=half), dtype).tolist() == [NAN_BYTE[dtype]] * 2


def test_only_e4m3fn_keeps_the_sign_of_zero():
    """e4m3fnuz has only one zero, since the byte of a negative zero is its NaN. int8 has only one, too."""
    values = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    assert stored_bytes(values, torch.float8_e4m3fn).tolist() == [0, 0x80, 0, 0x80]
    assert stored_bytes(values, torch.float8_e4m3fnuz).tolist() == [0, 0, 0, 0]
    assert stored_bytes(values, torch.int8).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_quotient_is_one_division(dtype):
    """tie * scale / scale is the tie again. Multiplied by the reciprocal, it would often be slightly more or less."""
    tie, even = {torch.int8: (16.5, 16)}.get(dtype, (17.0, 16))
    scales = torch.arange(1, 400).float()
    products = tie * scales
    assert (products * (1 / scales) != tie).any()
    assert dequantize(quantize(products, scales, dtype), ONE, torch.float64).tolist() == [even] * len(scales)


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_number_is_read_as_the_exact_product(dtype):
    scale = torch.tensor(0.1)
    stored = EVERY_BYTE.view(dtype)
    read = dequantize(stored, scale, torch.float64).tolist()
    for number, product in zip(stored.double().tolist(), read, strict=True):
        if number == number:
            assert Fraction(product) == Fraction(number) * Fraction(scale.item())
    rounded = dequantize(stored, scale, torch.float32)
    torch.testing.assert_close(rounded, stored.float() * scale, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_largest_magnitude_of_a_row_becomes_the_largest_number(dtype):
    """The largest finite magnitude of a row becomes the largest number. A row without a finite magnitude gets 2^-100."""
    rows = torch.tensor([[1.0, -3.0], [torch.inf, 2.0], [-torch.inf, torch.inf], [0.0, -0.0], [1e-30, 1e-38]])
    largest = torch.tensor([3.0, 2.0, 0.0, 0.0, 1e-30])
    expected = torch.maximum(largest / torch.full_like(largest, LARGEST[dtype]), torch.tensor(2.0**-100))
    scales = row_scales(rows, dtype)
    assert scales.shape == (5, 1)
    assert torch.equal(scales.flatten(), expected)
    read = dequantize(quantize(rows, scales, dtype), scales, torch.float32)
    torch.testing.assert_close(read[0, 1], torch.tensor(-3.0), rtol=2**-23, atol=0)
    torch.testing.assert_close(read[1], torch.tensor([2.0, 2.0]), rtol=2**-23, atol=0)
    assert not read[3].any()


@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_nan_in_a_row_of_float8_is_itself_alone(dtype):
    rows = torch.tensor([[torch.nan, 3.0]])
    scales = row_scales(rows, dtype)
    read = dequantize(quantize(rows, scales, dtype), scales, torch.float64)
    assert read.isnan().tolist() == [[True, False]]


def test_a_nan_in_a_row_of_int8_is_the_whole_row():
    """int8 has no NaN, so the scale becomes NaN."""
    rows = torch.tensor([[torch.nan, 3.0], [1.0, 3.0]])
    scales = row_scales(rows, torch.int8)
    assert scales.isnan().flatten().tolist() == [True, False]
    stored = quantize(rows, scales, torch.int8)
    assert stored[0].tolist() == [0, 0]
    assert dequantize(stored, scales, torch.float64).isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("dtype", QUANTIZED_DTYPES, ids=str)
def test_scales_of_no_row_are_bytes_too(dtype):
    assert row_scales(torch.empty(0, 1, 4), dtype).view(torch.uint8).shape == (0, 1, 4)


# --- ue8m0 scales ---


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float8_e4m3fn, 448.0), (torch.float8_e4m3fnuz, 240.0)])
def test_a_ue8m0_scale_is_the_least_power_of_two_that_fits(dtype, largest):
    """At each power of two: the largest number that it fits, and the next float32 above, which it does not."""
    for exponent in range(-100, 119):
        fits = torch.tensor(math.ldexp(largest, exponent))
        above = torch.nextafter(fits, torch.tensor(torch.inf))
        codes = e8m0_scales(torch.stack([fits, -above])[:, None], dtype)
        assert codes.flatten().tolist() == [exponent + 127, exponent + 128], exponent


def test_a_ue8m0_scale_is_of_finite_magnitudes_and_has_a_floor():
    rows = torch.tensor([[0.0, 0.0], [2.0**-149, 0.0], [torch.nan, torch.inf], [torch.inf, 3.5], [torch.nan, -448.0]])
    assert e8m0_scales(rows, torch.float8_e4m3fn).flatten().tolist() == [27, 27, 27, 120, 127]
    assert e8m0_scales(rows[-1:], torch.float8_e4m3fnuz).tolist() == [[128]]


def test_ue8m0_numbers_are_what_torch_reads():
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e8m0fnu).float()
    torch.testing.assert_close(e8m0_numbers(codes), expected, rtol=0, atol=0, equal_nan=True)
    assert e8m0_numbers(codes)[[0, 127, 254]].tolist() == [2.0**-127, 1.0, 2.0**127]
