"""The KV cache, written and read through one formula: `KVCacheView.element` over the raw allocation.

No index here knows the order of the cache's dimensions. In a cache of the model's dtype bits are moved, never computed with: a
NaN stays the same NaN. A quantized cache holds `value / scale`, as `attn_reference.quantization` defines it, with scales that
are fixed, per tensor or KV head (`layer.k_scale`, `layer.v_scale`), or that each token has for itself in each KV head, beside
the cache (`layer.k_scale_cache`, `layer.v_scale_cache`) or in the cache's own rows (Layout.CONTENT_PACKED_SCALED).
"""

import torch
from attn_contract import KVCacheView, Layer
from attn_contract.layouts import K, V
from attn_contract.validation import check_write_kv_cache

from attn_reference.quantization import dequantize, quantize, row_scales

BYTES_OF_SCALE = torch.float32.itemsize
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def write_kv_cache(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor) -> None:
    """Write rows of k and v to the slots of a cache, in place, and with them their scales if each has its own.

    Args:
        k, v: [T_kv, HK, D] float32, float16 or bfloat16; rows from len(slot_mapping) on are not read.
        kv_cache: of k's dtype or `layer.kv_cache_dtype`, shaped as `layer.layout` says, of any strides.
        layer: its layout, kv_cache_dtype and scales count.
        slot_mapping: [S] int64, `block * block_size + offset` of each row; -1 writes nothing. S <= T_kv.

    Raises:
        ContractError: an argument contradicts the contract, a slot lies outside the cache or is given twice.
    """
    view = check_write_kv_cache(k, v, kv_cache, layer, slot_mapping, values=True)
    rows = (slot_mapping >= 0).nonzero().flatten()
    slots = slot_mapping[rows]
    for kv, values in ((K, k[rows]), (V, v[rows])):
        if layer.kv_cache_dtype is not None:
            scales = _fixed_scale(layer, kv)
            if scales is None:
                scales = row_scales(values, layer.kv_cache_dtype)
                _write_scales(scales, kv, kv_cache, layer, view, slots)
            values = quantize(values, scales, layer.kv_cache_dtype)
        # as integers: moving a float may change the bits of its NaN
        integer = _INTEGERS[values.element_size()]
        _allocation(kv_cache, integer)[_elements(view, kv, slots)] = values.view(integer)


def gather_kv_cache(
    kv_cache: torch.Tensor, layer: Layer, block_table: torch.Tensor, seq_len: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one request's keys and values.

    Args:
        kv_cache: shaped as `layer.layout` says, of any strides.
        layer: its layout, kv_cache_dtype and scales count.
        block_table: [max_blocks] int32, the request's row; entries past `ceil(seq_len / block_size)` are never followed.
        seq_len: how many keys to read.
        dtype: of what is returned; float64 is exact for every cache.

    Returns:
        key, value: [seq_len, HK, D] each, in dtype; a quantized cache's are `stored * scale`, rounded once.

    Raises:
        ContractError: the cache is no view of this layout.
    """
    assert layer.layout is not None
    view = KVCacheView.of(kv_cache, layer.layout, num_kv_heads=layer.num_kv_heads, head_size=layer.head_size)
    positions = torch.arange(seq_len, device=kv_cache.device)
    blocks = block_table.long()[positions // view.block_size]
    slots = blocks * view.block_size + positions % view.block_size

    def read(kv: int) -> torch.Tensor:
        elements = _elements(view, kv, slots)
        if layer.kv_cache_dtype is None:
            return _allocation(kv_cache, kv_cache.dtype)[elements].to(dtype)
        stored = _allocation(kv_cache, torch.uint8)[elements].view(layer.kv_cache_dtype)
        scales = _fixed_scale(layer, kv)
        if scales is None:
            scales = _read_scales(kv, kv_cache, layer, view, slots)
        return dequantize(stored, scales, dtype)

    return read(K), read(V)


def _fixed_scale(layer: Layer, kv: int) -> torch.Tensor | None:
    """[1, 1] or [HK, 1], which broadcasts to [tokens, HK, D]; None where each token has its own."""
    scale = (layer.k_scale, layer.v_scale)[kv]
    return None if scale is None else scale.reshape(-1, 1)


def _write_scales(
    scales: torch.Tensor, kv: int, kv_cache: torch.Tensor, layer: Layer, view: KVCacheView, slots: torch.Tensor
) -> None:
    """Write [len(slots), HK, 1] float32 to where the layer keeps the scales of K or of V."""
    scale_cache = (layer.k_scale_cache, layer.v_scale_cache)[kv]
    if scale_cache is None:
        _allocation(kv_cache, torch.uint8)[_inline_scales(view, kv, slots)] = scales.view(torch.uint8)
    else:
        scale_cache[slots // view.block_size, slots % view.block_size] = scales.squeeze(-1)


def _read_scales(kv: int, kv_cache: torch.Tensor, layer: Layer, view: KVCacheView, slots: torch.Tensor) -> torch.Tensor:
    """[len(slots), HK, 1] float32."""
    scale_cache = (layer.k_scale_cache, layer.v_scale_cache)[kv]
    if scale_cache is None:
        return _allocation(kv_cache, torch.uint8)[_inline_scales(view, kv, slots)].view(torch.float32)
    return scale_cache[slots // view.block_size, slots % view.block_size].unsqueeze(-1)


def _elements(view: KVCacheView, kv: int, slots: torch.Tensor) -> torch.Tensor:
    """[len(slots), HK, D] int64: where the allocation holds the K or the V of each slot."""
    return _indices(view, kv, slots, range(view.head_size))


def _inline_scales(view: KVCacheView, kv: int, slots: torch.Tensor) -> torch.Tensor:
    """[len(slots), HK, 4] int64: the bytes of the scales, which follow each row's dims."""
    return _indices(view, kv, slots, range(view.head_size, view.head_size + BYTES_OF_SCALE))


def _indices(view: KVCacheView, kv: int, slots: torch.Tensor, dims: range) -> torch.Tensor:
    device = slots.device
    block = (slots // view.block_size).view(-1, 1, 1)
    slot = (slots % view.block_size).view(-1, 1, 1)
    head = torch.arange(view.num_kv_heads, device=device).view(-1, 1)
    dim = torch.arange(dims.start, dims.stop, device=device)
    return view.element(kv, block, slot, head, dim)


def _allocation(kv_cache: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The whole allocation under a view, [elements], as elements of the cache's own size."""
    elements = kv_cache.untyped_storage().nbytes() // kv_cache.element_size()
    return kv_cache.as_strided((elements,), (1,), 0).view(dtype)
