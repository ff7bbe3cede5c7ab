"""Bit patterns that reveal stray accesses: a stray read gives NaN, and a stray write changes a byte."""

import torch

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "int8": torch.int8,
}
# NaN whose payloads no arithmetic makes: POISON where nothing may be read, CANARY where nothing may be written. A float8 type
# has one NaN, or two of which the one that is never written is taken. int8 has no NaN: no valid write makes its -128
POISON = {
    torch.float32: 0x7FC0BEEF,
    torch.float16: 0x7EAD,
    torch.bfloat16: 0x7FEA,
    torch.float8_e4m3fn: 0xFF,
    torch.float8_e4m3fnuz: 0x80,
    torch.int8: 0x80,
}
CANARY = {
    torch.float32: 0x7FC0CAFE,
    torch.float16: 0x7ECA,
    torch.bfloat16: 0x7FCA,
    torch.float8_e4m3fn: 0xFF,
    torch.float8_e4m3fnuz: 0x80,
}
LEFTOVER = 24.0
"""A magnitude of numbers that a kernel must not use: far beyond most of a case, and within each type."""
LEFTOVER_LSE = 2.0**14
"""Beside a state of this LSE no other state has a weight."""
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def canary(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """A tensor full of CANARY: outputs, and the memory around them, before the target runs."""
    return torch.full(shape, CANARY[dtype], dtype=_BITS[dtype.itemsize], device=device).view(dtype)


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """A tensor full of POISON: memory of inputs that the step must not read."""
    return torch.full(shape, POISON[dtype], dtype=_BITS[dtype.itemsize], device=device).view(dtype)


def leftovers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Finite numbers: unused memory that a target may read if the numbers do not change its outputs.

    Neighbours differ, and have magnitudes from half of LEFTOVER to LEFTOVER, and either sign.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = (1 + torch.rand(shape, generator=generator)) * LEFTOVER / 2
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (numbers * signs).to(device=device, dtype=dtype)


def storage_of(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """All elements of the memory that a tensor is a part of, as ones of its dtype or of another one."""
    return torch.empty(0, dtype=dtype or tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns, in which NaN equals itself."""
    return tensor.view(_BITS[tensor.dtype.itemsize]) if tensor.dtype in POISON else tensor
