"""Steps whose requests have queries and no keys, so that the block table may have no column. Their queries see nothing.

Drawn tables have a column at least, and hardly any step is without a key.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from attn_contract import Batch


def without_keys(batch: Batch) -> Batch:
    """The step as it would be without a key, under the same bounds."""
    assert batch.block_table is not None
    nothing = batch.block_table.new_empty((batch.num_requests, 0))
    return dataclasses.replace(batch, seq_lens=torch.zeros_like(batch.seq_lens), block_table=nothing, slot_mapping=None)


def check(attend: Callable[..., object], batch: Batch, out: torch.Tensor) -> None:
    """Check that attention to a step without a key gives 0 in the rows of its requests, and writes no other row.

    Args:
        attend: takes `batch` and `out`.
        batch: a step over a cache, like the one to make.
        out: like the output, [T, ...].

    Raises:
        AssertionError: a row is not 0, or was written and belongs to nobody.
    """
    written = torch.ones(out.shape, device=out.device).to(out.dtype)
    attend(batch=without_keys(batch), out=written)
    rows = int(batch.query_start_loc[-1])
    numbers: Any = written.float()
    assert not numbers[:rows].any(), "queries without a key: expected an output of 0"
    assert (numbers[rows:] == 1.0).all(), "a row that no request owns was written in a step without a key"
