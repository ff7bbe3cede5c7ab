"""Values at the bounds that tensors of a call must keep: see `attn_contract.validation.values`.

A function whose `validate` is on by default refuses the first value beyond each bound, also after a legal call of the same
form, and accepts the last value within. The tensors of both calls are the same objects, so a cache by form or address says
nothing about their values.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from attn_contract import RULES, Batch, Layer
from attn_contract.arguments import INT32_MAX
from attn_contract.layer import SCALES, SMALLEST_NORMAL
from attn_contract.validation.values import MAX_LOGIT
from attn_fuzz.cases.tensors import Write

LENGTH, TABLE, NUMBER, SCALE = "length", "table", "number", "scale"


class Edge(NamedTuple):
    """A value at a bound.

    Args:
        kind: LENGTH; TABLE, of blocks, slots, units or positions; NUMBER, of a rule; or SCALE.
        what: the value in words.
        is_legal: True if it is within the bound.
        holding: a context in which the call's tensors hold it. Its value has the arguments to change: the batch, or nothing.
    """

    kind: str
    what: str
    is_legal: bool
    holding: AbstractContextManager[dict[str, Any]]


def are_checked(function: Callable[..., Any]) -> bool:
    """True if a function looks at values: it has a parameter `validate`, which is True by default."""
    parameter = inspect.signature(function).parameters.get("validate")
    return parameter is not None and parameter.default is True


def of_attention(layer: Layer, batch: Batch, kv_cache: torch.Tensor | None) -> Iterator[Edge]:
    """The edges of a call's values, and of what its batch says of them.

    Args:
        layer, batch, kv_cache: the arguments of a legal call.
    """
    yield from _of_batch(layer, batch, kv_cache)
    bounds = [*_of_lengths(layer, batch), *_of_scales(layer, SCALES)]
    if kv_cache is not None and layer.layout is not None:
        bounds += [*_of_blocks(layer, batch, kv_cache), *_of_selected(layer, batch)]
        if batch.slot_mapping is not None:
            bounds += _of_slots(batch.slot_mapping, layer.view_of(kv_cache).num_slots)
    for name, tensor in {**layer.tensors, **batch.tensors}.items():
        if name in RULES and name not in SCALES and tensor.is_floating_point() and tensor.numel():
            bounds.append(_of_numbers(name, tensor))
    for bound in bounds:
        yield from _edges(bound)


def of_write(write: Write) -> Iterator[Edge]:
    """The edges of the values of a legal cache write."""
    bounds = [*_of_slots(write.slot_mapping, write.view.num_slots), *_of_scales(write.layer, ("k_scale", "v_scale"))]
    if write.rotation is not None and len(positions := write.rotation.positions):
        rows = len(write.rotation.cos_sin_cache)
        bounds.append(_Bound(TABLE, "a position", positions, (0,), (-1, rows), (0, rows - 1)))
    for bound in bounds:
        yield from _edges(bound)


class _Bound(NamedTuple):
    """An element of a tensor, the first values beyond its bounds, and the last ones within."""

    kind: str
    words: str
    tensor: torch.Tensor
    at: tuple[int, ...]
    beyond: tuple[float, ...]
    within: tuple[float, ...] = ()


def _edges(bound: _Bound) -> Iterator[Edge]:
    for values, is_legal in ((bound.beyond, False), (bound.within, True)):
        for value in values:
            yield Edge(bound.kind, f"{bound.words} of {value}", is_legal, _holding(bound.tensor, value, bound.at))


def _of_batch(layer: Layer, batch: Batch, kv_cache: torch.Tensor | None) -> Iterator[Edge]:
    """Bounds of lengths that are 1 too small. A case without slack and padding has the least ones."""
    if not batch.num_requests:
        return
    longest, keys = int(batch.query_start_loc.diff().max()), int(batch.seq_lens.max())
    tokens = int(batch.query_start_loc[-1])
    for name, least in (("max_query_len", longest), ("max_seq_len", keys), ("num_actual_tokens", tokens)):
        if least:
            wrong = dataclasses.replace(batch, **{name: least - 1})
            yield Edge(LENGTH, f"{name} of {least - 1}, which is 1 too small,", False, contextlib.nullcontext({"batch": wrong}))
    if kv_cache is None or batch.block_table is None:
        return
    columns = -(-int(layer.num_keys(batch.seq_lens).max()) // layer.view_of(kv_cache).block_size)
    if columns:
        wrong = dataclasses.replace(batch, block_table=batch.block_table[:, : columns - 1])
        yield Edge(
            TABLE, f"a block_table of {columns - 1} columns, 1 too few,", False, contextlib.nullcontext({"batch": wrong})
        )


def _of_lengths(layer: Layer, batch: Batch) -> Iterator[_Bound]:
    starts, lens = batch.query_start_loc, batch.seq_lens
    yield _Bound(LENGTH, "query_start_loc[0]", starts, (0,), (-1, 1))
    if not batch.num_requests:
        return
    last = batch.num_requests - 1
    yield _Bound(LENGTH, "query_start_loc[-1]", starts, (last + 1,), (batch.num_actual_tokens + 1,))
    yield _Bound(LENGTH, "query_start_loc[1]", starts, (1,), (-1,))
    yield _Bound(LENGTH, "seq_lens[-1]", lens, (last,), (-1,), (0,) if layer.attn_type.reads_cache else ())
    longer = {batch.max_seq_len + 1} if layer.attn_type.reads_cache else {batch.max_seq_len + 1, int(lens[0]) + 1}
    yield _Bound(LENGTH, "seq_lens[0]", lens, (0,), tuple(length for length in sorted(longer) if length <= INT32_MAX))


def _of_blocks(layer: Layer, batch: Batch, kv_cache: torch.Tensor) -> Iterator[_Bound]:
    if batch.block_table is None:
        return
    view = layer.view_of(kv_cache)
    for request, length in reversed(list(enumerate(layer.num_keys(batch.seq_lens).tolist()))):
        if length > 0:
            at = (request, (length - 1) // view.block_size)
            words, last = "an entry of block_table in use", view.num_blocks - 1
            yield _Bound(TABLE, words, batch.block_table, at, (-1, last + 1), (0, last))
            return


def _of_slots(slots: torch.Tensor, num_slots: int) -> Iterator[_Bound]:
    if not len(slots):
        return
    unused = tuple(slot for slot in (0, num_slots - 1) if not (slots == slot).any())
    yield _Bound(TABLE, "a slot", slots, (len(slots) - 1,), (-2, num_slots), (-1, *unused))
    if len(used := (slots >= 0).nonzero().flatten()) and len(slots) > 1:
        at = 0 if int(used[-1]) else 1
        yield _Bound(TABLE, "another row's slot", slots, (at,), (int(slots[used[-1]]),))


def _of_selected(layer: Layer, batch: Batch) -> Iterator[_Bound]:
    """Of the first row: a unit after its request's last one, and a unit twice."""
    owners = batch.query_start_loc.diff().nonzero().flatten()
    if batch.selected is None or layer.selection_unit is None or not len(owners) or not batch.selected.shape[2]:
        return
    row = int(batch.query_start_loc[owners[0]])
    units = -(-int(layer.num_keys(batch.seq_lens[owners[0]])) // layer.selection_unit)
    yield _Bound(TABLE, "a selected unit", batch.selected, (0, row, 0), (units,))
    if batch.selected.shape[2] > 1 and (unit := int(batch.selected[0, row, 0])) >= 0:
        yield _Bound(TABLE, "another entry's unit", batch.selected, (0, row, 1), (unit,))


def _of_numbers(name: str, tensor: torch.Tensor) -> _Bound:
    """Slopes are finite. Sinks and biases are at most MAX_LOGIT in magnitude, or -inf."""
    is_slope = name == "alibi_slopes"
    most = min(torch.finfo(tensor.dtype).max, math.inf if is_slope else MAX_LOGIT)
    more = _next(tensor, most, math.inf)
    beyond = {math.nan, math.inf, more, -more} - (set() if is_slope else {-math.inf})
    within = (most, -most) if is_slope else (most, -most, -math.inf)
    return _Bound(NUMBER, f"an element of {name}", tensor, tuple(size - 1 for size in tensor.shape), tuple(beyond), within)


def _of_scales(layer: Layer, names: tuple[str, ...]) -> Iterator[_Bound]:
    for name in names:
        if (scale := layer.tensors.get(name)) is not None and scale.numel():
            at = tuple(size - 1 for size in scale.shape)
            beyond = (0.0, -1.0, math.inf, math.nan, _next(scale, SMALLEST_NORMAL, 0.0))
            yield _Bound(SCALE, f"an element of {name}", scale, at, beyond, (SMALLEST_NORMAL, torch.finfo(scale.dtype).max))


def _next(tensor: torch.Tensor, number: float, towards: float) -> float:
    """The number of a tensor's dtype after another one."""
    ends = (torch.tensor(each, dtype=tensor.dtype, device="cpu") for each in (number, towards))
    return float(torch.nextafter(*ends))


@contextlib.contextmanager
def _holding(tensor: torch.Tensor, value: float, at: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    own = tensor[at].clone()
    tensor[at] = value
    try:
        yield {}
    finally:
        tensor[at] = own
