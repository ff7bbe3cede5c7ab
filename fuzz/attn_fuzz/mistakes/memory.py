"""Mistakes in where keys and values are read: head mapping, block tables, strides, and scales of a quantized cache."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from attn_contract import FLOAT8_DTYPES, KVCacheView
from attn_fuzz.mistakes.keys import TILES
from attn_fuzz.mistakes.mistake import Change, about, mistake
from attn_fuzz.mistakes.part import Part

_Table = Callable[[torch.Tensor, int, Part], torch.Tensor | None]
_Scales = dict[str, torch.Tensor]


def _heads(of: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Change:
    """Query heads [H] that read other KV heads: `of(h, H, HK)`."""

    def changed(part: Part) -> Part | None:
        layer = part.layer
        h, heads, kv_heads = torch.arange(layer.num_heads), layer.num_heads, layer.num_kv_heads
        chosen = of(h, heads, kv_heads).clamp(0, kv_heads - 1)
        if kv_heads == 1 or torch.equal(chosen, h // (heads // kv_heads)):
            return None
        # only the bound asks for scales, and numbers of scale 1 have the same roundings
        ones = {"q_scale": torch.ones(1), "k_scale": torch.ones(1), "v_scale": torch.ones(1)}
        ones |= {f"{name}_scale_cache": torch.ones(1, 1, heads) for name in "kv"}
        scales = {name: one for name, one in ones.items() if getattr(layer, name) is not None}
        other = part.having(key=part.request.key[:, chosen], value=part.request.value[:, chosen])
        return dataclasses.replace(other, layer=dataclasses.replace(layer, num_kv_heads=heads, **scales))

    return changed


def _dense(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Change:
    """Other keys and values of the same shapes: `change(key, value)` of [k, HK, D] each."""

    def changed(part: Part) -> Part | None:
        before = part.request.key, part.request.value
        key, value = change(*before)
        return part.having(key=key, value=value) if (key.shape, value.shape) == (before[0].shape, before[1].shape) else None

    return changed


def _table(change: _Table) -> Change:
    """The row of the block table that `change(table, r, part)` gives."""

    def changed(part: Part) -> Part | None:
        table = part.call.batch.block_table
        row = None if table is None or part.view is None else change(table, part.index, part)
        return None if row is None else part.reading(table=row)

    return changed


def _row(of: Callable[[int, Part], int]) -> _Table:
    def row(table: torch.Tensor, r: int, part: Part) -> torch.Tensor | None:
        other = of(r, part) % len(table)
        return table[other] if other != r else None

    return row


def _identity(table: torch.Tensor) -> torch.Tensor:
    return torch.arange(table.shape[1], dtype=table.dtype)


def _tile_in_one_block(size: int, *, of: str = "kv") -> Change:
    """The block of a tile's first key holds all keys of the tile, for K, V or both."""

    def changed(part: Part) -> Part | None:
        if part.view is None or part.view.block_size >= size:
            return None
        position, block_size = torch.arange(len(part.request.key)), part.view.block_size
        chosen = position // size * size // block_size * block_size + position % block_size
        value = part.request.value[chosen]
        return part.having(value=value) if of == "v" else part.having(key=part.request.key[chosen], value=value)

    return changed


def _slot_by_mask(part: Part) -> Part | None:
    if part.view is None:
        return None
    size, position = part.view.block_size, torch.arange(len(part.request.key))
    key, value = part.gathered(num_keys=len(part.blocks) * size)
    chosen = position // size * size + (position & (size - 1))
    return None if torch.equal(chosen, position) else part.having(key=key[chosen], value=value[chosen])


def _view(strides: Callable[[KVCacheView], dict[str, int]], *, of: str = "kv") -> Change:
    """The cache read by the strides that `strides(view)` gives, for K, V or both."""

    def changed(part: Part) -> Part | None:
        other = {} if part.view is None else strides(part.view)
        if all(getattr(part.view, name) == stride for name, stride in other.items()):
            return None
        key, value = part.gathered(view=other)
        return part.having(value=value) if of == "v" else part.having(key=key, value=value)

    return changed


def _swapped(view: KVCacheView) -> dict[str, int]:
    """The strides of slots and heads as if the other of the two were the outer one."""
    if view.slot_stride == view.head_stride or not view.head_stride:
        return {}
    if view.slot_stride > view.head_stride:
        return {"slot_stride": view.head_stride, "head_stride": view.head_stride * view.block_size}
    return {"slot_stride": view.slot_stride * view.num_kv_heads, "head_stride": view.slot_stride}


def _page(view: KVCacheView) -> int:
    return view.block_size * view.num_kv_heads * view.row_size


def _of_dense(view: KVCacheView) -> dict[str, int]:
    sizes = ("num_blocks", "block_size", "num_kv_heads", "head_size", "itemsize", "head_size_v")
    given: Any = {name: getattr(view, name) for name in sizes}
    dense = KVCacheView.dense(view.layout, **given)
    return {name: getattr(dense, name) for name in ("kv_stride", "block_stride", "slot_stride", "head_stride")}


def _v_by_strides_of_k(dims: int) -> Change:
    """V of a call without a cache is read by K's strides of rows, or of rows and heads."""

    def changed(part: Part) -> Part | None:
        k, v = part.call.k, part.call.v
        if part.call.kv_cache is not None or k is None or v is None or k.stride()[:dims] == v.stride()[:dims]:
            return None
        start = int(part.call.batch.query_start_loc[part.index])
        rows = v.as_strided(v.shape, (*k.stride()[:dims], *v.stride()[dims:]), v.storage_offset())
        return part.having(value=rows[start : start + len(part.request.value)].double())

    return changed


def _scales(change: Callable[[_Scales], _Scales]) -> Change:
    """A quantized cache read with the scales that `change(scales)` gives, by name."""

    def changed(part: Part) -> Part | None:
        layer = part.call.layer
        scales = {name: tensor for name, tensor in layer.tensors.items() if name.startswith(("k_scale", "v_scale"))}
        other = change(scales) if layer.kv_cache_dtype is not None and scales else {}
        return part.reading(layer=other) if other else None

    return changed


def _lost(*letters: str) -> Change:
    return _scales(lambda scales: {name: torch.ones_like(scale) for name, scale in scales.items() if name[0] in letters})


def _taken(of: dict[str, str]) -> Change:
    """Scales that are taken from another name: those of K (k) and of V (v)."""
    return _scales(lambda scales: {n: scales[of[n[0]] + n[1:]] for n in scales if n[0] in of and of[n[0]] + n[1:] in scales})


def _of_heads(heads: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Scales of other KV heads, which are the last dim."""
    return _scales(lambda scales: {name: heads(scale).contiguous() for name, scale in scales.items() if scale.shape[-1] > 1})


def _times(factor: float) -> Change:
    """Float8 numbers of another type."""
    return lambda part: (
        part.having(key=part.request.key * factor, value=part.request.value * factor)
        if part.layer.kv_cache_dtype in FLOAT8_DTYPES
        else None
    )


def _unsigned(part: Part) -> Part | None:
    """Elements of int8 as numbers from 0 to 255: a number below 0 is 256 steps of its scale too large."""
    caches = [cache for cache in (part.call.layer.k_scale_cache, part.call.layer.v_scale_cache) if cache is not None]
    if part.layer.kv_cache_dtype is not torch.int8 or not caches or part.view is None:
        return None
    position = torch.arange(len(part.request.key))
    block, slot = part.blocks[position // part.view.block_size].long(), position % part.view.block_size
    steps = (256 * cache[block, slot].double()[..., None] for cache in caches)
    key, value = (
        torch.where(x * step < 0, x + step, x) for x, step in zip((part.request.key, part.request.value), steps, strict=True)
    )
    return part.having(key=key, value=value)


MISTAKES = (
    *about(
        "num_kv_heads",
        mistake("query head h reads KV head h % HK and not h // group", _heads(lambda h, heads, kv: h % kv)),
        mistake("all query heads read the first KV head", _heads(lambda h, heads, kv: 0 * h)),
        mistake("query head h reads KV head h", _heads(lambda h, heads, kv: h)),
        mistake("query heads read the KV heads in the reverse order", _heads(lambda h, heads, kv: kv - 1 - h // (heads // kv))),
        mistake("query heads read the KV head after theirs", _heads(lambda h, heads, kv: (h // (heads // kv) + 1) % kv)),
        mistake("the last query head of a group reads the next KV head", _heads(lambda h, heads, kv: (h + 1) // (heads // kv))),
        mistake("V is read from the next KV head", _dense(lambda key, value: (key, value.roll(-1, 1)))),
    ),
    *about(
        "keys and values",
        mistake("V is read where K lies", _dense(lambda key, value: (key, key))),
        mistake("K is read where V lies", _dense(lambda key, value: (value, value))),
        mistake("K and V are exchanged", _dense(lambda key, value: (value, key))),
        mistake("V is read one key further", _dense(lambda key, value: (key, value.roll(-1, 0)))),
        mistake("V is read one key before", _dense(lambda key, value: (key, value.roll(1, 0)))),
    ),
    *about(
        "block_table",
        mistake("a request reads by the block table of the request before it", _table(_row(lambda r, part: r - 1))),
        mistake("a request reads by the block table of the request after it", _table(_row(lambda r, part: r + 1))),
        mistake("every request reads by the first one's block table", _table(_row(lambda r, part: 0))),
        mistake(
            "the row of the block table is that of the request's first query, as if each query had a row",
            _table(_row(lambda r, part: part.request.rows.start)),
        ),
        mistake("the block table is read one entry ahead", _table(lambda table, r, part: table[r].roll(-1))),
        mistake(
            "all keys are read from the request's first block", _table(lambda table, r, part: table[r, :1].expand_as(table[r]))
        ),
        mistake(
            "the block table is not followed: the blocks are taken to lie one after the other",
            _table(lambda table, r, part: table[r, :1] + _identity(table)),
        ),
        mistake(
            "the block table is not followed: the first blocks of the cache are taken for each request's",
            _table(lambda table, r, part: _identity(table)),
        ),
        mistake("a tile of keys is taken to lie in one block", *(_tile_in_one_block(size) for size in TILES)),
        mistake("V of a tile of keys is taken to lie in one block", *(_tile_in_one_block(size, of="v") for size in TILES)),
        mistake("the slot in a block is found by a bit mask, right for a power of two alone", _slot_by_mask),
    ),
    *about(
        "strides",
        mistake("the strides of slots and heads are exchanged (NHD for HND)", _view(_swapped)),
        mistake(
            "inside a block, rows of K and V are taken to lie densely",
            _view(lambda view: {"slot_stride": view.num_kv_heads * view.row_size, "head_stride": view.row_size}),
            _view(lambda view: {"slot_stride": view.row_size, "head_stride": view.block_size * view.row_size}),
        ),
        mistake("the strides of the cache are taken for dense ones", _view(_of_dense)),
        mistake("V's strides are taken for dense ones", _view(_of_dense, of="v")),
        mistake(
            "K and V of a block are taken to lie side by side, and blocks one after the other",
            _view(lambda view: {"kv_stride": _page(view), "block_stride": 2 * _page(view)}),
        ),
        mistake(
            "K and V are taken to lie in two planes",
            _view(lambda view: {"kv_stride": view.num_blocks * _page(view), "block_stride": _page(view)}),
        ),
        mistake("the stride of blocks is half of what it is", _view(lambda view: {"block_stride": view.block_stride // 2})),
        mistake("the stride of blocks is twice what it is", _view(lambda view: {"block_stride": 2 * view.block_stride})),
        mistake(
            "V is looked for at another place after K: as many elements as V has dims, half of both rows, or a page",
            _view(lambda view: {"kv_stride": view.row_sizes[1]}, of="v"),
            _view(lambda view: {"kv_stride": sum(view.row_sizes) // 2}, of="v"),
            _view(lambda view: {"kv_stride": _page(view)}, of="v"),
        ),
        mistake("V is read by the strides of K", _v_by_strides_of_k(1), _v_by_strides_of_k(2)),
    ),
    *about(
        "k_scale, v_scale",
        mistake("the scales of the quantized cache are left out", _lost("k", "v")),
        mistake("the scale of K is left out", _lost("k")),
        mistake("the scale of V is left out", _lost("v")),
        mistake("K has the scale of V, and V that of K", _taken({"k": "v", "v": "k"})),
        mistake("V has the scale of K", _taken({"v": "k"})),
        mistake("K has the scale of V", _taken({"k": "v"})),
        mistake(
            "the scales of the cache are applied twice",
            _scales(lambda scales: {name: scale * scale for name, scale in scales.items()}),
        ),
        mistake("K and V have the scales of the first KV head", _of_heads(lambda scale: scale[..., :1].expand_as(scale))),
        mistake("K and V have the scales of the KV head after it", _of_heads(lambda scale: scale.roll(-1, -1))),
    ),
    *about(
        "kv_cache_dtype",
        mistake("e4m3fnuz is taken for e4m3fn: keys and values are twice as large", _times(2.0)),
        mistake("e4m3fn is taken for e4m3fnuz: keys and values are half as large", _times(0.5)),
        mistake("bytes of int8 are read without a sign", _unsigned),
    ),
)
