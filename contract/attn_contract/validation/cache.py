"""Writes to a KV cache, with and without RoPE, and the reading of one request from it."""

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_int, check_type, check_vector
from attn_contract.errors import ContractError
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layer import Layer
from attn_contract.layouts import A_LATENT_LAYOUT
from attn_contract.rules import active_rules, check_together
from attn_contract.validation.shapes import check_cache, check_float, check_heads, check_key_value, check_rotated_dtype
from attn_contract.validation.tensors import check_tensors
from attn_contract.validation.values import check_blocks, check_positions, check_scale_values, check_slots

_FIXED_SCALES = ("k_scale", "v_scale")
_SCALE_CACHES = ("k_scale_cache", "v_scale_cache")


def check_write_tensors(
    read: dict[str, torch.Tensor],
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    written: dict[str, torch.Tensor] | None = None,
) -> None:
    """Check the devices, gradients and memory of a cache write's tensors. Writes of one signature may differ in all of these.

    Args:
        read: tensors that the write reads besides slot_mapping and the layer's scales, by name.
        written: tensors that it writes besides the cache and its scales, by name.
    """
    check_type("layer", layer, Layer, "a Layer")
    scales, scale_caches = _tensors(layer, _FIXED_SCALES), _tensors(layer, _SCALE_CACHES)
    check_tensors(
        {**read, "slot_mapping": slot_mapping, **scales},
        {**(written or {}), "kv_cache": kv_cache, **scale_caches},
    )


def check_write_kv_cache(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, *, values: bool
) -> KVCacheView:
    """Check a cache write.

    Args:
        k, v: [T_kv, HK, D] and [T_kv, HK, v_head_size].
        slot_mapping: [S] int64, S at most T_kv.
        values: True if to check the slots and scales, too.
    """
    return _check_write({"k": k, "v": v}, kv_cache, layer, slot_mapping, written={}, values=values)


def check_rope_and_write_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    values: bool,
) -> KVCacheView:
    """Check a rotation of q in place, together with the cache write of rotated k and of v.

    Args:
        q: [T, H, D], written.
        k, v: [T_kv, HK, D] and [T_kv, HK, v_head_size].
        positions: [P] int64, of the first P rows of q and of k; S <= P <= T.
        cos_sin_cache: [max_position, rotary_dim], float32 or q's dtype; rotary_dim is even and at most D.
        slot_mapping: [S] int64, S at most T_kv.
        values: True if to check positions, slots and scales, too.
    """
    check_type("is_neox", is_neox, bool, "a bool")
    check_vector("positions", positions, torch.int64)
    read = {"k": k, "v": v, "positions": positions, "cos_sin_cache": cos_sin_cache}
    view = _check_write(read, kv_cache, layer, slot_mapping, written={"q": q}, values=values)
    check_together({*active_rules(layer), "rope"})
    check_heads("q", q, "T", layer.num_heads, layer.head_size)
    if q.dtype != k.dtype:
        raise ContractError("q", q.dtype, f"{k.dtype}, as k has")
    check_dense_last("q", q)
    if len(positions) > len(q):
        raise ContractError("positions", f"{len(positions)} positions", f"at most the {len(q)} rows of q")
    if len(slot_mapping) > len(positions):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(positions)} positions")
    _check_cos_sin_cache(cos_sin_cache, q.dtype, layer.head_size)
    if values:
        check_positions(positions, len(cos_sin_cache))
    return view


def check_write_latent_cache(
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    values: bool,
) -> KVCacheView:
    """Check a write to a latent cache.

    Args:
        kv_c: [T_kv, Lkv], Lkv = layer.head_size_v.
        k_pe: [T_kv, R], Lkv + R = layer.head_size. R may be 0.
        slot_mapping: [S] int64, S at most T_kv.
        values: True if to check the slots and the scale, too.
    """
    check_type("validate", values, bool, "a bool")
    check_write_tensors({"kv_c": kv_c, "k_pe": k_pe}, kv_cache, layer, slot_mapping)
    check_vector("slot_mapping", slot_mapping, torch.int64)
    if layer.layout is None or not layer.layout.has_latent_value:
        raise ContractError("layer.layout", layer.layout, f"{A_LATENT_LAYOUT}; use write_kv_cache")
    check_float("kv_c", kv_c)
    for name, tensor, size in (
        ("kv_c", kv_c, layer.v_head_size),
        ("k_pe", k_pe, layer.head_size - layer.v_head_size),
    ):
        if tensor.dim() != 2 or tensor.shape[1] != size or len(tensor) != len(kv_c):
            rows = "T_kv" if name == "kv_c" else len(kv_c)
            raise ContractError(name, f"shape {tuple(tensor.shape)}", f"shape ({rows}, {size})")
        if tensor.dtype != kv_c.dtype:
            raise ContractError(name, tensor.dtype, f"{kv_c.dtype}, as kv_c has")
        check_dense_last(name, tensor)
    check_rotated_dtype("kv_c", kv_c.dtype, layer)
    view = check_cache(kv_cache, layer, kv_c.dtype)
    _check_slot_mapping(slot_mapping, kv_c, view, layer, of="kv_c and k_pe", values=values)
    return view


def check_gather_kv_cache(kv_cache: torch.Tensor, layer: Layer, block_table: torch.Tensor, seq_len: int) -> KVCacheView:
    """Check a reading of one request's keys and values, with the values of the block table and of the scales.

    Args:
        block_table: [max_blocks] int32.
        seq_len: keys of the request.
    """
    check_type("layer", layer, Layer, "a Layer")
    check_vector("block_table", block_table, torch.int32)
    check_int("seq_len", seq_len, minimum=0)
    scales = _tensors(layer, _FIXED_SCALES + _SCALE_CACHES)
    check_tensors({"kv_cache": kv_cache, "block_table": block_table, **scales}, {})
    _check_has_cache(layer)
    if layer.kv_cache_dtype is None:
        check_float("kv_cache", kv_cache)
    view = check_cache(kv_cache, layer, kv_cache.dtype)
    check_scale_values(scales)
    capacity = len(block_table) * view.block_size
    if seq_len > capacity:
        raise ContractError("seq_len", seq_len, f"at most {capacity}: block_table has {len(block_table)} blocks")
    used = block_table[: -(-seq_len // view.block_size)].cpu()
    check_blocks(used, torch.ones_like(used, dtype=torch.bool), view)
    return view


def _check_write(
    read: dict[str, torch.Tensor],
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    written: dict[str, torch.Tensor],
    values: bool,
) -> KVCacheView:
    """The checks that both cache writes share.

    Args:
        read: k and v, and whatever else the write reads.
        written: what it writes besides the cache and its scales.
    """
    check_type("validate", values, bool, "a bool")
    check_write_tensors(read, kv_cache, layer, slot_mapping, written)
    check_vector("slot_mapping", slot_mapping, torch.int64)
    _check_has_cache(layer)
    if layer.layout is not None and layer.layout.has_latent_value:
        raise ContractError("layer.layout", layer.layout, "a layout of K and V apart; use write_latent_cache")
    k, v = read["k"], read["v"]
    check_float("k", k)
    check_key_value(k, v, layer, k.dtype)
    view = check_cache(kv_cache, layer, k.dtype)
    check_heads("k", k, "T_kv", layer.num_kv_heads, layer.head_size)
    _check_slot_mapping(slot_mapping, k, view, layer, of="k and v", values=values)
    return view


def _check_slot_mapping(
    slot_mapping: torch.Tensor,
    rows: torch.Tensor,
    view: KVCacheView,
    layer: Layer,
    *,
    of: str,
    values: bool,
) -> None:
    """Check that there are rows for all slots; with `values` also the slots, and the scales that rows are divided by."""
    if len(slot_mapping) > len(rows):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(rows)} rows of {of}")
    if values:
        check_slots(slot_mapping, view)
        check_scale_values(_tensors(layer, _FIXED_SCALES))


def _check_has_cache(layer: Layer) -> None:
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that has a KV cache")


def _check_cos_sin_cache(cos_sin_cache: torch.Tensor, dtype: torch.dtype, head_size: int) -> None:
    check_dims("cos_sin_cache", cos_sin_cache, ("max_position", "rotary_dim"))
    if cos_sin_cache.dtype not in (torch.float32, dtype):
        raise ContractError("cos_sin_cache", cos_sin_cache.dtype, f"torch.float32 or {dtype}, as q has")
    rotary_dim = cos_sin_cache.shape[1]
    if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
        expected = f"an even rotary_dim, at most {head_size}"
        raise ContractError("cos_sin_cache", f"shape {tuple(cos_sin_cache.shape)}", expected)
    check_dense_last("cos_sin_cache", cos_sin_cache)


def _tensors(layer: Layer, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in layer.tensors.items() if name in names}
