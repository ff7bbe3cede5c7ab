"""Values that tensors of a call must not hold: see `attn_contract.validation.values`.

A function whose `validate` is on by default refuses each of them, also after a legal call of the same form. The tensors of both
calls are the same objects, so a cache by form or address says nothing about their values.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from attn_contract import RULES, Batch, Layer
from attn_contract.layer import SCALES
from attn_fuzz.cases.tensors import Write

_MAX_INDEX = 2**31 - 1
_NO_SCALES = (0.0, -1.0, math.inf, math.nan)


def are_checked(function: Callable[..., Any]) -> bool:
    """True if a function looks at values: it has a parameter `validate`, which is True by default."""
    parameter = inspect.signature(function).parameters.get("validate")
    return parameter is not None and parameter.default is True


def of_attention(
    layer: Layer, batch: Batch, kv_cache: torch.Tensor | None
) -> Iterator[tuple[str, AbstractContextManager[Batch]]]:
    """The wrong value in words, and a context in which the call's tensors hold it; its value is the batch to call with.

    Args:
        layer, batch, kv_cache: the arguments of a legal call.
    """
    for words, tensor, value, at in (*_of_lengths(batch), *_of_blocks(layer, batch, kv_cache), *_of_layer(layer, batch)):
        yield f"{words} of {value}", _holding(tensor, value, at, batch)
    longest = int(batch.query_start_loc.diff().max()) if batch.num_requests else 0
    for name, most in (("max_query_len", longest), ("max_seq_len", int(batch.seq_lens.max()) if batch.num_requests else 0)):
        if most > 1:
            wrong = dataclasses.replace(batch, **{name: most - 1})
            yield f"{name} of {most - 1}, which is 1 too small,", contextlib.nullcontext(wrong)


def of_write(write: Write) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """The wrong value in words, and such a context, for a legal cache write."""
    slots, wrong = write.slot_mapping, list(_of_scales(write.layer, ("k_scale", "v_scale")))
    if len(slots):
        wrong += [("a slot", slots, value, (len(slots) - 1,)) for value in (-2, write.view.num_slots)]
    if len(used := (slots >= 0).nonzero().flatten()) and len(slots) > 1:
        at = 0 if int(used[-1]) else 1
        wrong.append(("another row's slot", slots, int(slots[used[-1]]), (at,)))
    if write.rotation is not None and len(positions := write.rotation.positions):
        wrong += [("a position", positions, value, (0,)) for value in (-1, len(write.rotation.cos_sin_cache))]
    for words, tensor, value, at in wrong:
        yield f"{words} of {value}", _holding(tensor, value, at, None)


_Wrong = tuple[str, torch.Tensor, float, tuple[int, ...]]


def _of_lengths(batch: Batch) -> Iterator[_Wrong]:
    starts, lens = batch.query_start_loc, batch.seq_lens
    yield "query_start_loc[0]", starts, 1, (0,)
    if not batch.num_requests:
        return
    last = batch.num_requests - 1
    yield "query_start_loc[-1]", starts, batch.num_actual_tokens + 1, (last + 1,)
    yield "query_start_loc[1]", starts, -1, (1,)
    yield "seq_lens[-1]", lens, -1, (last,)
    if batch.max_seq_len < _MAX_INDEX:
        yield "seq_lens[0]", lens, batch.max_seq_len + 1, (0,)


def _of_blocks(layer: Layer, batch: Batch, kv_cache: torch.Tensor | None) -> Iterator[_Wrong]:
    if kv_cache is None or batch.block_table is None or layer.layout is None:
        return
    view = layer.view_of(kv_cache)
    for request, length in reversed(list(enumerate(layer.num_keys(batch.seq_lens).tolist()))):
        if length > 0:
            at = (request, (length - 1) // view.block_size)
            yield "an entry of block_table in use", batch.block_table, view.num_blocks, at
            yield "an entry of block_table in use", batch.block_table, -1, at
            return


def _of_layer(layer: Layer, batch: Batch) -> Iterator[_Wrong]:
    for name, tensor in {**layer.tensors, **batch.tensors}.items():
        if name in RULES and name not in SCALES and tensor.is_floating_point() and tensor.numel():
            for value in (math.nan, math.inf):
                yield f"an element of {name}", tensor, value, tuple(size - 1 for size in tensor.shape)
    yield from _of_scales(layer, SCALES)


def _of_scales(layer: Layer, names: tuple[str, ...]) -> Iterator[_Wrong]:
    for name in names:
        if (scale := layer.tensors.get(name)) is not None and scale.numel():
            for value in _NO_SCALES:
                yield f"an element of {name}", scale, value, tuple(size - 1 for size in scale.shape)


@contextlib.contextmanager
def _holding(tensor: torch.Tensor, value: float, at: tuple[int, ...], result: Any) -> Iterator[Any]:
    own = tensor[at].clone()
    tensor[at] = value
    try:
        yield result
    finally:
        tensor[at] = own
