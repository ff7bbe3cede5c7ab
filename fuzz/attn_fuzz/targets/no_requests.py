"""Steps without a request, whose rows are all padding, as an engine has them between two requests. They write nothing."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
from attn_contract import Batch


def without_requests(batch: Batch, choose: random.Random, **fields: Any) -> Batch:
    """The step without its requests, and with any bounds. It may be causal or not, which says nothing about no query.

    Args:
        fields: of the step that are not chosen.
    """
    longest = choose.randint(0, 3)
    nobodys = {
        "query_start_loc": torch.zeros_like(batch.query_start_loc[:1]),
        "seq_lens": batch.seq_lens[:0],
        "max_query_len": longest,
        "max_seq_len": choose.choice((longest, batch.max_seq_len)),
        "causal": choose.random() < 0.5,
        "block_table": None if batch.block_table is None else batch.block_table[:0],
        "slot_mapping": None,
        "bidirectional_ranges": None if batch.bidirectional_ranges is None else batch.bidirectional_ranges[:0],
        "qq_bias": None,
    }
    return dataclasses.replace(batch, **{**nobodys, **fields})


def check(attend: Callable[..., object], out: torch.Tensor) -> None:
    """Check that attention to a step without a request is served, and writes nothing.

    Args:
        attend: takes `out`.
        out: like this.

    Raises:
        AssertionError: something was written.
    """
    untouched = torch.zeros(out.shape, device=out.device).to(out.dtype)
    attend(out=untouched)
    assert not untouched.float().any(), "a step without a request was written"
