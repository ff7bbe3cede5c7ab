"""A case made concrete: every tensor of the step, poisoned wherever the step has no business.

Unused slots, unowned rows and everything around the cache hold NaN (the poison); `out`, `lse` and everything around them hold
another NaN (the canary). So a stray read shows as NaN, and a stray write as a changed byte.

Value kinds (Case.values.kind), simplest first; all are drawn on the CPU, so that a case means the same on every device:
    exact       q is 0, v holds small integers: each output is a sum divided by a count, compared bitwise
    one_hot     v is 256 in one channel of keys at the ends of sequences, blocks and tiles, else 0: outputs are the weights
    signature   v spells its slot and head; one key outweighs all others: outputs name the slot that was read
    random      everything normal
    extreme     logits of both signs in the hundreds, with ties
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_fuzz.case import Cache, Case, Request, slot_of, written_slots

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# NaN of payloads that no arithmetic makes: POISON where nothing may be read, CANARY where nothing may be written
POISON = {torch.float32: 0x7FC0BEEF, torch.float16: 0x7EAD, torch.bfloat16: 0x7FEA}
CANARY = {torch.float32: 0x7FC0CAFE, torch.float16: 0x7ECA, torch.bfloat16: 0x7FCA}
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
# Rows before and after outputs, about a kernel's tile of queries, and elements after each row. A cache has a block on either
# side: what a kernel writes too far lands where it is found, and not in the allocator's own memory.
GUARD = 64
PADDING = 8
GARBAGE_BLOCKS = (-1, 2**31 - 1)


@dataclass(frozen=True)
class Write:
    """One cache write: through which view of the allocation, what, and where to."""

    view: KVCacheView
    k: torch.Tensor
    v: torch.Tensor
    slot_mapping: torch.Tensor


@dataclass(frozen=True)
class Step:
    """All tensors of one case. `out` and `lse` are views into buffers that are larger on every side."""

    layer: Layer
    batch: Batch
    q: torch.Tensor
    k: torch.Tensor | None
    v: torch.Tensor | None
    raw: torch.Tensor | None
    view: KVCacheView | None
    writes: tuple[Write, ...]
    out_buffer: torch.Tensor
    out: torch.Tensor
    lse_buffer: torch.Tensor
    lse: torch.Tensor | None

    @property
    def kv_cache(self) -> torch.Tensor | None:
        if self.raw is None or self.view is None:
            return None
        return self.view.tensor(self.raw)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Every tensor that a target may only read, by name; attention may not write the cache either."""
        named = {"q": self.q, "k": self.k, "v": self.v, "kv_cache": self.raw, "sinks": self.layer.sinks}
        for i, write in enumerate(self.writes):
            named |= {f"k of write {i}": write.k, f"v of write {i}": write.v, f"slot_mapping of write {i}": write.slot_mapping}
        return {name: tensor for name, tensor in {**named, **self.batch.tensors}.items() if tensor is not None}


def build(case: Case, device: torch.device | str = "cpu") -> Step:
    """Make the tensors of a valid case."""
    dtype = DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(case.values.seed)
    q, direction = _queries(case, generator)
    keys, values = _contents(case, direction, generator)
    layer = Layer(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        scale=case.scale,
        attn_type=case.attn_type,
        window=case.window,
        sinks=_sinks(case, generator, device),
        layout=case.cache.layout if case.cache else None,
    )
    q_rows = _rows(q.to(dtype), case, device)
    out_buffer, out = _output(case, dtype, device)
    lse_buffer, lse = _lse(case, device)
    raw, view, k, v = None, None, None, None
    writes = tuple[Write, ...]()
    if case.cache is None:
        k, v = (_rows(content.to(dtype), case, device) for content in (keys, values))
        k, v = (_longer(rows, case.kv_rows_past) for rows in (k, v))
    else:
        view = cache_view(case, case.cache)
        raw = poison((view.end + view.offset,), dtype, device)
        keys, values = keys.to(device=device, dtype=dtype), values.to(device=device, dtype=dtype)
        writes = _writes(case, case.cache, view, keys, values, device)
        slots = written_slots(case)
        _prefill(raw, view, keys, values, _slots_read(case, case.cache) - set(slots))
        if slots:
            k, v = writes[0].k, writes[0].v
    if case.fused_qkv:
        q_rows, k, v = _fuse(q_rows, k, v)
        if writes and k is not None and v is not None:
            writes = (dataclasses.replace(writes[0], k=k, v=v), *writes[1:])
    batch = _batch(case, writes[0].slot_mapping if written_slots(case) else None, device)
    return Step(
        layer=layer,
        batch=batch,
        q=q_rows,
        k=k,
        v=v,
        raw=raw,
        view=view,
        writes=writes,
        out_buffer=out_buffer,
        out=out,
        lse_buffer=lse_buffer,
        lse=lse,
    )


def canary(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """What outputs and everything around them start as."""
    return torch.full(shape, CANARY[dtype], dtype=BITS[dtype], device=device).view(dtype)


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """What inputs hold wherever the step has no business."""
    return torch.full(shape, POISON[dtype], dtype=BITS[dtype], device=device).view(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns, in which NaN equals itself."""
    return tensor.view(BITS[tensor.dtype]) if tensor.dtype in BITS else tensor


def cache_view(case: Case, cache: Cache, layout: Layout | None = None) -> KVCacheView:
    """The view of a layer in `layout` (the case's own if None). All layouts of one case have one footprint."""
    layout = layout or cache.layout
    page = cache.block_size * case.num_kv_heads * case.head_size
    block_stride = (page if cache.planes else 2 * page) + cache.padding
    tokens_first = layout in (Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_NHD)
    return KVCacheView(
        layout=layout,
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        itemsize=DTYPES[case.dtype].itemsize,
        kv_stride=cache.num_blocks * block_stride if cache.planes else page,
        block_stride=block_stride,
        slot_stride=case.num_kv_heads * case.head_size if tokens_first else case.head_size,
        head_stride=case.head_size if tokens_first else cache.block_size * case.head_size,
        offset=block_stride,
    )


def _queries(case: Case, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """q of the owned rows [rows, H, D], and the direction [D] that all queries share where one key is to dominate."""
    shape = (case.query_start_loc[-1], case.num_heads, case.head_size)
    direction = torch.randint(0, 2, (case.head_size,), generator=generator) * 2.0 - 1.0
    noise = torch.randn(shape, generator=generator)
    if case.values.kind == "exact":
        return torch.zeros(shape), direction
    if case.values.kind == "signature":
        return direction + noise / 8, direction
    if case.values.kind == "extreme":
        return noise.sign() * 16, direction
    return noise, direction


def _contents(case: Case, direction: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of every slot of the cache, or of every query row where there is no cache, [slots, HK, D] each."""
    cache = case.cache
    slots = cache.num_blocks * cache.block_size if cache else case.query_start_loc[-1]
    shape = (slots, case.num_kv_heads, case.head_size)
    kind = case.values.kind
    if kind == "exact":
        return torch.randint(-2, 3, shape, generator=generator).float(), torch.randint(
            -8, 9, shape, generator=generator
        ).float()
    keys, values = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    if kind == "extreme":
        size = 12 / max(abs(case.scale), 1e-3) / case.head_size
        keys = (keys.sign() * size).clamp(-1000, 1000)
        keys[::3] = keys[:1].clone()
    elif kind == "one_hot":
        values = torch.zeros(shape)
        for r, request in enumerate(case.requests):
            for channel, position in enumerate(_edges(request, cache, case.head_size)):
                values[_slot(case, r, position), :, channel] = 256
    elif kind == "signature":
        values = _signatures(shape)
        keys = keys / 8
        for r, request in enumerate(case.requests):
            if request.seq_len and case.scale:
                position = int(torch.randint(0, request.seq_len, (), generator=generator))
                logit = math.log(request.seq_len) + 3
                keys[_slot(case, r, position)] = direction * (logit / (case.scale * case.head_size))
    return keys, values


def _signatures(shape: tuple[int, int, int]) -> torch.Tensor:
    """Digits of (slot, head), base 16, over the channels; other channels hold the slot's parity."""
    slots, num_kv_heads, head_size = shape
    slot = torch.arange(slots)[:, None].expand(slots, num_kv_heads)
    head = torch.arange(num_kv_heads).expand(slots, num_kv_heads)
    digits = torch.stack([slot % 16, slot // 16 % 16, slot // 256 % 16, head, slot % 2], dim=-1) + 1
    return digits[..., torch.arange(head_size).clamp(max=4)].float()


def _edges(request: Request, cache: Cache | None, count: int) -> list[int]:
    """At most `count` positions where masks and tiles go wrong: both ends, then the ends of blocks and of tiles."""
    period = cache.block_size if cache else 16
    near = [0, request.seq_len - 1, request.seq_len - 2, 1]
    for edge in (*range(period, request.seq_len, period), *range(32, request.seq_len, 32)):
        near += [edge - 1, edge]
    inside = [position for position in dict.fromkeys(near) if 0 <= position < request.seq_len]
    return inside[:count]


def _slot(case: Case, r: int, position: int) -> int:
    if case.cache is not None:
        return slot_of(case.requests[r], case.cache, position)
    return case.query_start_loc[r] + position


def _sinks(case: Case, generator: torch.Generator, device: torch.device | str) -> torch.Tensor | None:
    near = torch.randn(case.num_heads, generator=generator)
    far = torch.where(torch.arange(case.num_heads) % 2 == 0, 20.0, 300.0)
    kinds = {"off": torch.full_like(near, -torch.inf), "zero": near * 0, "near": near, "above": far, "below": -far}
    dtype = DTYPES[case.dtype] if case.narrow_sinks else torch.float32
    return kinds[case.sinks].to(device=device, dtype=dtype) if case.sinks else None


def _rows(owned: torch.Tensor, case: Case, device: torch.device | str) -> torch.Tensor:
    """Owned rows, then poison in all rows that no request owns."""
    rows = poison((case.num_rows, *owned.shape[1:]), owned.dtype, device)
    rows[: len(owned)] = owned.to(device)
    return rows


def _longer(rows: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([rows, poison((more, *rows.shape[1:]), rows.dtype, rows.device)])


def _output(case: Case, dtype: torch.dtype, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    width = case.num_heads * case.head_size
    buffer = canary((case.num_rows + 2 * GUARD, width + PADDING), dtype, device)
    out = buffer[GUARD : GUARD + case.num_rows, :width]
    return buffer, out if case.flat_out else out.unflatten(1, (case.num_heads, case.head_size))


def _lse(case: Case, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor | None]:
    buffer = canary((case.num_heads + 2, case.num_rows + 2 * GUARD), torch.float32, device)
    return buffer, buffer[1:-1, GUARD : GUARD + case.num_rows] if case.return_lse else None


def _batch(case: Case, slot_mapping: torch.Tensor | None, device: torch.device | str) -> Batch:
    causal = [request.causal for request in case.requests]
    return Batch(
        query_start_loc=_embedded(case.query_start_loc, torch.int32, 1 << 20, device),
        seq_lens=_embedded([request.seq_len for request in case.requests], torch.int32, 1 << 20, device),
        max_query_len=max((request.query_len for request in case.requests), default=0) + case.slack,
        max_seq_len=max((request.seq_len for request in case.requests), default=0) + case.slack,
        num_actual_tokens=case.num_actual_tokens,
        causal=torch.tensor(causal, dtype=torch.bool, device=device) if case.per_request_causal else any(causal),
        block_table=_block_table(case, case.cache, device) if case.cache else None,
        slot_mapping=slot_mapping,
    )


def _block_table(case: Case, cache: Cache, device: torch.device | str) -> torch.Tensor:
    used = max((len(request.blocks) for request in case.requests), default=0)
    garbage = (*GARBAGE_BLOCKS, cache.num_blocks, 0)
    table = torch.tensor(garbage).repeat(len(case.requests) + 1, used + case.table_padding)[:, : used + case.table_padding + 1]
    for r, request in enumerate(case.requests):
        table[r, : len(request.blocks)] = torch.tensor(request.blocks)
    return table.to(device=device, dtype=torch.int32)[: len(case.requests), : used + case.table_padding]


def _embedded(values: list[int], dtype: torch.dtype, after: int, device: torch.device | str) -> torch.Tensor:
    """A vector inside a longer one, so that reading past its end is harmless to memory and visible in the result."""
    return torch.tensor([*values, *[after] * GUARD], dtype=dtype, device=device)[: len(values)]


def _slots_read(case: Case, cache: Cache) -> set[int]:
    """Slots that some query sees; all keys' slots unless the case says that unseen ones are recycled."""
    slots = set()
    for request in case.requests:
        context_len = request.seq_len - request.query_len
        left, right = case.window
        first, last = 0, request.seq_len - 1
        if case.recycled and case.attn_type is AttentionType.DECODER:
            # rows before position 0 see nothing; the outermost rows that exist see farthest
            lowest, highest = context_len, request.seq_len - 1
            first = max(0, lowest - left) if left >= 0 else 0
            last = min(last, highest + right) if right >= 0 and not request.causal else last
        if request.query_len or not case.recycled:
            slots |= {slot_of(request, cache, position) for position in range(first, last + 1)}
    return slots


def _prefill(raw: torch.Tensor, view: KVCacheView, keys: torch.Tensor, values: torch.Tensor, slots: set[int]) -> None:
    if not slots:
        return
    slot = torch.tensor(sorted(slots), device=raw.device).view(-1, 1, 1)
    head = torch.arange(view.num_kv_heads, device=raw.device).view(-1, 1)
    dim = torch.arange(view.head_size, device=raw.device)
    for kv, contents in enumerate((keys, values)):
        raw[view.element(kv, slot // view.block_size, slot % view.block_size, head, dim)] = contents[slot.flatten()]


def _writes(
    case: Case, cache: Cache, view: KVCacheView, keys: torch.Tensor, values: torch.Tensor, device: torch.device | str
) -> tuple[Write, ...]:
    """This step's write, through the writer's view, and the neighbour's into the blocks that no request owns."""
    writes = []
    if slots := written_slots(case):
        rows = torch.tensor([max(slot, 0) for slot in slots], device=device)
        k, v = (_longer(contents[rows], case.kv_rows_past) for contents in (keys, values))
        for row in (row for row, slot in enumerate(slots) if slot < 0):
            k[row] = v[row] = torch.nan
        writer = dataclasses.replace(view, layout=cache.writer or view.layout)
        writes.append(Write(writer, k, v, _embedded(slots, torch.int64, 0, device)))
    if cache.neighbour is not None:
        owned = {block for request in case.requests for block in request.blocks}
        free = [block for block in range(cache.num_blocks) if block not in owned][:2]
        slots = [block * cache.block_size + offset for block in free for offset in range(cache.block_size)]
        if slots:
            rows = torch.tensor(slots, device=device)
            neighbour = cache_view(case, cache, cache.neighbour)
            mapping = _embedded(slots, torch.int64, 0, device)
            writes.append(Write(neighbour, _longer(keys[rows], 0), _longer(values[rows], 0), mapping))
    return tuple(writes)


def _fuse(
    q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """q, k and v as slices of one tensor of as many rows as the longest has."""
    parts = [part.flatten(1) for part in (q, k, v) if part is not None]
    fused = poison((max(map(len, parts)), sum(part.shape[1] for part in parts)), q.dtype, q.device)
    slices, column = [], 0
    for part, like in zip(parts, (part for part in (q, k, v) if part is not None), strict=True):
        fused[: len(part), column : column + part.shape[1]] = part
        slices.append(fused[: len(part), column : column + part.shape[1]].unflatten(1, like.shape[1:]))
        column += part.shape[1]
    return (slices[0], slices[1], slices[2]) if len(slices) == 3 else (slices[0], k, v)
