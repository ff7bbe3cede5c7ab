"""Where tensors lie, and signatures of calls: shapes, strides, dtypes and host values, but no values or addresses of tensors.

Calls of one signature pass the same checks and take the same launches.
"""

from functools import lru_cache
from typing import Any

import torch

TensorSignature = tuple[torch.Size, tuple[int, ...], torch.dtype]


def tensor_signature(tensor: torch.Tensor | None) -> TensorSignature | None:
    """Shape, strides and dtype; None of None."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


class Signature:
    """Values and signatures of tensors, as a key of a dictionary: hashed once, however often it is looked up."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, parts: dict[str, Any]) -> None:
        self._parts = tuple(tensor_signature(part) if isinstance(part, torch.Tensor) else part for part in parts.values())
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signature) and self._parts == other._parts)


def memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of its first byte and of the end of its last element; what is interleaved with it lies between them."""
    start = tensor.data_ptr()
    return start, start + _extent(tensor.shape, tensor.stride()) * tensor.element_size()


@lru_cache(maxsize=4096)
def _extent(shape: torch.Size, strides: tuple[int, ...]) -> int:
    """Elements from a tensor's first to the end of its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
