"""Calls of attention, and of writes to a cache, that contradict the contract."""

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
    if layer.layout is None or layer.layout.has_latent_value:
        narrower = dataclasses.replace(layer, head_size_v=max(1, layer.value_size - 1))
        if narrower.value_size != layer.value_size:
            yield "another width of V than out has", functools.partial(function, **{**arguments, "layer": narrower})


def illegal_writes(write: Callable[..., object], rope: Callable[..., object], arguments: Mapping[str, Any]) -> Calls:
    """Calls of write_kv_cache and rope_and_write_kv_cache. They would write to no slot, and rotate q by an angle of 0.

    A right write comes before the wrong ones: what is kept of it must not serve them.

    Args:
        arguments: by name q, k, v, kv_cache and layer.
    """
    q, k, layer = arguments["q"], arguments["k"], arguments["layer"]
    if k is None or layer.layout is None:
        return
    num_rows, integers = min(len(q), len(k)), {"dtype": torch.int64, "device": k.device}
    free = {"kv_cache": dims_of(layer.layout, "block", "slot"), "slot_mapping": (0,)}
    plain = {name: arguments[name] for name in ("k", "v", "kv_cache", "layer")}
    plain["slot_mapping"] = torch.full((num_rows,), -1, **integers)
    write(**plain)
    yield from wrong_calls(write, plain, free=free)
    yield from _beside_scales(write, plain)
    table = torch.tensor([[1.0, 0.0]], device=k.device)
    rotated = {**plain, "q": q, "positions": torch.zeros(num_rows, **integers), "cos_sin_cache": table, "is_neox": True}
    yield from wrong_calls(rope, rotated, free={**free, "q": (0,), "positions": (0,), "cos_sin_cache": (0,)})
    more = {"slot_mapping": torch.full((len(k) + 1,), -1, **integers), "positions": torch.zeros(len(q) + 1, **integers)}
    yield "more slots than rows of k", functools.partial(write, **{**plain, "slot_mapping": more["slot_mapping"]})
    for name, longer in more.items():
        yield f"more {name} than rows", functools.partial(rope, **{**rotated, name: longer})


def illegal_latent_writes(write: Callable[..., object], arguments: Mapping[str, Any]) -> Calls:
    """Calls of write_latent_cache, which would write to no slot, after a right one: see `illegal_writes`.

    Args:
        arguments: by name kv_cache and layer, and q, which says the dtype and the device.
    """
    q, layer = arguments["q"], arguments["layer"]
    if layer.layout is None or not layer.layout.has_latent_value:
        return
    slots = torch.full((2,), -1, dtype=torch.int64, device=q.device)
    latent, rotated = (q.new_zeros(2, size) for size in (layer.value_size, layer.head_size - layer.value_size))
    plain = {"kv_c": latent, "k_pe": rotated, "kv_cache": arguments["kv_cache"], "layer": layer, "slot_mapping": slots}
    free = {"kv_cache": dims_of(layer.layout, "block", "slot"), "slot_mapping": (0,)}
    write(**plain)
    yield from wrong_calls(write, plain, free=free)
    yield from _beside_scales(write, plain)


def _beside_scales(write: Callable[..., object], plain: Mapping[str, Any]) -> Calls:
    """A write to the same strides from an address on, at which scales in rows are not aligned; after one that is right."""
    kv_cache, layout = plain["kv_cache"], plain["layer"].layout
    if layout.unit_of_strides == 1 or len(kv_cache) < 2:
        return
    fewer = kv_cache[:-1]
    write(**{**plain, "kv_cache": fewer})
    shifted = fewer.as_strided(fewer.shape, fewer.stride(), fewer.storage_offset() + 1)
    yield "scales that are not aligned", functools.partial(write, **{**plain, "kv_cache": shifted})


def new_lse(q: torch.Tensor) -> torch.Tensor:
    """An LSE [H, T] for queries [T, H, D]."""
    return q.new_empty(q.shape[1::-1], dtype=torch.float32)


def dims_of(layout: Layout | None, *names: str) -> tuple[int, ...]:
    """The dimensions with these names, of a layout's view."""
    return () if layout is None else tuple(i for i, name in enumerate(layout.dims) if name in names)
