"""Bit patterns that show what a kernel had no business with: a stray read as NaN, a stray write as a changed byte."""

import torch

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fnuz": torch.float8_e4m3fnuz,
    "int8": torch.int8,
}
# NaN of payloads that no arithmetic makes: POISON where nothing may be read, CANARY where nothing may be written. float8's are
# NaN too, if it has two of them the one that is never written; int8 has none: -128, which no valid write makes
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
_BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def canary(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """What outputs and everything around them start as."""
    return torch.full(shape, CANARY[dtype], dtype=_BITS[dtype.itemsize], device=device).view(dtype)


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """What inputs hold wherever the step has no business."""
    return torch.full(shape, POISON[dtype], dtype=_BITS[dtype.itemsize], device=device).view(dtype)


def leftovers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """What unused memory holds instead of poison where a target may read it, if it makes nothing of it: a finite number."""
    return torch.full(shape, LEFTOVER, device=device).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns, in which NaN equals itself."""
    return tensor.view(_BITS[tensor.dtype.itemsize]) if tensor.dtype in POISON else tensor
