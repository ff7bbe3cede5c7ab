"""Kernels and calls under the sanitizer, for tests of several of its parts."""

import re
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.interpreted.permissions import READ, WRITE, Region, region

interpreted_only = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here, and checked as they are interpreted"
)


@triton.jit
def copy_kernel(source_ptr, target_ptr, shift, num_elements, SIZE: tl.constexpr):
    element = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    row = tl.load(source_ptr + shift + element, mask=element < num_elements, other=0.0)
    tl.store(target_ptr + element, row, mask=element < num_elements)


@triton.jit
def overlapping_kernel(target_ptr, SIZE: tl.constexpr):
    tl.store(target_ptr + tl.program_id(0) + tl.arange(0, SIZE), tl.zeros([SIZE], tl.float32))


Permissions = Callable[[], list[Region]]


def call() -> tuple[torch.Tensor, torch.Tensor, Permissions]:
    """A call that reads the first two rows of a source, a part of a larger buffer, and writes the first two of an output."""
    source, out = torch.zeros(8, 6)[2:6, :4], torch.full((4, 4), 7.0)
    of_rows = torch.tensor([1, 1, 0, 0], dtype=torch.int32).view(-1, 1)
    permissions = lambda: [  # noqa: E731
        region("source", source, READ * of_rows, reads="its first rows"),
        region("out", out, WRITE * of_rows, writes="its first rows"),
    ]
    return source, out, permissions


def violation(permissions: Permissions, launch: Callable[[], object]) -> str:
    with pytest.raises(sanitizer.Violation) as raised, sanitizer.watch(permissions):
        launch()
    text = str(raised.value)
    assert re.match(r"\w+ at \w+\.py:\d+ in \w+_kernel, program \(\d+, \d+, \d+\): ", text), text
    assert "\n" not in text
    return text


def copy(source: torch.Tensor, out: torch.Tensor, shift: int = 0, num_elements: int = 4) -> None:
    copy_kernel[(-(-num_elements // 4),)](source, out, shift, num_elements, SIZE=4)
