"""Loads, stores and atomic updates of each dtype that a tensor can have."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from tests.fuzz.interpreted.blocks import small
from tests.fuzz.interpreted.dtypes import INTEGERS, IS_36, NAMES, TORCH, agree, patterns, unsigned, width
from tests.fuzz.interpreted.running import refused


@triton.jit
def copy_kernel(source, target, ONE: tl.constexpr, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    odd = lane % 2 == 1
    tl.store(target + lane, tl.load(source + lane, mask=odd, other=ONE), mask=lane != 3)


@triton.jit
def masked_kernel(source, target, mask):
    tl.store(target, tl.load(source, mask=tl.load(mask)))


def loaded_and_stored() -> None:
    """tl.load and tl.store of each dtype of torch into each: masks, the number for hidden lanes, and the cast."""
    one = torch.ones(1)
    masked_kernel[(1,)](one, torch.zeros(1), one.bool())
    refused("a mask of int8", lambda: masked_kernel[(1,)](one, torch.zeros(1), one.to(torch.int8)))
    lanes = 1024
    for source in [name for name in NAMES if name != "fp8e4b15"]:
        bits = patterns(source)[:lanes]
        given = _tensor(bits, source)
        for target in dict.fromkeys(("fp32", source)) if source in TORCH else ("int64", source):
            into = _tensor(np.zeros(lanes, unsigned(target)), target)
            copy_kernel[(1,)](given, into, ONE=1.0 if source in TORCH else 1, LANES=lanes)
            expected = _tensor(bits, source).to(torch.float64 if source in TORCH else torch.int64)
            expected = expected.to(into.dtype).to(expected.dtype)
            expected[::2] = 1
            expected[3] = 0
            got = into.to(expected.dtype)
            assert agree(got.numpy(), expected.numpy(), target).all(), f"{source} into {target}"


def _tensor(bits: np.ndarray, name: str) -> torch.Tensor:
    raw = torch.from_numpy(bits.copy())
    if name == "int1":
        return raw.bool()
    return raw.view(TORCH.get(name) or getattr(torch, name))


@triton.jit
def atomic_kernel(memory, value, before, NAME: tl.constexpr, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    old = getattr(tl, NAME)(memory + lane // 2, tl.load(value + lane), mask=lane != 5)
    tl.store(before + lane, old)


ATOMIC = {
    "atomic_add": torch.add,
    "atomic_max": torch.maximum,
    "atomic_min": torch.minimum,
    "atomic_xchg": lambda x, y: y,
    "atomic_and": torch.bitwise_and,
    "atomic_or": torch.bitwise_or,
    "atomic_xor": torch.bitwise_xor,
}
_ATOMIC_ADDS = ("fp16", "bf16", "fp32", "fp64", "int32", "uint32", "int64", "uint64")


def updated(name: str) -> Callable[[], None]:
    """An atomic update where two lanes share each address, and one lane is hidden: lanes act one after the other."""

    def check_all() -> None:
        for dtype in NAMES:
            if dtype == "fp8e4b15":
                continue  # no tensor has it
            bits = small(dtype, (32,), values=(1, 2, 3, 4), seed=6)
            value, memory = _tensor(bits, dtype), _tensor(small(dtype, (16,), values=(1, 2, 3, 4), seed=7), dtype)
            before = torch.zeros(32, dtype=value.dtype)

            def act(memory=memory, value=value, before=before) -> None:
                atomic_kernel[(1,)](memory, value, before, NAME=name, LANES=32)

            if not _has_atomic(name, dtype):
                refused(f"{name} of {dtype}", act)
                continue
            expected, old = memory.clone(), before.clone()
            for lane in [lane for lane in range(32) if lane != 5]:
                old[lane] = expected[lane // 2]
                expected[lane // 2] = _as_64(ATOMIC[name], expected[lane // 2], value[lane])
            act()
            assert torch.equal(memory, expected), f"{name} of {dtype}: {memory}, expected {expected}"
            visible = torch.arange(32) != 5
            if IS_36 and name == "atomic_min" and dtype == "fp64":
                continue  # Triton 3.6 takes the old numbers for pointers
            assert torch.equal(before[visible], old[visible]), f"{name} of {dtype} returned {before}, expected {old}"

    return check_all


def _as_64(function: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wide = torch.float64 if x.is_floating_point() else torch.int64
    return function(x.to(wide), y.to(wide)).to(x.dtype)


def _has_atomic(name: str, dtype: str) -> bool:
    if name == "atomic_add":
        return dtype in _ATOMIC_ADDS
    if name in ("atomic_and", "atomic_or", "atomic_xor"):
        return dtype in INTEGERS and width(dtype) >= 32
    return width(dtype) >= 32


@triton.jit
def swap_kernel(memory, compared, value, before, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    old = tl.atomic_cas(memory + lane, tl.load(compared + lane), tl.load(value + lane))
    tl.store(before + lane, old)


def swapped() -> None:
    """tl.atomic_cas, where half of the lanes hold what they are compared with."""
    for dtype in ("int32", "uint32", "int64", "uint64", "int16", "uint16"):
        memory, value = (_tensor(small(dtype, (32,), seed=seed), dtype) for seed in (8, 9))
        compared = torch.where(torch.arange(32) % 2 == 0, memory.to(torch.int64), 99).to(memory.dtype)
        before, held = torch.zeros_like(memory), memory.clone()
        expected = torch.where(torch.arange(32) % 2 == 0, value.to(torch.int64), memory.to(torch.int64)).to(memory.dtype)
        swap_kernel[(1,)](memory, compared, value, before, LANES=32)
        assert torch.equal(memory, expected), dtype
        assert torch.equal(before, held), dtype


@triton.jit
def described_kernel(source, target, stride_row, stride_column):
    described = tl.make_tensor_descriptor(source, [4, 8], [stride_row, stride_column], [4, 8])
    place = tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(target + place, described.load([0, 0]))


def described() -> None:
    """A descriptor takes strides that are arguments: Triton compiles the last one, an argument of 1, as a constant."""
    source, target = torch.arange(64.0).view(4, 16), torch.zeros(4, 8)
    described_kernel[(1,)](source, target, 16, 1)
    assert torch.equal(source[:, :8], target)
    refused("a stride of 2", lambda: described_kernel[(1,)](source, target, 16, 2))
