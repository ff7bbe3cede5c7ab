"""Forms of tensors: all that shapes a call beside values and addresses.

Calls of one form pass the same checks and take the same launches.
"""

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
