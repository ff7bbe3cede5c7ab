"""Calls of a function of attention that contradict the contract."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attn_contract import Layout
from attn_fuzz.targets.wrong_arguments import Calls, wrong_calls


def illegal_attention(function: Callable[..., object], arguments: Mapping[str, Any]) -> Calls:
    """Calls by the names of arguments: q, layer, batch, out, lse, and k and v or kv_cache."""
    layer, batch, q = arguments["layer"], arguments["batch"], arguments["q"]
    yield from wrong_calls(
        function, arguments, optional=("out", "lse"), free={"kv_cache": dims_of(layer.layout, "block", "slot")}
    )
    if arguments["lse"] is None:
        yield from wrong_calls(functools.partial(function, **arguments), {"lse": new_lse(q)}, optional=("lse",))
    table = torch.zeros((batch.num_requests, 1), dtype=torch.int32, device=batch.seq_lens.device)
    another = {"block_table": table if batch.block_table is None else None}
    wrong_batches = {
        "a block table without a cache, or a cache without one": another,
        "more tokens than rows": {"num_actual_tokens": len(q) + 1},
    }
    for what, fields in wrong_batches.items():
        yield what, functools.partial(function, **{**arguments, "batch": dataclasses.replace(batch, **fields)})


def new_lse(q: torch.Tensor) -> torch.Tensor:
    """An LSE [H, T] for queries [T, H, D]."""
    return q.new_empty(q.shape[1::-1], dtype=torch.float32)


def dims_of(layout: Layout | None, *names: str) -> tuple[int, ...]:
    """The dimensions with these names, of a layout's view."""
    return () if layout is None else tuple(i for i, name in enumerate(layout.dims) if name in names)
