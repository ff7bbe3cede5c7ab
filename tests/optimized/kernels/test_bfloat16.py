"""Float32 as bfloat16 in integers, bit by bit, over all numbers of bfloat16 and what lies between them."""

import pytest
import torch
import triton
import triton.language as tl
from attn_optimized.device import has_bfloat16_conversion
from attn_optimized.kernels.bfloat16 import exact_bfloat16, nearest_bfloat16

ALL = torch.arange(1 << 16).to(torch.int32) << 16
"""Bits of float32 numbers that bfloat16 holds."""


@triton.jit
def exact_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, exact_bfloat16(tl.load(x_ptr + i)))


@triton.jit
def nearest_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, nearest_bfloat16(tl.load(x_ptr + i)))


def ran(kernel, bits: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The bits of what a kernel makes of float32 numbers."""
    out = torch.zeros(len(bits), dtype=torch.bfloat16, device=device)
    kernel[(len(bits) // 4096,)](out, bits.view(torch.float32).to(device), BLOCK=4096)
    return out.cpu().view(torch.int16)


def test_numbers_that_bfloat16_holds_are_exact(device):
    assert torch.equal(ran(exact_kernel, ALL, device), (ALL >> 16).to(torch.int16))


@pytest.mark.parametrize("below", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_numbers_between_two_are_rounded_to_the_nearest(below, device):
    """A number in the middle takes the larger magnitude; one beyond the largest number becomes infinity."""
    bits = ALL | below
    number = bits.view(torch.float32)
    found = ran(nearest_kernel, bits, device).view(torch.bfloat16)
    less, more = ALL.view(torch.float32), (ALL + (1 << 16)).view(torch.float32)
    expected = torch.where(torch.tensor(below >= 0x8000), more, less).bfloat16()
    finite = number.isfinite() & (more.isfinite() | (below < 0x8000))
    assert finite.sum() > 65000
    assert torch.equal(found[finite], expected[finite])
    beyond = number.isfinite() & ~finite
    assert beyond.sum() == (2 if below >= 0x8000 else 0)
    assert torch.equal(found[beyond].float(), number[beyond].sign() * torch.inf)
    quiet = number.isnan() & (bits & 0x400000 != 0)
    carries = bits & 0x7FFF8000 == 0x7FFF8000
    assert found[quiet & ~carries].isnan().all()
    assert (found[quiet & carries] == 0).all()


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("sm80", True),
        ("sm90", True),
        ("gfx90a", False),
        ("gfx942", False),
        ("gfx950", True),
        ("gfx1201", False),
        ("interpreter", False),
    ],
)
def test_architectures_with_an_instruction(architecture, expected):
    assert has_bfloat16_conversion(architecture) == expected
