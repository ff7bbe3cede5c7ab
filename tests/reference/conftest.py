"""Calls of the reference, built from one (query, key, value) for each request."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.support import calls
from tests.support.calls import PagedCall, VarlenCall

Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""query [query_len, H, D], key and value [seq_len, HK, D]"""


@pytest.fixture
def randn() -> Callable[..., torch.Tensor]:
    """Seeded torch.randn, float32."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def paged_call() -> Callable[..., PagedCall]:
    """Turns requests into a call of paged attention, with blocks of 4 slots unless told otherwise."""

    def build(requests: Sequence[Request], *, block_size: int = 4, **options: Any) -> PagedCall:
        return calls.paged_call(calls.joined(requests), block_size=block_size, **options)

    return build


@pytest.fixture
def varlen_call() -> Callable[..., VarlenCall]:
    """Turns requests into a call of dense varlen attention."""

    def build(requests: Sequence[Request], **options: Any) -> VarlenCall:
        return calls.varlen_call(calls.joined(requests), **options)

    return build
