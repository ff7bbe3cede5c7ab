"""Mistakes in where keys and values are read: head mapping, block tables, strides, and scales of a quantized cache."""

import dataclasses
from typing import Any

import torch
from attn_contract import Layout
from attn_fuzz.explain.part import Part
from attn_fuzz.explain.variants.variant import Change, Variant


def _heads(of: Any) -> Change:
    """Query heads that read other KV heads: `of(h, H, HK)` [H]."""

    def changed(part: Part) -> Part | None:
        layer = part.layer
        heads, kv_heads = layer.num_heads, layer.num_kv_heads
        h = torch.arange(heads)
        chosen = of(h, heads, kv_heads).clamp(0, kv_heads - 1)
        if torch.equal(chosen, h // (heads // kv_heads)) or (layer.layout is not None and layer.layout.has_latent_value):
            return None
        other = part.having(key=part.request.key[:, chosen], value=part.request.value[:, chosen])
        scales = {name: torch.ones(1) for name in ("k_scale", "v_scale") if getattr(layer, name) is not None}
        caches = dict.fromkeys(("k_scale_cache", "v_scale_cache"))
        if layer.k_scale_cache is not None:
            caches = {name: torch.ones(1, 1, heads) for name in caches}
        widened = dataclasses.replace(layer, num_kv_heads=heads, **scales, **caches)
        return dataclasses.replace(other, layer=widened)

    return changed


def _values(change: Any) -> Change:
    """Other values: `change(key, value)` of [k, HK, D] each."""

    def changed(part: Part) -> Part | None:
        value = change(part.request.key, part.request.value)
        return part.having(value=value) if value.shape == part.request.value.shape else None

    return changed


def _key_is_value(part: Part) -> Part | None:
    same = part.request.key.shape == part.request.value.shape
    return part.having(key=part.request.value) if same else None


def _exchanged(part: Part) -> Part | None:
    same = part.request.key.shape == part.request.value.shape
    return part.having(key=part.request.value, value=part.request.key) if same else None


def _table(change: Any) -> Change:
    """The row of the block table that `change(table, r, part)` gives, of a request with keys."""

    def changed(part: Part) -> Part | None:
        table = part.call.batch.block_table
        if table is None or part.view is None:
            return None
        row = change(table, part.index, part)
        return None if row is None else part.reading(table=row)

    return changed


def _row(offset: int) -> Any:
    def row(table: torch.Tensor, r: int, part: Part) -> torch.Tensor | None:
        return table[r + offset] if 0 <= r + offset < len(table) else None

    return row


def _row_of_first_query(table: torch.Tensor, r: int, part: Part) -> torch.Tensor | None:
    row = part.request.rows.start
    return table[row] if row != r and row < len(table) else None


def _slot_by_mask(part: Part) -> Part | None:
    """Each position's slot in its block is `position & (block_size - 1)`."""
    if part.view is None:
        return None
    size = part.view.block_size
    if size & (size - 1) == 0:
        return None
    key, value = part.gathered(num_keys=len(part.blocks) * size)
    position = torch.arange(len(part.request.key))
    chosen = position // size * size + (position & (size - 1))
    return part.having(key=key[chosen], value=value[chosen])


def _view(strides: Any, *, of: str = "both") -> Change:
    """Another reading of the cache, by strides that `strides(view)` gives, of K, of V or of both."""

    def changed(part: Part) -> Part | None:
        if part.view is None:
            return None
        other = strides(part.view)
        if other is None or all(getattr(part.view, name) == stride for name, stride in other.items()):
            return None
        key, value = part.gathered(view=other)
        return part.having(key=part.request.key if of == "v" else key, value=part.request.value if of == "k" else value)

    return changed


def _swapped(view: Any) -> dict[str, int] | None:
    if "slot" not in view.layout.dims or "head" not in view.layout.dims:
        return None
    row = view.slot_stride // view.num_kv_heads if view.slot_stride > view.head_stride else view.head_stride // view.block_size
    if view.slot_stride > view.head_stride:  # from tokens outside of heads to heads outside of tokens
        return {"slot_stride": row, "head_stride": row * view.block_size}
    return {"slot_stride": row * view.num_kv_heads, "head_stride": row}


def _page(view: Any) -> int:
    return view.block_size * view.num_kv_heads * view.row_size


def _dense(view: Any) -> dict[str, int]:
    dense = view.dense(
        view.layout,
        num_blocks=view.num_blocks,
        block_size=view.block_size,
        num_kv_heads=view.num_kv_heads,
        head_size=view.head_size,
        itemsize=view.itemsize,
        head_size_v=view.head_size_v,
    )
    return {name: getattr(dense, name) for name in ("kv_stride", "block_stride", "slot_stride", "head_stride")}


def _scales(change: Any) -> Change:
    """A quantized cache read with the scales that `change(layer)` gives, by name."""

    def changed(part: Part) -> Part | None:
        layer = part.call.layer
        if layer.kv_cache_dtype is None or part.view is None:
            return None
        scales = change({name: tensor for name, tensor in layer.tensors.items() if name.startswith(("k_scale", "v_scale"))})
        if not scales:
            return None
        key, value = part.gathered(layer=scales)
        return part.having(key=key, value=value)

    return changed


def _lost(*names: str) -> Any:
    return lambda scales: {name: torch.ones_like(scale) for name, scale in scales.items() if name.startswith(names)}


def _exchanged_scales(scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: scales[other] for name in scales if (other := ("v" if name[0] == "k" else "k") + name[1:]) in scales}


def _both(letter: str) -> Any:
    """Keys and values have the scales of one of them."""
    return lambda scales: {name: scales[letter + name[1:]] for name in scales if letter + name[1:] in scales}


def _of_first_head(scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: scale[..., :1].expand_as(scale).contiguous() for name, scale in scales.items() if scale.dim()}


def _float8_times(number: float) -> Change:
    def changed(part: Part) -> Part | None:
        if part.layer.kv_cache_dtype not in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
            return None
        return part.having(key=part.request.key * number, value=part.request.value * number)

    return changed


def _unsigned(part: Part) -> Part | None:
    """The elements of an int8 cache as numbers from 0 to 255: a number below 0 is 256 steps too large."""
    if part.layer.kv_cache_dtype is not torch.int8 or part.view is None:
        return None
    ones = {name: torch.ones_like(scale) for name, scale in part.call.layer.tensors.items() if name.endswith("_scale_cache")}
    if part.layer.layout is Layout.CONTENT_PACKED_SCALED or not ones:
        return None
    codes = part.gathered(layer=ones)
    scaled = (part.request.key, part.request.value)
    steps = (torch.where(code == 0, 0.0, number / code) for code, number in zip(codes, scaled, strict=True))
    steps = (step.abs().amax(-1, keepdim=True) for step in steps)
    key, value = (number + 256 * step * (code < 0) for number, step, code in zip(scaled, steps, codes, strict=True))
    return part.having(key=key, value=value)


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


VARIANTS = (
    Variant.of("heads-remainder", "query head h reads KV head h % HK and not h // group", _heads(lambda h, heads, kv: h % kv)),
    Variant.of("heads-first", "all query heads read the first KV head", _heads(lambda h, heads, kv: 0 * h)),
    Variant.of("heads-own", "query head h reads KV head h", _heads(lambda h, heads, kv: h)),
    Variant.of(
        "heads-reversed",
        "query heads read the KV heads in the reverse order",
        _heads(lambda h, heads, kv: kv - 1 - h // (heads // kv)),
    ),
    Variant.of(
        "heads-next", "query heads read the KV head behind theirs", _heads(lambda h, heads, kv: (h // (heads // kv) + 1) % kv)
    ),
    Variant.of(
        "heads-1-ahead",
        "the last query head of a group reads the next KV head",
        _heads(lambda h, heads, kv: (h + 1) // (heads // kv)),
    ),
    Variant.of("v-of-next-head", "V is read from the KV head behind", _values(lambda key, value: value.roll(-1, 1))),
    Variant.of(
        "v-of-first-head", "V is read from the first KV head", _values(lambda key, value: value[:, :1].expand_as(value))
    ),
    Variant.of("v-is-k", "V is read where K lies", _values(lambda key, value: key)),
    Variant.of("k-is-v", "K is read where V lies", _key_is_value),
    Variant.of("k-and-v-exchanged", "K and V are exchanged", _exchanged),
    Variant.of("v-of-next-key", "V is read one key further", _values(lambda key, value: value.roll(-1, 0))),
    Variant.of("v-of-key-before", "V is read one key before", _values(lambda key, value: value.roll(1, 0))),
    Variant.of("table-of-request-before", "a request reads by the block table of the request before it", _table(_row(-1))),
    Variant.of("table-of-request-behind", "a request reads by the block table of the request behind it", _table(_row(1))),
    Variant.of(
        "table-of-first-request",
        "every request reads by the first one's block table",
        _table(lambda table, r, part: table[0] if r else None),
    ),
    Variant.of(
        "table-of-first-query",
        "the row of the block table is that of the request's first query, as if each query had a row",
        _table(_row_of_first_query),
    ),
    Variant.of("table-1-ahead", "the block table is read one entry ahead", _table(lambda table, r, part: table[r].roll(-1))),
    Variant.of(
        "table-first-block",
        "all keys are read from the request's first block",
        _table(lambda table, r, part: table[r, :1].expand_as(table[r])),
    ),
    Variant.of(
        "table-ignored",
        "the block table is followed for the first block alone: the blocks are taken to lie one after the other",
        _table(lambda table, r, part: table[r, :1] + torch.arange(table.shape[1], dtype=table.dtype)),
    ),
    Variant.of(
        "table-identity",
        "the block table is not followed: block i is taken for the i-th",
        _table(lambda table, r, part: torch.arange(table.shape[1], dtype=table.dtype)),
    ),
    Variant.of(
        "slot-by-mask", "the slot in a block is found by a bit mask, which is right for a power of two alone", _slot_by_mask
    ),
    Variant.of("strides-slots-heads", "the strides of slots and heads are exchanged (NHD for HND)", _view(_swapped)),
    Variant.of("strides-dense", "the strides of the cache are taken for dense ones", _view(_dense)),
    Variant.of("v-strides-dense", "V's strides are taken for dense ones", _view(_dense, of="v")),
    Variant.of(
        "strides-beside",
        "K and V of a block are taken to lie side by side, and blocks one after the other",
        _view(lambda view: {"kv_stride": _page(view), "block_stride": 2 * _page(view)}),
    ),
    Variant.of(
        "strides-planes",
        "K and V are taken to lie in two planes",
        _view(lambda view: {"kv_stride": view.num_blocks * _page(view), "block_stride": _page(view)}),
    ),
    Variant.of(
        "block-stride-half",
        "the stride of blocks is half of what it is",
        _view(lambda view: {"block_stride": view.block_stride // 2}),
    ),
    Variant.of("block-stride-page", "the stride of blocks is a page of K", _view(lambda view: {"block_stride": _page(view)})),
    Variant.of(
        "block-stride-double",
        "the stride of blocks is twice what it is",
        _view(lambda view: {"block_stride": 2 * view.block_stride}),
    ),
    Variant.of(
        "v-at-value-size",
        "V is looked for as many elements behind K as V has dims",
        _view(lambda view: {"kv_stride": view.row_sizes[1]}, of="v"),
    ),
    Variant.of(
        "v-at-half-a-row",
        "V is looked for in the middle of K's and V's row",
        _view(lambda view: {"kv_stride": sum(view.row_sizes) // 2}, of="v"),
    ),
    Variant.of("v-a-page-behind", "V is looked for a page behind K", _view(lambda view: {"kv_stride": _page(view)}, of="v")),
    Variant.of("v-by-strides-of-k", "V is read by the strides of K", _v_by_strides_of_k(1), _v_by_strides_of_k(2)),
    Variant.of("scales-lost", "the scales of the quantized cache are left out", _scales(_lost("k", "v"))),
    Variant.of("k-scale-lost", "the scale of K is left out", _scales(_lost("k"))),
    Variant.of("v-scale-lost", "the scale of V is left out", _scales(_lost("v"))),
    Variant.of("scales-exchanged", "K has the scale of V, and V that of K", _scales(_exchanged_scales)),
    Variant.of("v-scale-of-k", "V has the scale of K", _scales(_both("k"))),
    Variant.of("k-scale-of-v", "K has the scale of V", _scales(_both("v"))),
    Variant.of("scales-of-first-head", "all heads have the first head's scales", _scales(_of_first_head)),
    Variant.of(
        "scales-squared",
        "the scales of the cache are applied twice",
        _scales(lambda scales: {name: scale * scale for name, scale in scales.items()}),
    ),
    Variant.of(
        "float8-doubled", "bytes of e4m3fnuz are taken for e4m3fn: keys and values are twice as large", _float8_times(2.0)
    ),
    Variant.of(
        "float8-halved", "bytes of e4m3fn are taken for e4m3fnuz: keys and values are half as large", _float8_times(0.5)
    ),
    Variant.of("int8-unsigned", "bytes of int8 are read without a sign", _unsigned),
)
