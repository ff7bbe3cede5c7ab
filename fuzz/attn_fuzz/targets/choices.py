"""Choices that a target makes by itself. A case does not hold them, so they must follow from the case."""

import random
from typing import Any

import torch


def choices_by(sizes: Any) -> random.Random:
    """Random choices that the sizes of a call make.

    Args:
        sizes: numbers and tensors of numbers, in tuples and lists. Equal numbers make equal choices.
    """
    return random.Random(repr(_plain(sizes)))


def _plain(sizes: Any) -> Any:
    if isinstance(sizes, torch.Tensor):
        return sizes.tolist()
    if isinstance(sizes, tuple | list):
        return (tuple if isinstance(sizes, tuple) else list)(_plain(size) for size in sizes)
    return sizes
