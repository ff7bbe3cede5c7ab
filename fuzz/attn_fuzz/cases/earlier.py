"""Earlier calls: what a process has called before it makes a case's own call.

Kernels cache launches, plans and checks for calls that look alike. Backends cache them for a layer and for a step. If the key
of a cache lacks a property of the call, the next call gets an entry of another call. So a case names calls that come before its
own. Each of them is the case's own call with one change, on the same tensors wherever the change allows it:

    same                                the call as it is
    output, lse, q, k, v, cache, ...    a tensor of another shape, dtype or stride, or at another alignment ("alignment" is q's)
    a rule's name                       the rule is on where it was off. Where it was on, it has another number; a rule without
                                        a number is off. The layers of a model differ so, and share the objects of a step
    heads, kv_heads, head_size          a layer with fewer heads or dims, as the layers of some models differ
    cache dtype, layout                 a layer whose cache is quantized otherwise, or has slots and heads the other way round
    no, and a rule's name               a rule with a number is off
    max_query_len, requests, ...        another step of the same layer
    contents                            the same tensors with other numbers, which are restored after the call
    mode                                other functions of the target, which share what it keeps (`Target.siblings`)
    illegal                             calls with a wrong tensor or value, of a target that refuses them (checks_arguments)

Before its writes a case makes earlier writes, too (`attn_fuzz.cases.earlier_writes`).

The order of the names is that of a sequence: ("no window", "same") calls without a window, then with it, and then once more.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from attn_contract import RULES, AttentionType, Batch, ContractError, KVCacheView, Layer
from attn_contract.layer import FLOAT8_DTYPES, SCALES, SMALLEST_NORMAL
from attn_contract.memory import extent
from attn_contract.rules import HEADS, KV_HEADS, QUERIES, REQUESTS, ROWS, Rule, axes_of, held_rules
from attn_contract.validation import check_rules_of_step
from attn_fuzz.cases import axes, built
from attn_fuzz.cases.case import CHANGES, CONTENTS, ILLEGAL, MODE
from attn_fuzz.cases.dimensions import value_on
from attn_fuzz.cases.poison import bits, canary, storage_of
from attn_fuzz.cases.tensors import PADDING, Step
from attn_fuzz.errors import UnbuiltError

_OTHER_FLOAT8 = {
    None: torch.float8_e4m3fn,
    torch.float8_e4m3fn: torch.float8_e4m3fnuz,
    torch.float8_e4m3fnuz: torch.float8_e4m3fn,
}
"""The dtype of an earlier call's cache, by the case's; None: the cache is not quantized."""
_SWAPPED = {"NHD": "HND", "HND": "NHD"}
OTHER_DTYPE = {torch.float32: torch.float16, torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}


@contextlib.contextmanager
def changed(step: Step, name: str) -> Iterator[Step | None]:
    """The step of an earlier call, with outputs of its own; None if the change is not defined for the step or changes nothing.

    At the end of the block every tensor holds what it held before.
    """
    other = _changed(step, name)
    if other is None:
        yield None
        return
    with _holding(_NUMBERS[name](other) if name in _NUMBERS else []):
        yield with_own_outputs(other)


def _changed(step: Step, name: str) -> Step | None:
    """The step with a change; None if it is not defined for the step or changes nothing.

    Raises:
        UnbuiltError: the contract refuses the changed step, though the records of its rules allow the change. Or a change that
            turns a rule on or off has not done so.
    """
    on = built.asked_of(step).keys() - {"rope"}  # an earlier call rotates nothing
    turned_on = {rule for rule in _TURNS_ON.get(name, (name,)) if rule in RULES and rule not in on}
    if any(not _may_have(step.layer.attn_type, on, RULES[rule]) for rule in turned_on):
        return None
    try:
        other = _CHANGES[name](step)
        if other is not None:
            check_rules_of_step(other.layer, other.batch)
    except ContractError as error:
        raise UnbuiltError(f"{name}: this change of a step breaks the contract (attn_fuzz.cases.earlier): {error}") from error
    if other is not None and name in turned_on and name not in built.asked_of(other):
        raise UnbuiltError(f"{name}: the earlier call of this name does not have the rule (attn_fuzz.cases.earlier)")
    return other


def _may_have(attn_type: AttentionType, on: Collection[str], rule: Rule) -> bool:
    """True if an attention type has a rule, and no rule that is on excludes it or is excluded by it."""
    is_excluded = any(rule.name in RULES[name].excludes or name in rule.excludes for name in on)
    return attn_type in rule.attn_types and not is_excluded


@contextlib.contextmanager
def without_queries(step: Step) -> Iterator[None]:
    """Inside the block no request of the step has a query. The Batch and its tensors are the same, with other numbers.

    So a call is launched and ends at once, because interpreted kernels are slow. This is for targets that read no length on the
    host.
    """
    batch = step.batch
    numbers = [(batch.query_start_loc, torch.zeros_like(batch.query_start_loc))]
    if not step.layer.attn_type.reads_cache:
        numbers.append((batch.seq_lens, torch.zeros_like(batch.seq_lens)))
    with _holding(numbers):
        yield


def with_own_outputs(step: Step) -> Step:
    """The step with new outputs of the same shapes and strides, full of CANARY."""
    out, lse = (None if tensor is None else _like(tensor, tensor.dtype) for tensor in (step.out, step.lse))
    assert out is not None
    return dataclasses.replace(step, out=out, lse=lse)


def _like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A new tensor of the same shape, strides and alignment."""
    begin = int(tensor.storage_offset()) * tensor.element_size() % 16 // dtype.itemsize
    return canary((extent(tensor.shape, tensor.stride()) + begin,), dtype, tensor.device).as_strided(
        tensor.shape, tensor.stride(), begin
    )


@contextlib.contextmanager
def _holding(contents: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Gives each tensor other contents inside the block, and its own again at the end."""
    with restored([tensor for tensor, _ in contents]):
        for tensor, other in contents:
            tensor.copy_(other)
        yield


@contextlib.contextmanager
def restored(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """At the end of the block every tensor holds the bits that it held before."""
    before = [bits(tensor).clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, own in zip(tensors, before, strict=True):
            bits(tensor).copy_(own)


def _other_contents(step: Step) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Other numbers for q, k and v or the cache, the layer's tensors, lengths, and the entries of the block table in use.

    A request has its own blocks, in reverse order: a kernel that writes through the table writes each slot once. A request that
    shares blocks with another one keeps its blocks and its length.
    """
    batch = step.batch
    keys = (step.k, step.v) if step.raw is None else (step.raw,)
    floats = [step.q, *step.layer.tensors.values(), *(tensor for tensor in keys if tensor is not None)]
    contents = [(tensor, torch.ones_like(tensor, dtype=torch.float32).to(tensor.dtype)) for tensor in floats]
    if batch.block_table is not None and step.view is not None:
        used = -(-step.layer.num_keys(batch.seq_lens) // step.view.block_size)[:, None]
        places = torch.arange(batch.block_table.shape[1], device=used.device)
        in_use = places < used
        shares = (
            torch.bincount(batch.block_table[in_use], minlength=1)[torch.where(in_use, batch.block_table, 0)] > 1
        ) & in_use
        is_alone = ~shares.any(1)
        reverse = torch.where(in_use & is_alone[:, None], used - 1 - places, places)
        contents.append((batch.block_table, batch.block_table.gather(1, reverse)))
        # a request with a key for each query still has one
        query_lens = batch.query_start_loc.diff()
        shortened = is_alone & (batch.seq_lens >= query_lens)
        halves = torch.where(shortened, torch.maximum(query_lens, batch.seq_lens // 2), batch.seq_lens)
        contents.append((batch.seq_lens, halves))
        if batch.selected is not None and step.layer.selection_unit is not None:
            rows = int(query_lens.sum())  # none in a call without queries, whose rows no request owns
            owned, others = batch.selected[:, :rows], batch.selected[:, rows:]
            contents.append((owned, _selected_of(owned, halves, batch, step.layer)))
            contents.append((others, torch.full_like(others, -1)))
    return contents


def _selected_of(own: torch.Tensor, seq_lens: torch.Tensor, batch: Batch, layer: Layer) -> torch.Tensor:
    """The selection [1 or HK, rows, W] of a batch whose requests have other lengths.

    A row's units are mirrored: each is as far from the last unit that the query sees as the row's own unit is from the first. A
    row with a unit after all of these names the first units instead: as many as before, or all. Kernels that count visible
    units do not read the sign of an entry.
    """
    assert layer.selection_unit is not None
    ends = batch.query_start_loc[1:]
    query_lens = batch.query_start_loc.diff()
    from_end = ends.repeat_interleave(query_lens) - torch.arange(own.shape[1], device=own.device)  # 1: the last query
    tokens = seq_lens.repeat_interleave(query_lens)
    is_causal = torch.as_tensor(batch.causal, device=own.device).expand(len(ends)).repeat_interleave(query_lens)
    units = -(-layer.num_keys(torch.where(is_causal, tokens - from_end + 1, tokens)) // layer.selection_unit)
    named = torch.minimum((own >= 0).sum(-1), units)
    places = torch.arange(own.shape[2], dtype=own.dtype, device=own.device)
    first = torch.where(places < named[..., None], places, -1)
    mirrored = torch.where(own >= 0, units[:, None] - 1 - own, own)
    return torch.where((own >= units[:, None]).any(-1, keepdim=True), first, mirrored)


def _of_layer(**changes: Any) -> Callable[[Step], Step | None]:
    return lambda step: dataclasses.replace(step, layer=dataclasses.replace(step.layer, **changes))


def _with_batch(step: Step, **changes: Any) -> Step:
    return dataclasses.replace(step, batch=dataclasses.replace(step.batch, **changes))


def _same(step: Step) -> Step:
    return step


def _another_step(step: Step) -> Step:
    """The same tensors in another Batch, so that metadata with numbers of the step are built anew."""
    return _with_batch(step)


# --- tensors of another form ---


def restrided(tensor: torch.Tensor, unit: int = 1) -> torch.Tensor:
    """The same numbers with another stride of the outermost dimension, a multiple of a unit."""
    dense = tensor.new_empty(tensor.shape)  # `contiguous` keeps the stride of a row that is alone
    bits(dense).copy_(bits(tensor))
    if dense.stride() != tensor.stride() and dense.stride(0) % unit == 0:
        return dense
    width = (dense[0].numel() if len(dense) else 0) + PADDING
    width = -(-width // unit) * unit
    wide = dense.new_empty((len(dense), width if width != tensor.stride(0) else width + unit))
    other = wide.as_strided(dense.shape, (wide.stride(0), *dense.stride()[1:]))
    bits(other).copy_(bits(dense))
    return other


def _cache_strides(step: Step) -> Step | None:
    """A cache of the same numbers whose blocks have another stride."""
    if step.raw is None or step.view is None:
        return None
    view = step.view
    kv_cache = restrided(view.tensor(step.raw), view.layout.block_alignment(view.head_size, view.head_size_v))
    sizes = {"num_kv_heads": view.num_kv_heads, "head_size": view.head_size, "head_size_v": view.head_size_v}
    return dataclasses.replace(step, raw=storage_of(kv_cache), view=KVCacheView.of(kv_cache, view.layout, **sizes))


def _of_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Step], Step | None]:
    """A change of a tensor of the step. k and v change only without a cache: with one, attention does not read them."""

    def changed(step: Step) -> Step | None:
        tensor = getattr(step, name)
        other = None if tensor is None or (name in ("k", "v") and step.raw is not None) else change(tensor)
        return None if other is None else dataclasses.replace(step, **{name: other})

    return changed


def _table_strides(step: Step) -> Step | None:
    table = step.batch.block_table
    return None if table is None else _with_batch(step, block_table=restrided(table))


def _output_dtype(step: Step) -> Step | None:
    others = {torch.float8_e4m3fn: torch.float8_e4m3fnuz, torch.float8_e4m3fnuz: torch.float8_e4m3fn}
    if step.layer.q_scale is not None:
        others |= OTHER_DTYPE
    if step.out.dtype not in others:
        return None
    return dataclasses.replace(step, out=_like(step.out, others[step.out.dtype]))


def _lse(step: Step) -> Step | None:
    rows = len(step.q)
    lse = canary((step.layer.num_heads, rows), torch.float32, step.q.device) if step.lse is None else None
    return dataclasses.replace(step, lse=lse)


def converted_cache(view: KVCacheView, raw: torch.Tensor, dtype: torch.dtype) -> tuple[KVCacheView, torch.Tensor] | None:
    """A cache in another dtype; None if its pages consist of pieces of 16 bytes, which would be other pieces."""
    if view.layout.is_x_packed and view.itemsize != dtype.itemsize:
        return None
    return dataclasses.replace(view, itemsize=dtype.itemsize), raw.to(dtype)


def _cache_dtype(step: Step) -> Step | None:
    """A cache in float8 where it is not quantized, and else in the other type of float8."""
    if step.raw is None or step.view is None:
        return None
    own, layout = step.layer.kv_cache_dtype, step.view.layout
    if own not in _OTHER_FLOAT8 or layout.has_inline_scales or step.layer.q_scale is not None:
        return None
    other = _OTHER_FLOAT8[own]
    if own is not None:
        return dataclasses.replace(step, layer=dataclasses.replace(step.layer, kv_cache_dtype=other), raw=step.raw.view(other))
    converted = converted_cache(step.view, step.raw, other)
    if converted is None:
        return None
    view, raw = converted
    one = torch.ones((), device=raw.device)
    scales = {"k_scale": one, "v_scale": None if layout.has_latent_value else one}
    return dataclasses.replace(step, layer=dataclasses.replace(step.layer, kv_cache_dtype=other, **scales), view=view, raw=raw)


def _layout(step: Step) -> Step | None:
    """The same tensor in the layout with slots and heads swapped, which is possible if there are as many heads as slots."""
    view = step.view
    if view is None:
        return None
    prefix, _, order = view.layout.name.rpartition("_")
    if order not in _SWAPPED or view.block_size != view.num_kv_heads:
        return None
    layout = type(view.layout)[f"{prefix}_{_SWAPPED[order]}"]
    view = dataclasses.replace(view, layout=layout, slot_stride=view.head_stride, head_stride=view.slot_stride)
    return dataclasses.replace(step, layer=dataclasses.replace(step.layer, layout=layout), view=view)


def _dtype(step: Step) -> Step | None:
    """All of the layer's tensors of a step in another dtype."""
    if step.layer.q_scale is not None:
        return None  # q is of the cache's type: see `_output_dtype`
    dtype = OTHER_DTYPE[step.q.dtype]
    changes: dict[str, Any] = {"q": step.q.to(dtype)}
    if step.layer.output_scale is None:
        changes["out"] = _like(step.out, dtype)
    if step.raw is None:
        changes |= {name: None if tensor is None else tensor.to(dtype) for name, tensor in (("k", step.k), ("v", step.v))}
    elif step.layer.kv_cache_dtype is None and step.view is not None:
        converted = converted_cache(step.view, step.raw, dtype)
        if converted is None:
            return None
        changes |= dict(zip(("view", "raw"), converted, strict=True))
    return dataclasses.replace(step, **changes)


def realigned(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same numbers at an address that is aligned to 16 bytes if the tensor's own is not, or the other way round.

    A tensor without elements has no address.
    """
    if not tensor.numel():
        return None
    own = tensor.storage_offset() * tensor.element_size() % 16
    other = tensor.new_empty(extent(tensor.shape, tensor.stride()) + 1).as_strided(
        tensor.shape, tensor.stride(), 0 if own else 1
    )
    bits(other).copy_(bits(tensor))
    return other


def _cache_alignment(step: Step) -> Step | None:
    """A cache of the same numbers that begins one element later, or as many as its layout's strides are multiples of."""
    if step.raw is None or step.view is None:
        return None
    later = step.view.layout.stride_alignment
    raw = step.raw.new_empty(len(step.raw) + later)
    bits(raw)[later:].copy_(bits(step.raw))
    return dataclasses.replace(step, raw=raw, view=dataclasses.replace(step.view, offset=step.view.offset + later))


def _rows(step: Step) -> Step | None:
    """A call without rows past num_actual_tokens."""
    rows = step.batch.num_actual_tokens
    if rows == len(step.q):
        return None
    return dataclasses.replace(step, q=step.q[:rows], out=step.out[:rows], lse=None if step.lse is None else step.lse[:, :rows])


# --- another layer, another step ---


def _scale(step: Step) -> Step | None:
    return _of_layer(scale=2 * step.layer.scale or 1.0)(step)


def _v_head_size(size: Callable[[Layer], int]) -> Callable[[Step], Step | None]:
    """V and the output of another width, with zeros where dense V was narrower. A cache that stores V apart stays as it is."""

    def change(step: Step) -> Step | None:
        layer, other = step.layer, size(step.layer)
        if other in (0, layer.v_head_size) or not (layer.layout is None or layer.layout.has_latent_value):
            return None
        if layer.layout is not None and not layer.layout.has_widths(layer.head_size, other):
            return None
        v = None if step.v is None else torch.nn.functional.pad(step.v, (0, max(0, other - step.v.shape[2])))[..., :other]
        changed = dataclasses.replace(layer, head_size_v=other)
        return dataclasses.replace(step, layer=changed, out=_out_of(step, layer.num_heads, other), v=v)

    return change


def _heads(step: Step) -> Step | None:
    """A layer with half of the query heads of each KV head."""
    layer = step.layer
    group = layer.num_heads // layer.num_kv_heads
    return _of_heads(step, layer.num_kv_heads, group // 2) if group > 1 else None


def _kv_heads(step: Step) -> Step | None:
    """A layer without the last KV head. A call with a cache reads its other heads."""
    layer, view = step.layer, step.view
    fewer = layer.num_kv_heads - 1
    if not fewer or (view is not None and "head" not in view.layout.dims):
        return None
    step = dataclasses.replace(step, view=view and dataclasses.replace(view, num_kv_heads=fewer))
    return _of_heads(step, fewer, layer.num_heads // layer.num_kv_heads)


def _of_heads(step: Step, num_kv_heads: int, group: int) -> Step:
    """The step of a layer that has only the first heads."""
    layer, num_heads = step.layer, num_kv_heads * group
    entries = {HEADS: slice(num_heads), KV_HEADS: slice(num_kv_heads)}
    held, of_batch = (axes.taken(holder, layer, entries) for holder in (layer, step.batch))
    k, v = (None if tensor is None else tensor[:, :num_kv_heads] for tensor in (step.k, step.v))
    return dataclasses.replace(
        step,
        layer=dataclasses.replace(layer, num_heads=num_heads, num_kv_heads=num_kv_heads, **held),
        batch=dataclasses.replace(step.batch, **of_batch) if of_batch else step.batch,
        q=step.q[:, :num_heads],
        k=k,
        v=v,
        out=_out_of(step, num_heads, layer.v_head_size),
        lse=None if step.lse is None else step.lse[:num_heads],
    )


def _out_of(step: Step, num_heads: int, v_head_size: int) -> torch.Tensor:
    heads = (num_heads, v_head_size) if step.out.dim() == 3 else (num_heads * v_head_size,)
    return step.out.new_empty((len(step.out), *heads))


def _head_size(step: Step) -> Step | None:
    """A layer with half of the dims of K and of V. A call with a cache reads the first half of its rows."""
    layer, view, half = step.layer, step.view, step.layer.head_size // 2
    if layer.head_size_v is not None or layer.head_size % 32 or (view is not None and "dim" not in view.layout.dims):
        return None
    return dataclasses.replace(
        step,
        layer=dataclasses.replace(layer, head_size=half),
        view=view and dataclasses.replace(view, head_size=half),
        q=step.q[..., :half],
        k=None if step.k is None else step.k[..., :half],
        v=None if step.v is None else step.v[..., :half],
        out=_out_of(step, layer.num_heads, half),
    )


def _scales(step: Step) -> Step | None:
    """A scale of q or the cache for each head where there was one, or one where each head had its own."""
    layer = step.layer
    scales = {name: layer.tensors[name] for name in SCALES if name in layer.tensors and KV_HEADS in axes_of(Layer)[name]}
    if not scales or layer.num_kv_heads == 1 or layer.v_scale is None:
        return None
    heads = {name: layer.num_kv_heads if scale.numel() == 1 else 1 for name, scale in scales.items()}
    return _of_layer(**{name: scale.reshape(-1)[:1].expand(heads[name]).clone() for name, scale in scales.items()})(step)


def _causal(step: Step) -> Step | None:
    batch = step.batch
    if step.layer.attn_type is not AttentionType.DECODER:
        return None
    causal = ~batch.causal if isinstance(batch.causal, torch.Tensor) else not batch.causal
    return _with_batch(step, causal=causal)


def _per_request_causal(step: Step) -> Step | None:
    batch = step.batch
    if step.layer.attn_type is not AttentionType.DECODER:
        return None
    if isinstance(batch.causal, torch.Tensor):
        return _with_batch(step, causal=True)
    flags = torch.full((batch.num_requests,), batch.causal, dtype=torch.bool, device=step.q.device)
    return _with_batch(step, causal=flags)


def _requests(step: Step) -> Step | None:
    """A step without the last request."""
    batch, last = step.batch, step.batch.num_requests - 1
    if last < 1:
        return None
    fewer = axes.taken(batch, step.layer, {REQUESTS: slice(last)})
    return _with_batch(step, query_start_loc=batch.query_start_loc[: last + 1], **fewer)


def _max_query_len(step: Step) -> Step | None:
    """A step of single tokens. If the case's own step is one, the change is a looser bound, if its tensors allow one."""
    bound = 1 if step.batch.max_query_len > 1 else 16
    of_queries = axes.taken(step.batch, step.layer, {QUERIES: slice(None)})
    return None if any(len(tensor) < bound for tensor in of_queries.values()) else _with_batch(step, max_query_len=bound)


def _max_seq_len(step: Step) -> Step | None:
    """A step of far fewer keys, which are split into fewer parts.

    Without a cache the keys are the step's own tokens, so there it is a looser bound.
    """
    batch = step.batch
    fewer = max(batch.max_query_len, batch.max_seq_len // 16)
    is_fewer = step.layer.attn_type.reads_cache and fewer < batch.max_seq_len
    return _with_batch(step, max_seq_len=fewer if is_fewer else 2 * batch.max_seq_len + 64)


def _numbers_within_bounds(step: Step) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Other lengths within the bounds of the step."""
    batch = step.batch
    query_lens = batch.query_start_loc.diff().clamp(max=batch.max_query_len)
    starts = torch.nn.functional.pad(query_lens.cumsum(0), (1, 0))
    seq_lens = batch.seq_lens.clamp(max=batch.max_seq_len) if step.layer.attn_type.reads_cache else query_lens
    return [(batch.query_start_loc, starts), (batch.seq_lens, seq_lens)]


def _num_actual_tokens(step: Step) -> Step | None:
    owned, tokens = int(step.batch.query_start_loc[-1]), step.batch.num_actual_tokens
    other = owned if owned < tokens else min(len(step.q), tokens + 1)
    return None if other == tokens else _with_batch(step, num_actual_tokens=other)


# --- rules ---


_TENSORS: dict[str, Callable[[Step], torch.Tensor]] = {
    "bidirectional_ranges": lambda step: torch.tensor([[0, 1]], dtype=torch.int32, device=step.q.device).repeat(
        step.batch.num_requests, 1, 1
    ),
}
"""The tensor that turns a rule on whose tensor is not full of ones, by the rule's name."""


def _tensor_on(step: Step, name: str) -> torch.Tensor:
    """The tensor that turns a rule on: ones, in the shape of its axes."""
    if name in _TENSORS:
        return _TENSORS[name](step)
    layer, batch = step.layer, step.batch
    of_batch = {REQUESTS: batch.num_requests, ROWS: len(step.q), QUERIES: batch.max_query_len}
    sizes = {HEADS: layer.num_heads, KV_HEADS: layer.num_kv_heads, **of_batch}
    return torch.ones(axes.shape(Layer if RULES[name].holder == "Layer" else Batch, name, sizes), device=step.q.device)


def _another(value: Any) -> Any:
    """Another number of a rule that is on. It is lower, because what is cached for a wider window may serve a narrower one.

    A number near the least that a rule may have is doubled.
    """
    if isinstance(value, tuple):
        return tuple(side if side < 0 else _another(side) for side in value)
    if isinstance(value, float):
        return value / 2 if abs(value) >= 4 * SMALLEST_NORMAL else value * 2
    return value // 2 if value > 1 else value + 1


def _rule(name: str) -> Callable[[Step], Step | None]:
    rule = RULES[name]

    def change(step: Step) -> Step | None:
        value = getattr(step.layer if rule.holder == "Layer" else step.batch, name)
        if not rule.is_asked(value):
            other = _tensor_on(step, name) if rule.is_tensor else value_on(name)
        else:
            other = rule.off if rule.is_tensor or rule.type is bool else _another(value)
        return _with_rule(step, name, other)

    return change


def _without_rule(name: str) -> Callable[[Step], Step | None]:
    rule = RULES[name]

    def change(step: Step) -> Step | None:
        is_on = rule.is_asked(getattr(step.layer if rule.holder == "Layer" else step.batch, name))
        return _with_rule(step, name, rule.off) if is_on else None

    return change


def _with_rule(step: Step, name: str, value: Any) -> Step | None:
    return _of_layer(**{name: value})(step) if RULES[name].holder == "Layer" else _with_batch(step, **{name: value})


def _selection_unit(step: Step) -> Step | None:
    """A selection of nothing if the case has no selection; otherwise units of half as many tokens, if possible."""
    if step.layer.layout is None or step.kv_cache is None:
        return None
    slots = step.layer.layout.packing_multiples(step.kv_cache.element_size())[1]
    if (unit := step.layer.selection_unit) is None:
        nothing = torch.full((1, len(step.q), 1), -1, dtype=torch.int32, device=step.q.device)
        layer = dataclasses.replace(step.layer, selection_unit=2 * slots)
        return dataclasses.replace(step, layer=layer, batch=dataclasses.replace(step.batch, selected=nothing))
    return _with_rule(step, "selection_unit", unit // 2) if unit % (2 * slots) == 0 else None


def _no_selection_unit(step: Step) -> Step | None:
    if step.layer.selection_unit is None:
        return None
    layer, batch = dataclasses.replace(step.layer, selection_unit=None), dataclasses.replace(step.batch, selected=None)
    return dataclasses.replace(step, layer=layer, batch=batch)


def _key_unit(step: Step) -> Step | None:
    """Half as many keys, each of twice as many tokens. A selection might name keys that are lost."""
    return None if step.batch.selected is not None else _of_layer(key_unit=2 * step.layer.tokens_per_key)(step)


def _no_key_unit(step: Step) -> Step | None:
    """The same number of keys, of one token each."""
    if step.layer.key_unit is None:
        return None
    return _of_layer(key_unit=None)(_with_batch(step, seq_lens=step.layer.num_keys(step.batch.seq_lens)))


def _q_scale(step: Step) -> Step | None:
    """A float8 q with scales of 1 if q was not float8; otherwise a q in the output's dtype."""
    layer = step.layer
    if layer.kv_cache_dtype not in FLOAT8_DTYPES:
        return None
    if layer.q_scale is None:
        changed, dtype = dataclasses.replace(layer, q_scale=_tensor_on(step, "q_scale")), layer.kv_cache_dtype
    else:
        changed = dataclasses.replace(layer, q_scale=None)
        dtype = step.out.dtype if layer.output_scale is None else torch.float16
    q = step.q.float().to(dtype)
    return dataclasses.replace(step, layer=changed, q=q)


OF_CACHE: dict[str, Callable[[Step], Step | None]] = {
    "cache strides": _cache_strides,
    "cache alignment": _cache_alignment,
    "cache dtype": _cache_dtype,
    "layout": _layout,
    "scales": _scales,
}
"""Changes of a layer and its cache, which come before writes as well."""
_HELD = (*held_rules(Layer), *held_rules(Batch))
_TURNS_ON = {"causal": ("non_causal",), "per_request_causal": ("per_request_causal", "non_causal")}
"""The rules that a change may turn on, if they are others than the one of its name."""
_CHANGES: dict[str, Callable[[Step], Step | None]] = {
    **OF_CACHE,
    "same": _same,
    "output strides": _of_tensor("out", restrided),
    "output dtype": _output_dtype,
    "lse": _lse,
    "lse strides": _of_tensor("lse", restrided),
    "q strides": _of_tensor("q", restrided),
    "k strides": _of_tensor("k", restrided),
    "v strides": _of_tensor("v", restrided),
    "table strides": _table_strides,
    "dtype": _dtype,
    "alignment": _of_tensor("q", realigned),
    "k alignment": _of_tensor("k", realigned),
    "v alignment": _of_tensor("v", realigned),
    "output alignment": _of_tensor("out", realigned),
    "rows": _rows,
    "heads": _heads,
    "kv_heads": _kv_heads,
    "head_size": _head_size,
    "scale": _scale,
    "causal": _causal,
    "per_request_causal": _per_request_causal,
    "requests": _requests,
    "max_query_len": _max_query_len,
    "max_seq_len": _max_seq_len,
    "num_actual_tokens": _num_actual_tokens,
    CONTENTS: _another_step,
    MODE: _same,
    ILLEGAL: _same,
    **{name: _rule(name) for name in _HELD},
    **{name: _without_rule(name.removeprefix("no ")) for name in CHANGES if name.startswith("no ")},
    "head_size_v": _v_head_size(lambda layer: layer.v_head_size // 2),
    "no head_size_v": _v_head_size(lambda layer: layer.head_size),
    "q_scale": _q_scale,
    "selection_unit": _selection_unit,
    "no selection_unit": _no_selection_unit,
    "key_unit": _key_unit,
    "no key_unit": _no_key_unit,
}
_NUMBERS = {
    CONTENTS: _other_contents,
    "max_query_len": _numbers_within_bounds,
    "max_seq_len": _numbers_within_bounds,
}
"""The numbers that tensors hold during an earlier call, if these differ from the step's own."""
