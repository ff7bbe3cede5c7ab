"""Where tensors lie, and their forms: all that shapes a call beside values and addresses.

Calls of one form pass the same checks and take the same launches.
"""

from functools import lru_cache
from typing import Any

import torch

TensorForm = tuple[torch.Size, tuple[int, ...], torch.dtype]


def tensor_form(tensor: torch.Tensor | None) -> TensorForm | None:
    """Shape, strides and dtype; None of None."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


class Form:
    """Values and forms of tensors, as a key of a dictionary: hashed once, however often it is looked up."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, parts: dict[str, Any]) -> None:
        self._parts = tuple(tensor_form(part) if isinstance(part, torch.Tensor) else part for part in parts.values())
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Form) and self._parts == other._parts)


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
