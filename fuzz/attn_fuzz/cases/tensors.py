"""Makes the tensors of a case. All memory that the step must not touch is poisoned.

Unused slots, unowned rows and the memory around the cache and the other inputs hold NaN (the poison), or an index that leads
astray. `out`, `lse` and the memory around them hold another NaN (the canary). So a stray read gives NaN, and a stray write
changes a byte. With some seeds the storages of inputs end past what may be read, and have no guard there. If the step
rotates q in place, unowned rows of q hold finite numbers: a rotation keeps most NaN bit by bit, so that NaN would not show
which rows were rotated.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import attn_reference
import torch
from attn_contract import Batch, KVCacheView, Layer, check_shared_allocation
from attn_contract.memory import extent
from attn_contract.rules import axes_of, held_rules
from attn_fuzz.cases import allocations, built, captures, contents, edges_of_scales
from attn_fuzz.cases.case import GUARD, Cache, Case, Rope, slot_of, slots_of_keys, written_slots
from attn_fuzz.cases.idle_strides import with_idle_strides
from attn_fuzz.cases.own_defaults import own_defaults
from attn_fuzz.cases.poison import DTYPES, canary, poison

PADDING = 8  # elements after each row, and rows before and after inputs
VECTOR = 16  # elements that a kernel loads or stores at once, at most
GARBAGE_BLOCKS = (-1, 2**31 - 1)
NO_RANGE = (1, 0)
ALL_POSITIONS = (0, 2**31 - 1)


@dataclass(frozen=True)
class Rotation:
    """The arguments that `rope_and_write_kv_cache` has in addition to those of a plain write."""

    positions: torch.Tensor
    cos_sin_cache: torch.Tensor
    is_neox: bool


@dataclass(frozen=True)
class Write:
    """One cache write: k and v, the slots to write them to, and the layer and its view of the allocation.

    In a latent cache v is the beginning of k. With unlike strides it is a copy of it.
    """

    layer: Layer
    view: KVCacheView
    k: torch.Tensor
    v: torch.Tensor
    slot_mapping: torch.Tensor
    rotation: Rotation | None = None

    @property
    def latent_parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """kv_c [T_kv, Lkv] and k_pe [T_kv, R], which a write to a latent cache takes."""
        return latent_parts(self.k, self.v)


def latent_parts(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """kv_c and k_pe as slices of k [T_kv, 1, D] and of v [T_kv, 1, Lkv], with the strides that these have."""
    return v[:, 0], k[:, 0, v.shape[2] :]


@dataclass(frozen=True)
class Step:
    """All tensors of one case. `out`, `lse` and scale caches are views into buffers that are larger on every side.

    Attributes:
        q, k, v: the step's rows, some more after them. k and v are None where no key of the step is written.
        raw: the cache's allocation, as bytes or elements of its dtype; None without a cache.
        scale_buffers: the allocations of scale caches, by name.
        view: the places of the cache's elements in `raw`, by the layout.
        writes: the writes of the step, which the target may make.
        out_buffer, lse_buffer: the allocations around `out` and `lse`. `lse` is None where the case asks for none.
        dense_keys: for each request, whether the target reads the keys and values of this step's tokens from k and v instead of
            from the cache (`Target.dense_keys`). Empty: it reads none from k and v.
    """

    layer: Layer
    batch: Batch
    q: torch.Tensor
    k: torch.Tensor | None
    v: torch.Tensor | None
    raw: torch.Tensor | None
    scale_buffers: dict[str, torch.Tensor]
    view: KVCacheView | None
    writes: tuple[Write, ...]
    out_buffer: torch.Tensor
    out: torch.Tensor
    lse_buffer: torch.Tensor
    lse: torch.Tensor | None
    dense_keys: tuple[bool, ...] = ()

    @property
    def kv_cache(self) -> torch.Tensor | None:
        if self.raw is None or self.view is None:
            return None
        return self.view.tensor(self.raw)

    @property
    def memory(self) -> dict[str, torch.Tensor]:
        """Memory that cache writes change: whole allocations, by name."""
        return {} if self.raw is None else {"kv_cache": self.raw, **self.scale_buffers}

    def inputs(self) -> dict[str, torch.Tensor]:
        """Every tensor that attention may only read, by name."""
        named = {"q": self.q, "k": self.k, "v": self.v, **self.layer.tensors, **self.memory, **self.batch.tensors}
        for i, write in enumerate(self.writes):
            parts = {"k": write.k, "v": write.v, "slot_mapping": write.slot_mapping}
            if write.rotation is not None:
                parts |= {"positions": write.rotation.positions, "cos_sin_cache": write.rotation.cos_sin_cache}
            named |= {f"{name} of write {i}": tensor for name, tensor in parts.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@own_defaults()
def build(case: Case, device: torch.device | str = "cpu") -> Step:
    """Make the tensors of a valid case.

    Raises:
        UnbuiltError: they do not ask for what the case asks for.
    """
    dtype = DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(case.values.seed)
    held = captures.load(case) if case.values.kind == "captured" else {}
    if held:
        q, keys, values = held["q"], held["k"], held.get("v", held["k"])  # v of a latent cache is not used: it is in k
    else:
        q, direction = contents.queries(case, generator)
        keys, values = (x.to(dtype) for x in contents.keys_and_values(case, direction, generator))
        if (edge := edges_of_scales.edge_of(case)) is not None:
            keys[[slot for slot in written_slots(case) if slot >= 0], :, edge.dims] = 0
    buffers = allocations.poisoned_scales(case, case.cache, device) if case.cache else {}
    layer = _layer(case, buffers, held, generator, device)
    if case.q_scale is None:
        q = q.to(dtype)
    elif not held:
        q = contents.stored_queries(case, q, layer, generator)
    q_rows = _rows(q, case.num_rows, device, _wide(case, case.head_size))
    if case.rope is not None:
        q_rows[len(q) :] = contents.unowned_queries(case).to(q_rows)
    slots = written_slots(case)
    raw, view, k, v = None, None, None, None
    writes = tuple[Write, ...]()
    if case.cache is None:
        num_rows = case.num_rows + case.kv_rows_past
        k, v = _rows(keys, num_rows, device, _wide(case, case.head_size)), _rows(values, num_rows, device, _wide_v(case))
    else:
        view = allocations.cache_view(case, case.cache)
        raw = allocations.poisoned(case, case.cache, device)
        writes = _writes(case, case.cache, layer, keys, values, generator, device)
        views = {str(i): write.view for i, write in enumerate(writes)}
        check_shared_allocation({"read": view, **views}, [("read", "0")] if slots else [])
        if slots:
            k, v = writes[0].k, writes[0].v
    if case.fused_qkv:
        q_rows, k, v = _fuse(q_rows, k, v)
        if slots and k is not None and v is not None:
            writes = (dataclasses.replace(writes[0], k=k, v=v), *writes[1:])
    q_rows, k, v = (None if rows is None else with_idle_strides(case, rows) for rows in (q_rows, k, v))
    assert q_rows is not None
    writes = tuple(_with_idle_strides(case, write) for write in writes)
    batch = _batch(case, writes[0].slot_mapping if slots else None, held, generator, device)
    out_buffer, out = _output(case, device)
    lse_buffer, lse = _lse(case, device)
    step = Step(
        layer=layer,
        batch=batch,
        q=q_rows,
        k=k,
        v=v,
        raw=raw,
        scale_buffers=buffers,
        view=view,
        writes=writes,
        out_buffer=out_buffer,
        out=out,
        lse_buffer=lse_buffer,
        lse=lse,
    )
    built.check(case, step)
    if case.cache is not None and view is not None and raw is not None:
        if case.finite_slots:
            _write(case, step, *contents.stale_keys_and_values(case, case.cache, q), torch.arange(view.num_slots))
        if held:
            captures.place(case, case.cache, held, view, raw, layer)
        else:
            _hold_keys(case, case.cache, step, keys, values)
    return _ended(step, case) if case.values.choice("storage", 6) == 5 else step


def _hold_keys(case: Case, cache: Cache, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Write into the step's cache the keys and values that it holds before the step."""
    assert step.raw is not None
    assert step.view is not None
    kv_cache, layer, device = step.view.tensor(step.raw), step.layer, step.q.device
    read = slots_of_keys(case, cache)
    if case.recycled:
        seen = _slots_seen(case, cache, step.q, kv_cache, layer, step.batch, len(keys))
        read = seen.any(1).nonzero().flatten().tolist()
        # of a slot that only some KV heads see, the others' keys and values are read by nobody
        keys, values = (torch.where(seen[..., None], x, torch.nan) for x in (keys, values))
    slots = torch.tensor(sorted(set(read) - set(written_slots(case))), dtype=torch.int64)
    k, v = keys[slots], values[slots]
    if case.has_latent_cache:
        _write(case, step, k, v, slots)
        if (edge := edges_of_scales.edge_of(case)) is not None:
            edges_of_scales.write(case, cache, edge, step.raw, slots.to(device))
        return
    # scales of another writer may be negative: the numbers then have the opposite sign
    sign = -1 if case.values.seed % 4 == 1 and step.scale_buffers else 1
    _write(case, step, sign * k, sign * v, slots)
    for buffer in step.scale_buffers.values():
        allocations.inside(buffer)[slots // cache.block_size, slots % cache.block_size] *= sign


def _write(case: Case, step: Step, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows into slots of the step's cache, as the reference does."""
    kv_cache, dtype, device = step.kv_cache, DTYPES[case.dtype], step.q.device
    assert kv_cache is not None
    k, v, slots = k.to(device, dtype), v.to(device, dtype), slots.to(device)
    if case.has_latent_cache:
        attn_reference.write_latent_cache(*latent_parts(k, v), kv_cache, step.layer, slots)
    else:
        attn_reference.write_kv_cache(k, v, kv_cache, step.layer, slots)


def _ended(step: Step, case: Case) -> Step:
    """The step with storages of inputs that end right after the last element of any tensor in them.

    torch then refuses a view that reaches further, such as one of rows that are as long as the stride between them.
    """
    if step.raw is not None and step.view is not None and case.cache is not None:
        views = [step.view, *(write.view for write in step.writes), *allocations.layer_views(case, case.cache)]
        step = dataclasses.replace(step, raw=step.raw[: max(view.end for view in views)])
    ends: dict[int, tuple[torch.UntypedStorage, int]] = {}
    for tensor in step.inputs().values():
        storage = tensor.untyped_storage()
        end = (int(tensor.storage_offset()) + extent(tensor.shape, tensor.stride())) * tensor.itemsize if tensor.numel() else 0
        ends[storage.data_ptr()] = storage, max(end, ends.get(storage.data_ptr(), (storage, 0))[1])
    for storage, end in ends.values():
        storage.resize_(end)
    return step


def _layer(
    case: Case,
    buffers: dict[str, torch.Tensor],
    held: dict[str, torch.Tensor],
    generator: torch.Generator,
    device: torch.device | str,
) -> Layer:
    rules = case.rules
    if held:
        tensors = {name: held[name] for name in axes_of(Layer) if name in held and name not in buffers}
    else:
        tensors = contents.of_rules(Layer, case, generator)
        if case.cache is not None:
            tensors |= contents.fixed_scales(case, case.cache, generator)
        if case.output_dtype is not None:
            tensors["output_scale"] = contents.output_scale(case, generator)
    if "sinks" in tensors:
        tensors["sinks"] = tensors["sinks"].to(DTYPES[case.dtype] if case.narrow_sinks else torch.float32)
    tensors = {name: _embedded(tensor, torch.nan, device) for name, tensor in tensors.items()}
    tensors |= {name: allocations.inside(buffer) for name, buffer in buffers.items()}
    fields: dict[str, Any] = {name: with_idle_strides(case, tensor) for name, tensor in tensors.items()}
    return Layer(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        scale=case.scale,
        attn_type=case.attn_type,
        layout=case.cache.layout if case.cache else None,
        kv_cache_dtype=DTYPES[case.cache.dtype] if case.cache and case.cache.dtype else None,
        **{name: rules[name] for name, rule in held_rules(Layer).items() if name in rules and not rule.is_tensor},
        **fields,
    )


def _rows(owned: torch.Tensor, num_rows: int, device: torch.device | str, wide: int = 0) -> torch.Tensor:
    """[num_rows, heads, D]: the owned rows, then poison in rows that no request owns. Poison surrounds the tensor.

    If its heads are so wide, more than D, poison also lies between its heads and between its rows.
    """
    heads, size = owned.shape[1:]
    shape = (num_rows + 2 * PADDING, heads + (wide > 0), wide or size)
    rows = poison(shape, owned.dtype, device)[PADDING:-PADDING, :heads, :size]
    rows[: len(owned)] = owned.to(device)
    return rows


def _wide(case: Case, size: int) -> int:
    """The size of a head with padding, if the heads of the step have padding up to a whole number of vectors; else 0."""
    has_wide_heads = case.unlike_strides and case.values.choice("wide heads", 3) > 0
    return -(-(size + 1) // VECTOR) * VECTOR if has_wide_heads else 0


def _wide_v(case: Case) -> int:
    """The size of a head of v with padding, if its strides are to be unlike k's."""
    if not case.unlike_strides:
        return 0
    wide = _wide(case, case.v_head_size)
    return wide + VECTOR if wide else case.v_head_size + PADDING


def _output(case: Case, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    wide = 0 if case.flat_out or case.dense_out else _wide(case, case.v_head_size)
    width = case.num_heads * (wide or case.v_head_size)
    padded = width if case.dense_out or wide else width + PADDING
    buffer = canary((case.num_rows + 2 * GUARD, padded), DTYPES[case.output_dtype or case.dtype], device)
    out = buffer[GUARD : GUARD + case.num_rows, :width]
    out = out if case.flat_out else out.unflatten(1, (case.num_heads, -1))[..., : case.v_head_size]
    return buffer, with_idle_strides(case, out)


def _lse(case: Case, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor | None]:
    buffer = canary((case.num_heads + 2, case.num_rows + 2 * GUARD), torch.float32, device)
    lse = with_idle_strides(case, buffer[1:-1, GUARD : GUARD + case.num_rows])
    return buffer, lse if case.lse else None


def _batch(
    case: Case,
    slot_mapping: torch.Tensor | None,
    held: dict[str, torch.Tensor],
    generator: torch.Generator,
    device: torch.device | str,
) -> Batch:
    causal = [request.causal for request in case.requests]
    seq_lens = [request.seq_len for request in case.requests]
    tensors = {
        "query_start_loc": _embedded(torch.tensor(case.query_start_loc, dtype=torch.int32), 1 << 20, device),
        "seq_lens": _embedded(torch.tensor(seq_lens, dtype=torch.int32), 1 << 20, device),
    }
    if case.per_request_causal:
        tensors["causal"] = _embedded(torch.tensor(causal, dtype=torch.bool), True, device)
    if case.cache:
        tensors["block_table"] = _block_table(case, case.cache, device)
    if slot_mapping is not None:
        tensors["slot_mapping"] = slot_mapping
    if case.bidirectional_ranges:
        tensors["bidirectional_ranges"] = _ranges(case, device)
    captured = {name: held[name] for name in held_rules(Batch) if name in held}
    for name, numbers in (captured if held else contents.of_rules(Batch, case, generator)).items():
        tensors[name] = _SURROUNDED.get(name, _in_poison)(numbers, device)
    if case.selection_unit:
        tensors["selected"] = _selected(case, held["selected"] if held else contents.selected(case, generator), device)
    fields: dict[str, Any] = {"causal": any(causal)}
    fields |= {name: with_idle_strides(case, tensor) for name, tensor in tensors.items()}
    return Batch(
        **fields,
        max_query_len=case.max_query_len,
        max_seq_len=max(seq_lens, default=0) + case.slack,
        num_actual_tokens=case.num_actual_tokens,
    )


def _ranges(case: Case, device: torch.device | str) -> torch.Tensor:
    """[R, max_ranges, 2]: each request's ranges, then empty ranges. Ranges around the tensor would make every key visible."""
    own = [request.bidirectional_ranges for request in case.requests]
    most = max(map(len, own))
    rows = [[*ranges, *[NO_RANGE] * (most + 1 - len(ranges))] for ranges in own]
    everything = [ALL_POSITIONS] * (most + 1)
    return torch.tensor([everything, *rows, everything], dtype=torch.int32, device=device)[1:-1]


def _selected(case: Case, selected: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """[1 or HK, rows of q, W]. Rows that no request owns, and the padding around rows, hold unit 0, which every request has."""
    heads, rows, width = selected.shape
    buffer = torch.zeros((heads, case.num_rows + 2 * PADDING, width + PADDING), dtype=torch.int32)
    buffer[:, PADDING : PADDING + rows, :width] = selected
    return buffer.to(device)[:, PADDING:-PADDING, :width]


def _in_poison(numbers: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    return _embedded(numbers, torch.nan, device)


def _qq_bias(bias: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    buffer = poison((len(bias) + 2, len(bias) + PADDING), torch.float32, device)
    buffer[1:-1, : len(bias)] = bias
    return buffer[1:-1, : len(bias)]


_SURROUNDED = {"qq_bias": _qq_bias}
"""The tensor of a step's rule with what surrounds it, by name. Others are dense, with NaN before and after them."""


def _block_table(case: Case, cache: Cache, device: torch.device | str) -> torch.Tensor:
    used = max((len(request.blocks) for request in case.requests), default=0)
    garbage = (*GARBAGE_BLOCKS, cache.num_blocks, 0)
    table = torch.tensor(garbage).repeat(len(case.requests) + 2, used + case.table_padding)[:, : used + case.table_padding + 1]
    for r, request in enumerate(case.requests):
        table[r + 1, : len(request.blocks)] = torch.tensor(request.blocks)
    return table.to(device=device, dtype=torch.int32)[1:-1, : used + case.table_padding]


def _embedded(values: torch.Tensor, around: float, device: torch.device | str) -> torch.Tensor:
    """A vector or scalar inside a longer vector of the number `around`. A read past its ends is safe and changes the result."""
    guard = torch.full((GUARD,), around, dtype=values.dtype)
    return torch.cat([guard, values.flatten(), guard]).to(device)[GUARD:-GUARD].view(values.shape)


def _slots_seen(
    case: Case, cache: Cache, q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, num_slots: int
) -> torch.Tensor:
    """[num_slots, HK] bool: the keys that some query of a KV head's sees, according to the reference."""
    seen = torch.zeros(num_slots, layer.num_kv_heads, dtype=torch.bool)
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32):
        slots = [slot_of(case.requests[request.index], cache, key) for key in range(len(request.key))]
        seen[slots] |= request.seen.cpu()
    return seen


def _writes(
    case: Case,
    cache: Cache,
    layer: Layer,
    keys: torch.Tensor,
    values: torch.Tensor,
    generator: torch.Generator,
    device: torch.device | str,
) -> tuple[Write, ...]:
    """This step's write through the writer's view, and the neighbour's write into blocks that no request owns."""
    writes = []
    if slots := written_slots(case):
        rows = torch.tensor([max(slot, 0) for slot in slots])
        k, v = keys[rows], values[rows]
        if case.saturated:
            k, v = (_saturated(case, x, generator) for x in (k, v))
        num_rows = len(rows) + case.kv_rows_past
        k, v = _written_rows(case, k, v, num_rows, device, _wide_v(case))
        for row in (row for row, slot in enumerate(slots) if slot < 0):
            k[row] = v[row] = torch.nan
        view = allocations.writer_view(case, cache)
        rotation = _rotation(case, case.rope, generator, device) if case.rope else None
        writer = dataclasses.replace(layer, layout=view.layout)
        writes.append(Write(writer, view, k, v, _embedded(torch.tensor(slots), 0, device), rotation))
    if cache.neighbour is not None:
        owned = {block for request in case.requests for block in request.blocks}
        free = [block for block in range(cache.num_blocks) if block not in owned][:2]
        slots = [block * cache.block_size + offset for block in free for offset in range(cache.block_size)]
        if slots:
            rows = torch.tensor(slots)
            k, v = keys[rows], values[rows]
            if not case.ordinary_writes:
                k, v = (contents.with_specials(x, generator) for x in (k, v))
            if layer.kv_cache_dtype is not None:
                scales = (layer.k_scale, layer.v_scale)
                k, v = (_with_ties(case, x, layer.kv_cache_dtype, s, generator) for x, s in zip((k, v), scales, strict=True))
            view = allocations.neighbour_view(case, cache, cache.neighbour)
            neighbour = dataclasses.replace(layer, layout=view.layout)
            k, v = _written_rows(case, k, v, len(k), device, 0)
            writes.append(Write(neighbour, view, k, v, _embedded(rows, 0, device)))
    return tuple(writes)


def _with_idle_strides(case: Case, write: Write) -> Write:
    names, rotation = ("k", "v", "slot_mapping"), write.rotation
    if rotation is not None:
        of_rotation = {name: with_idle_strides(case, getattr(rotation, name)) for name in ("positions", "cos_sin_cache")}
        rotation = dataclasses.replace(rotation, **of_rotation)
    tensors = {name: with_idle_strides(case, getattr(write, name)) for name in names}
    return dataclasses.replace(write, rotation=rotation, **tensors)


def _written_rows(
    case: Case, k: torch.Tensor, v: torch.Tensor, num_rows: int, device: torch.device | str, wide_v: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k and v of a write, with poison around them. In a latent cache v is the beginning of k.

    Args:
        wide_v: the size of a head of v with padding; 0: v has no padding.
    """
    k = _rows(k, num_rows, device, _wide(case, case.head_size) if wide_v else 0)
    if not case.has_latent_cache:
        return k, _rows(v, num_rows, device, wide_v)
    v = k[..., : case.v_head_size]
    return k, _rows(v, num_rows, device, wide_v) if wide_v else v


def _saturated(case: Case, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows with infinities in dims that are stored quantized."""
    saturated = contents.with_infinities(rows, generator)
    if case.latent_format is not None:
        quantized = case.latent_format.quantized_size(case.head_size, case.head_size_v)
        saturated[..., quantized:] = rows[..., quantized:]
    return saturated


def _with_ties(
    case: Case, rows: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    """Rows with ties in dims that are stored quantized, by the scale that each of them has."""
    if (form := case.latent_format) is not None:
        quantized, kept = rows.tensor_split([form.quantized_size(case.head_size, case.head_size_v)], dim=-1)
        latent = quantized.unflatten(-1, (-1, form.scale_dims))
        _, scales = attn_reference.group_scales(latent, dtype, form.scale_dtype)
        latent = contents.with_ties(latent, scales, dtype, generator).flatten(-2)
        return torch.cat([latent, kept], dim=-1)
    scales = attn_reference.row_scales(rows, dtype) if scale is None else scale.cpu().reshape(-1, 1)
    return contents.with_ties(rows, scales, dtype, generator)


def _rotation(case: Case, rope: Rope, generator: torch.Generator, device: torch.device | str) -> Rotation:
    positions = contents.rope_positions(case, rope, generator)
    angles = contents.cos_sin_cache(rope, max(positions, default=0) + 1)
    dtype = DTYPES[case.dtype] if rope.narrow_cache else torch.float32
    table = poison((len(angles) + 2, rope.rotary_dim + PADDING), dtype, device)[1:-1, : rope.rotary_dim]
    table.copy_(angles)
    return Rotation(_embedded(torch.tensor(positions, dtype=torch.int64), len(angles), device), table, rope.neox)


def _fuse(
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """q, k and v as slices of one tensor, with the rows of the longest of them."""
    parts = [part.flatten(1) for part in (q, k, v) if part is not None]
    shape = (max(map(len, parts)) + 2 * PADDING, sum(part.shape[1] for part in parts))
    fused = poison(shape, q.dtype, q.device)[PADDING:-PADDING]
    slices, column = [], 0
    for part, like in zip(parts, (part for part in (q, k, v) if part is not None), strict=True):
        fused[: len(part), column : column + part.shape[1]] = part
        slices.append(fused[: len(part), column : column + part.shape[1]].unflatten(1, like.shape[1:]))
        column += part.shape[1]
    return (slices[0], slices[1], slices[2]) if len(slices) == 3 else (slices[0], k, v)
