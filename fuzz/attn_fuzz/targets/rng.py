"""Generators of choices that a target makes by itself. A case does not hold these choices, so they must follow from it."""

import random
from collections.abc import Iterable
from typing import Any

import torch
from attn_contract import Batch


def rng_of(sizes: Any) -> random.Random:
    """A generator seeded by the sizes of a call.

    Args:
        sizes: numbers and tensors of numbers, in tuples and lists. Equal numbers make equal choices.
    """
    return random.Random(repr(_plain(sizes)))


def rng_of_call(q: torch.Tensor, batch: Batch) -> random.Random:
    """A generator seeded by the shape of q and the lengths of a batch."""
    return rng_of((q.shape, batch.query_start_loc, batch.seq_lens))


def rng_of_lengths(batch: Batch) -> random.Random:
    """A generator seeded by the lengths of a batch."""
    return rng_of((batch.query_start_loc, batch.seq_lens))


def rng_of_metadata(arguments: Iterable[object]) -> random.Random:
    """A generator seeded by the metadata among the arguments of a call: lengths, slots and positions."""
    metadata: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, Batch):
            metadata += [argument.query_start_loc, argument.seq_lens]
        elif isinstance(argument, torch.Tensor) and argument.dtype in (torch.int32, torch.int64):
            metadata.append(argument)
    return rng_of(metadata)


def _plain(sizes: Any) -> Any:
    if isinstance(sizes, torch.Tensor):
        return sizes.tolist()
    if isinstance(sizes, tuple | list):
        return (tuple if isinstance(sizes, tuple) else list)(_plain(size) for size in sizes)
    return sizes
