"""The KV cache, written and read where its layout's formula says: `KVCacheView.element`, over the raw allocation.

No code here knows the order of the cache's dimensions. In a cache of the model's dtype, bits are moved and never computed with:
a NaN stays the same NaN. A quantized cache holds `value / scale`, as `attn_reference.quantization` defines it. Its scales are

    fixed, per tensor or per KV head                layer.k_scale, layer.v_scale; LATENT: layer.k_scale for both
    per token and KV head, beside the cache         layer.k_scale_cache, layer.v_scale_cache
    per token and KV head, in the cache's own rows  Layout.CONTENT_PACKED_SCALED
    per token and a few dims, in the cache's pages  a latent layout with scales: layout.latent_format

A latent cache stores one row per token, K, whose first `head_size_v` dims are V: `write_latent_cache` writes the row once. With
scales, only the format's first dims are quantized. The others are kept in bfloat16.
"""

import torch
from attn_contract import KVCacheView, Layer, Layout
from attn_contract.latent_format import LatentFormat
from attn_contract.layouts import BYTES_OF_SCALE, K, V
from attn_contract.validation import check_gather_kv_cache, check_write_kv_cache, check_write_latent_cache

from attn_reference.arithmetic import INTEGERS, joined
from attn_reference.quantization import check_number_dtype, dequantize, e8m0_numbers, group_scales, quantize, row_scales


def write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    """Write rows of k and v to the slots of a cache, in place. Scales per token and head are computed, and written too.

    Args:
        k, v: [T_kv, HK, D] and [T_kv, HK, v_head_size] float32, float16 or bfloat16; rows from len(slot_mapping) on are not
            read. The widths differ in CONTENT_PACKED alone.
        kv_cache: of k's dtype or `layer.kv_cache_dtype`, shaped as `layer.layout` says, of any strides.
        layer: its layout, kv_cache_dtype and scales are used.
        slot_mapping: [S] int64, `block * block_size + offset` of each row; -1 writes nothing. S <= T_kv.

    Raises:
        ContractError: an argument contradicts the contract, a slot lies outside the cache or is given twice.
    """
    view = check_write_kv_cache(k, v, kv_cache, layer, slot_mapping, values=True)
    write_rows(k, v, kv_cache, layer, slot_mapping, view)


def write_rows(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, view: KVCacheView
) -> None:
    """`write_kv_cache` of arguments that are checked; view is the cache's."""
    for kv, values in ((K, k), (V, v)):
        _write_part(kv, values, kv_cache, layer, slot_mapping, view)


def write_latent_cache(
    kv_c: torch.Tensor, k_pe: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
) -> None:
    """Write latent vectors and rotated keys to the slots of a latent cache, in place: row `cat(kv_c[s], k_pe[s])`.

    Args:
        kv_c: [T_kv, Lkv] float32, float16 or bfloat16, Lkv = layer.head_size_v: what V is, and K begins with.
        k_pe: [T_kv, R] of kv_c's dtype, Lkv + R = layer.head_size: the rotated part of K. R may be 0.
        kv_cache: [NB, BS, Lkv + R] of kv_c's dtype or `layer.kv_cache_dtype`, or the rows or pages of a latent layout with
            scales, which are computed and written too; blocks and slots may be padded.
        layer: its layout, kv_cache_dtype and k_scale are used.
        slot_mapping: [S] int64, `block * block_size + offset` of each row; -1 writes nothing. S <= T_kv.

    Raises:
        ContractError: an argument contradicts the contract, a slot lies outside the cache or is given twice.
    """
    view = check_write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping, values=True)
    key = joined(kv_c, k_pe)
    if view.layout.latent_format is not None:
        _write_scaled_latent(key, kv_cache, slot_mapping, view, view.layout.latent_format)
    else:
        _write_part(K, key[:, None], kv_cache, layer, slot_mapping, view)


def gather_kv_cache(
    kv_cache: torch.Tensor, layer: Layer, block_table: torch.Tensor, seq_len: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the keys and values of one request.

    Args:
        kv_cache: of `layer.kv_cache_dtype`, or of a float dtype if that is None; shaped as `layer.layout` says, of any strides.
        layer: its layout, kv_cache_dtype and scales are used.
        block_table: [max_blocks] int32, the request's row; entries past `ceil(seq_len / block_size)` are never followed.
        seq_len: the number of keys to read.
        dtype: the dtype of the result: float64, which is exact for every cache, float32, float16 or bfloat16.

    Returns:
        key, value: [seq_len, HK, D] and [seq_len, HK, v_head_size], in dtype. Those of a quantized cache are `stored * scale`,
            rounded once.

    Raises:
        ContractError: an argument contradicts the contract, or the block table leads out of the cache.
    """
    view = check_gather_kv_cache(kv_cache, layer, block_table, seq_len)
    check_number_dtype("dtype", dtype)
    return gather_rows(kv_cache, layer, block_table, seq_len, dtype, view)


def gather_rows(
    kv_cache: torch.Tensor, layer: Layer, block_table: torch.Tensor, seq_len: int, dtype: torch.dtype, view: KVCacheView
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gather_kv_cache` of arguments that are checked; view is the cache's."""
    blocks = block_table[: -(-seq_len // view.block_size)].long()
    if view.layout.latent_format is not None:
        key = _read_scaled_latent(kv_cache, blocks, dtype, view, view.layout.latent_format)[:seq_len]
        return key, key[..., : layer.v_head_size]

    def read(kv: int, size: int) -> torch.Tensor:
        stored = _load(kv_cache, view, kv, blocks, range(size))[:seq_len].view(kv_cache.dtype)
        if layer.kv_cache_dtype is None:
            return stored.to(dtype)
        scales = _fixed_scale(layer, kv)
        if scales is None:
            scales = _read_scales(kv, kv_cache, layer, view, blocks)[:seq_len]
        return dequantize(stored, scales, dtype)

    return read(K, layer.head_size), read(V, layer.v_head_size)


def _write_part(
    kv: int, values: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, view: KVCacheView
) -> None:
    """Write rows of K or of V [T_kv, HK, width], quantized if the cache is."""
    rows = (slot_mapping >= 0).nonzero().flatten()
    slots, values = slot_mapping[rows], values[rows]
    if layer.kv_cache_dtype is not None:
        scales = _fixed_scale(layer, kv)
        if scales is None:
            scales = row_scales(values, layer.kv_cache_dtype)
            _write_scales(scales, kv, kv_cache, layer, view, slots)
        values = quantize(values, scales, layer.kv_cache_dtype)
    _store(kv_cache, view, kv, slots, range(values.shape[-1]), values)


def _write_scaled_latent(
    key: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor, view: KVCacheView, form: LatentFormat
) -> None:
    """Write slots of keys [T_kv, D]: the codes of the first dims, a scale for each group, and the bits of the other dims."""
    rows = (slot_mapping >= 0).nonzero().flatten()
    quantized, kept = key[rows].tensor_split([form.quantized_size(view.head_size, view.head_size_v)], dim=-1)
    groups = quantized.unflatten(1, (-1, form.scale_dims))
    scales, numbers = group_scales(groups, kv_cache.dtype, form.scale_dtype)
    codes = quantize(groups, numbers, kv_cache.dtype).flatten(1)
    parts = {"codes": codes, "scales": scales.squeeze(-1), "kept": kept.contiguous()}
    stored = {name: part.view(torch.uint8) for name, part in parts.items()}
    stored["scales"] = torch.nn.functional.pad(stored["scales"], (0, form.padding))
    slot = torch.cat([stored[name] for name in _sizes_of_parts(view, form)], dim=-1)
    for plane in _planes(view, form):
        _store(kv_cache, view, K, slot_mapping[rows], plane, slot[:, None, plane.start : plane.stop])


def _read_scaled_latent(
    kv_cache: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype, view: KVCacheView, form: LatentFormat
) -> torch.Tensor:
    """[len(blocks) * BS, 1, D] in dtype: the keys in all slots of some blocks."""
    slot = torch.cat([_load(kv_cache, view, K, blocks, plane) for plane in _planes(view, form)], dim=-1)
    sizes = _sizes_of_parts(view, form)
    # cloned: `contiguous` keeps the stride of a dimension of one element, which may be too odd for a wider type
    parts = (part.clone(memory_format=torch.contiguous_format) for part in slot.split(list(sizes.values()), dim=-1))
    part = dict(zip(sizes, parts, strict=True))
    groups = part["codes"].view(kv_cache.dtype).unflatten(-1, (-1, form.scale_dims))
    stored = part["scales"][..., : sizes["scales"] - form.padding]
    numbers = stored.view(torch.float32) if form.scale_dtype == torch.float32 else e8m0_numbers(stored)
    quantized = dequantize(groups, numbers[..., None], dtype).flatten(-2)
    if sizes["kept"] == 0:
        return quantized
    return joined(quantized, part["kept"].view(torch.bfloat16).to(dtype))


def _sizes_of_parts(view: KVCacheView, form: LatentFormat) -> dict[str, int]:
    """Bytes of the parts of a slot in their order: see `LatentFormat`."""
    quantized = form.quantized_size(view.head_size, view.head_size_v)
    codes, scales = {"codes": quantized}, {"scales": form.scales_size(view.head_size, view.head_size_v)}
    kept = {"kept": view.row_size - quantized - scales["scales"]}
    return codes | kept | scales if form.scales_apart else codes | scales | kept


def _planes(view: KVCacheView, form: LatentFormat) -> tuple[range, range]:
    """The elements of a slot that are its row, and those that lie after all rows, if scales lie apart: none lie so else."""
    end_of_row = form.data_size(view.head_size, view.head_size_v) if form.scales_apart else view.row_size
    return range(end_of_row), range(end_of_row, view.row_size)


def _fixed_scale(layer: Layer, kv: int) -> torch.Tensor | None:
    """[1, 1] or [HK, 1], which broadcasts to [tokens, HK, D]; None where each token has its own scale."""
    scale = layer.k_scale if kv == K or layer.layout is Layout.LATENT else layer.v_scale
    return None if scale is None else scale.reshape(-1, 1)


def _write_scales(
    scales: torch.Tensor, kv: int, kv_cache: torch.Tensor, layer: Layer, view: KVCacheView, slots: torch.Tensor
) -> None:
    """Write [len(slots), HK, 1] float32 where the layer keeps the scales of K or of V."""
    scale_cache = (layer.k_scale_cache, layer.v_scale_cache)[kv]
    if scale_cache is None:
        _store(kv_cache, view, kv, slots, _inline_scale(view), scales)
    else:
        scale_cache[slots // view.block_size, slots % view.block_size] = scales.squeeze(-1)


def _read_scales(kv: int, kv_cache: torch.Tensor, layer: Layer, view: KVCacheView, blocks: torch.Tensor) -> torch.Tensor:
    """[len(blocks) * BS, HK, 1] float32: the scales of K or of V in all slots of some blocks."""
    scale_cache = (layer.k_scale_cache, layer.v_scale_cache)[kv]
    if scale_cache is None:
        return _load(kv_cache, view, kv, blocks, _inline_scale(view)).view(torch.float32)
    return scale_cache[blocks].flatten(0, 1).unsqueeze(-1)


def _inline_scale(view: KVCacheView) -> range:
    """The dims of a row that hold its scale, one byte each: they follow the dims of the key or value."""
    return range(view.head_size, view.head_size + BYTES_OF_SCALE)


def _load(kv_cache: torch.Tensor, view: KVCacheView, kv: int, blocks: torch.Tensor, dims: range) -> torch.Tensor:
    """[len(blocks) * BS, HK, len(dims)] integers of the cache's width: the bits of K or of V in all slots of some blocks."""
    return _elements(kv_cache, view, kv, dims).index_select(0, blocks).flatten(0, 2).flatten(-2)


def _store(kv_cache: torch.Tensor, view: KVCacheView, kv: int, slots: torch.Tensor, dims: range, values: torch.Tensor) -> None:
    """Write the bits of values [len(slots), HK, len(dims)] to K or V. As floats, the bits of a NaN might change."""
    elements = _elements(kv_cache, view, kv, dims)
    x = elements.shape[-1]
    index = slots // view.block_size, slots % view.block_size // x, slots % x
    elements[index] = values.view(elements.dtype).unflatten(-1, elements.shape[-2:])


def _elements(kv_cache: torch.Tensor, view: KVCacheView, kv: int, dims: range) -> torch.Tensor:
    """The dims of K or of V in every slot, as integers in the cache's own memory: [NB, BS / x, x, HK, len(dims) / x, x].

    Slots and dims are counted in units of x elements, so that `view.element` is linear in each of the six indices: one step of
    an index always moves the element by as much, which is the stride of its dimension. Only packed layouts have an x above 1.
    """
    x = view.x if view.layout.is_x_packed else 1
    first = view.element(kv, 0, 0, 0, dims.start)
    strides = [
        view.element(kv, block, slot, head, dims.start + dim) - first
        for block, slot, head, dim in ((1, 0, 0, 0), (0, x, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, x), (0, 0, 0, 1))
    ]
    sizes = (view.num_blocks, view.block_size // x, x, view.num_kv_heads, len(dims) // x, x)
    return _allocation(kv_cache).as_strided(sizes, strides, first)


def _allocation(kv_cache: torch.Tensor) -> torch.Tensor:
    """The whole allocation under a view, as integers of the width of the cache's elements."""
    elements = kv_cache.untyped_storage().nbytes() // kv_cache.element_size()
    return kv_cache.as_strided((elements,), (1,), 0).view(INTEGERS[kv_cache.element_size()])
