"""Choices that a target makes by itself. A case does not hold them, so they must follow from the case."""

import random
from collections.abc import Iterable
from typing import Any

import torch
from attn_contract import Batch


def choices_by(sizes: Any) -> random.Random:
    """Random choices that the sizes of a call make.

    Args:
        sizes: numbers and tensors of numbers, in tuples and lists. Equal numbers make equal choices.
    """
    return random.Random(repr(_plain(sizes)))


def choices_by_metadata(arguments: Iterable[object]) -> random.Random:
    """Random choices that the metadata among the arguments of a call makes: lengths, slots and positions."""
    metadata: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, Batch):
            metadata += [argument.query_start_loc, argument.seq_lens]
        elif isinstance(argument, torch.Tensor) and argument.dtype in (torch.int32, torch.int64):
            metadata.append(argument)
    return choices_by(metadata)


def _plain(sizes: Any) -> Any:
    if isinstance(sizes, torch.Tensor):
        return sizes.tolist()
    if isinstance(sizes, tuple | list):
        return (tuple if isinstance(sizes, tuple) else list)(_plain(size) for size in sizes)
    return sizes
