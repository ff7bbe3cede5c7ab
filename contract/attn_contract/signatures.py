"""Signatures: everything that decides how a call is checked and launched, except values in tensors and addresses.

Calls of one signature pass the same checks of shapes and have the same launches, so results of checks are valid for all of
them.
"""

from typing import Any

import torch

TensorSignature = tuple[torch.Size, tuple[int, ...], torch.dtype]


def tensor_signature(tensor: torch.Tensor | None) -> TensorSignature | None:
    """Shape, strides and dtype of a tensor; None for None."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


class Signature:
    """The signature of a Layer or a Batch, as a key of a dictionary. It is hashed only once.

    Args:
        fields: by name. A tensor counts by its signature, and every other value by itself.
    """

    __slots__ = ("_hash", "_parts")

    def __init__(self, fields: dict[str, Any]) -> None:
        self._parts = tuple(tensor_signature(part) if isinstance(part, torch.Tensor) else part for part in fields.values())
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signature) and self._parts == other._parts)
