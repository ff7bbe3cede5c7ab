"""Strides of dimensions of one element. No index moves by them: they may be any number, and no code may count on them."""

import torch
from attn_fuzz.cases.case import Case

IDLE_STRIDES = (0, 7)
"""0, as `expand` gives, and an odd number. The seed of a case's values chooses one of them."""


def idle_stride(case: Case, size: int, stride: int) -> int:
    """The stride that a case gives to a dimension which would have `stride`."""
    return IDLE_STRIDES[case.values.seed % len(IDLE_STRIDES)] if case.unlike_strides and size == 1 else stride


def with_idle_strides(case: Case, tensor: torch.Tensor) -> torch.Tensor:
    """The same elements in the same memory, with the strides that a case gives to them."""
    if not case.unlike_strides or 1 not in tensor.shape:
        return tensor
    strides = [idle_stride(case, size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)
