"""Elements of one byte, bit by bit: every float16, bfloat16 and one-byte value, and float32 from its whole range."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from attn_optimized.device import architecture_of
from attn_optimized.kernels.compiled_once import INTERPRETED
from attn_optimized.kernels.quantization import decode, e8m0_code, e8m0_number, encode
from attn_optimized.quantization import stored_format
from triton.runtime.interpreter import InterpreterBuilder

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
LARGEST = {FN: 448.0, FNUZ: 240.0}
NAN = {FN: 0x7F, FNUZ: 0x80}
BLOCK = 1 << 14


@triton.jit
def encode_kernel(out_ptr, x_ptr, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, encode(tl.load(x_ptr + i), FORMAT))


@triton.jit
def e8m0_number_kernel(out_ptr, codes_ptr):
    index = tl.arange(0, 256)
    tl.store(out_ptr + index, e8m0_number(tl.load(codes_ptr + index)))


@triton.jit
def e8m0_code_kernel(out_ptr, x_ptr, FORMAT: tl.constexpr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    x = tl.load(x_ptr + row[:, None] * 2 + tl.arange(0, 2)[None, :])
    tl.store(out_ptr + row, e8m0_code(x, FORMAT))


@triton.jit
def decode_kernel(out_ptr, x_ptr, FORMAT: tl.constexpr, IN_INTEGERS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, decode(tl.load(x_ptr + i), FORMAT, out_ptr.dtype.element_ty, IN_INTEGERS))


@pytest.fixture(scope="module")
def numbers() -> torch.Tensor:
    """float32: all numbers of 16 bits, every 4,001st of 32 bits, and the neighbours of where elements change."""
    halves = [torch.arange(1 << 16).to(torch.uint16).view(dtype).float() for dtype in (torch.float16, torch.bfloat16)]
    sample = torch.arange(0, 1 << 32, 4001).to(torch.uint32).view(torch.float32)
    elements = torch.cat([torch.arange(256, dtype=torch.uint8).view(dtype).float() for dtype in (FN, FNUZ)])
    elements = elements[elements.isfinite()].sort().values
    middles = torch.cat([(elements[1:] + elements[:-1]) / 2, torch.arange(-129, 129) + 0.5])
    near = [middles.nextafter(torch.tensor(towards)) for towards in (-torch.inf, torch.inf)]
    joined = torch.cat([*halves, sample, elements, middles, *near])
    return torch.nn.functional.pad(joined, (0, -len(joined) % BLOCK))


def formats(dtype: torch.dtype, device: torch.device) -> list[str]:
    """As bits, which every machine has, as gfx12 has them where Triton interprets, and as what this one takes the type for."""
    _, name = stored_format(torch.empty(0, dtype=dtype, device=device), architecture_of(device, torch.float32))
    of_gfx12 = {"e4m3fn_byte"} if INTERPRETED and dtype == FN else set()
    return sorted({name, f"{name.removesuffix('_bits')}_bits"} | of_gfx12)


@pytest.mark.parametrize("float8", [FN, FNUZ], ids=str)
def test_float8_is_encoded_as_torch_converts(float8, numbers, device):
    """torch's conversion is to nearest even too; its overflows, its NaNs and its zero of e4m3fnuz are not asked for."""
    expected = numbers.clamp(-LARGEST[float8], LARGEST[float8]).to(float8).view(torch.uint8)
    if float8 == FNUZ:
        expected[expected == 0x80] = 0
    expected[numbers.isnan()] = NAN[float8]
    for name in formats(float8, device):
        out = torch.zeros(len(numbers), dtype=torch.uint8, device=device)
        stored = out if name.endswith(("_bits", "_byte")) else out.view(float8)
        encode_kernel[(len(numbers) // BLOCK,)](stored, numbers.to(device), FORMAT=name, BLOCK=BLOCK)
        different = (out.cpu() != expected).nonzero().flatten()
        assert not len(different), (name, numbers[different[0]], out[different[0]], expected[different[0]])


def test_int8_is_rounded_to_nearest_and_clamped(numbers, device):
    expected = numbers.round().clamp(-127, 127).nan_to_num(0).to(torch.int8)
    out = torch.zeros(len(numbers), dtype=torch.int8, device=device)
    encode_kernel[(len(numbers) // BLOCK,)](out, numbers.to(device), FORMAT="int8", BLOCK=BLOCK)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("element", [FN, FNUZ, torch.int8], ids=str)
def test_every_byte_is_decoded(element, dtype, device):
    every = torch.arange(256, dtype=torch.uint8)
    expected = every.view(element).float().to(dtype)
    for name in ["int8"] if element == torch.int8 else formats(element, device):
        stored = (every if name.endswith(("_bits", "_byte")) else every.view(element)).to(device)
        for in_integers in [False, True] if dtype == torch.bfloat16 else [False]:
            out = torch.zeros(256, dtype=dtype, device=device)
            decode_kernel[(1,)](out, stored, FORMAT=name, IN_INTEGERS=in_integers, BLOCK=256)
            torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(out.cpu().signbit() & ~expected.isnan(), expected.signbit() & ~expected.isnan()), name


def test_reads_every_ue8m0_byte(device):
    """The numbers of torch: 0 is 2^-127, a subnormal number, and 255 is NaN."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    got = torch.empty(256, device=device)
    e8m0_number_kernel[(1,)](got, codes)
    expected = codes.cpu().view(torch.float8_e8m0fnu).float()
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("fmt", "largest"), [("e4m3fn", 448.0), ("e4m3fnuz", 240.0), ("e4m3fn_bits", 448.0)])
def test_ue8m0_scales_are_the_least_that_fit(fmt, largest, device):
    """At each power of two from the floor on: the largest number that it fits, and the next float32 above."""
    fits = torch.ldexp(torch.full((128,), largest), torch.arange(-110, 18))
    above = torch.nextafter(fits, torch.tensor(torch.inf))
    rows = torch.stack([torch.cat([fits, -above]), torch.zeros(256)], dim=1)
    rows[0, 1], rows[1, 1] = torch.nan, -torch.inf  # no magnitudes
    got = torch.empty(256, dtype=torch.int32, device=device)
    e8m0_code_kernel[(1,)](got, rows.to(device), fmt, 256)
    codes = torch.arange(17, 145)
    assert got.tolist() == torch.cat([codes.clamp(min=27), (codes + 1).clamp(min=27)]).tolist()


def test_numbers_of_an_unquantized_format_stay(device):
    x = torch.randn(16, device=device)
    stored, name = stored_format(x, "sm90")
    assert stored is x
    assert name == "float"
    out = torch.zeros(16, device=device)
    encode_kernel[(1,)](out, x, FORMAT=name, BLOCK=16)
    assert torch.equal(out, x)
    decode_kernel[(1,)](out, x.half(), FORMAT=name, IN_INTEGERS=False, BLOCK=16)
    assert torch.equal(out, x.half().float())


# architecture: whether a kernel gets e4m3fn and e4m3fnuz as such, else as bits
CONVERTED = {
    "sm80": (False, False),
    "sm89": (True, False),
    "sm90": (True, False),
    "sm100": (True, False),
    "gfx90a": (False, False),
    "gfx942": (False, True),
    "gfx950": (True, False),
    "gfx1100": (False, False),
    "gfx1200": (False, False),
    "gfx1201": (False, False),
}
OF_BYTES = {"gfx1200": "e4m3fn_byte", "gfx1201": "e4m3fn_byte"}
"""Where e4m3fn as bytes has an instruction."""


@pytest.mark.parametrize("architecture", CONVERTED)
def test_format_of_an_architecture(architecture):
    for float8, name, is_converted in zip((FN, FNUZ), ("e4m3fn", "e4m3fnuz"), CONVERTED[architecture], strict=True):
        stored, got = stored_format(torch.empty(3, dtype=float8), architecture)
        as_bytes = OF_BYTES.get(architecture, "e4m3fn_bits") if float8 == FN else "e4m3fnuz_bits"
        assert (stored.dtype, got) == ((float8, name) if is_converted else (torch.uint8, as_bytes))
    assert stored_format(torch.empty(3, dtype=torch.int8), architecture)[1] == "int8"


@pytest.mark.parametrize("exact", [False, True])
def test_format_in_the_interpreter(exact, monkeypatch):
    """Its own conversions of e4m3fn are only right once they were replaced; not all releases have e4m3fnuz."""
    monkeypatch.setattr(InterpreterBuilder, "exact_bfloat16", exact, raising=False)
    assert stored_format(torch.empty(3, dtype=FN), "interpreter")[1] == ("e4m3fn" if exact else "e4m3fn_bits")
    assert stored_format(torch.empty(3, dtype=FNUZ), "interpreter")[1] == "e4m3fnuz_bits"


def test_compiles_for_every_architecture():
    """Bits without an instruction for them, and a type that a kernel gets as such with one, into every dtype."""
    script = Path(__file__).with_name("compile_decode.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *CONVERTED], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report.keys() == CONVERTED.keys()
    for architecture, kernels in report.items():
        assert len(kernels) == 6
        for name, has_instruction in kernels.items():
            float8 = name.split()[0]
            is_converted = CONVERTED[architecture][float8 == "float8_e4m3fnuz"]
            is_byte = architecture in OF_BYTES and float8 == "float8_e4m3fn"
            assert has_instruction == (is_converted or is_byte), (architecture, name)
