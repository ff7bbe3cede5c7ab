"""Writing this step's keys and values into the KV cache, as they are or after a rotation (RoPE)."""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from attn_contract import Layer
from attn_contract.arguments import check_type
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_rope_and_write_kv_cache, check_write_kv_cache, check_write_tensors

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.write_kv_cache import WriteKind, write_kv_cache_kernel
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.quantization import stored_format
from attn_optimized.signature_cache import SignatureCache
from attn_optimized.strides import (
    KVCacheStrides,
    kv_cache_strides,
    offset_of_scales,
    scale_strides,
    token_scales,
    without_idle_strides,
)

INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}


def write_kv_cache(
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    validate: bool = False,
) -> None:
    """Write row s of k and v to slot `slot_mapping[s]` of the cache; every other byte stays as it is.

    A cache of k's dtype gets a copy, bit by bit. A quantized cache gets value / scale: one float32 division, clamped to the
    largest number of the type and rounded to nearest even; in float8 a NaN stays a NaN. The scale is the layer's, or each token
    and head has a scale of its own, which is written too: the largest finite magnitude of its row over the largest number of
    the type, and at least 2**-100. An int8 row that holds a NaN gets a scale of NaN.

    Args:
        k, v: [T_kv, HK, D] and [T_kv, HK, Dv] float32, float16 or bfloat16; the last dimension is dense. Rows past S are not
            read. Dv is D, or head_size_v, which only CONTENT_PACKED takes.
        kv_cache: as `layer.layout` says, of `layer.kv_cache_dtype` or k's dtype, with any strides.
        layer: only its layout, kv_cache_dtype and scales are read.
        slot_mapping: [S] int64, `block * block_size + offset`; -1 writes nothing.
        validate: also check the slots and scales, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, tensors on a CPU without Triton's interpreter, or bfloat16 that
            it would have to convert. Nothing was written.
    """
    check_type("validate", validate, bool, "a bool")
    check_write_tensors({"k": k, "v": v}, kv_cache, layer, slot_mapping)
    write = _Write(k, v, kv_cache, layer, slot_mapping, None)
    signature = _signature(write)
    if validate or signature not in _LAUNCHES:
        check_write_kv_cache(k, v, kv_cache, layer, slot_mapping, values=validate)
    _run(write, signature)


def rope_and_write_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    is_neox: bool,
    validate: bool = False,
) -> None:
    """Rotate q in place and write k, also rotated, and v into the cache (RoPE; Su et al., arXiv:2104.09864).

    Two dims x1, x2 that rotate together become `x1 * cos - x2 * sin` and `x2 * cos + x1 * sin`, each product and sum rounded to
    float32, and the result to the dtype of q. The rotated k and v are then written as `write_kv_cache` writes them.

    Args:
        q: [T, H, D] of k's dtype; the last dimension is dense. Rows 0 to P - 1 are rotated, also where the slot is -1.
        k, v: as in write_kv_cache. They are not changed, and may be columns of one tensor that q is a part of.
        positions: [P] int64, the row of cos_sin_cache for each row of q and k.
        cos_sin_cache: [max_position, rotary_dim], rotary_dim / 2 cosines, then the sines, float32 or of q's dtype. Dims from
            rotary_dim on are not rotated.
        kv_cache, layer: as in write_kv_cache.
        slot_mapping: [S] int64 with S <= P, as in write_kv_cache.
        is_neox: True if dims (i, i + rotary_dim / 2) rotate together, as in GPT-NeoX; False: dims (2i, 2i + 1), as in GPT-J.
        validate: also check the positions, slots and scales, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, tensors on a CPU without Triton's interpreter, or bfloat16 in an
            interpreter that computes it wrongly. Nothing was written.
    """
    check_type("is_neox", is_neox, bool, "a bool")
    check_type("validate", validate, bool, "a bool")
    read = {"k": k, "v": v, "positions": positions, "cos_sin_cache": cos_sin_cache}
    check_write_tensors(read, kv_cache, layer, slot_mapping, {"q": q})
    write = _Write(k, v, kv_cache, layer, slot_mapping, _Rotation(q, positions, cos_sin_cache, is_neox))
    signature = _signature(write)
    if validate or signature not in _LAUNCHES:
        check_rope_and_write_kv_cache(
            q, k, v, positions, cos_sin_cache, is_neox, kv_cache, layer, slot_mapping, values=validate
        )
    _run(write, signature)


def write_kv_cache_call(
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `write_kv_cache`. No argument is checked, and no element is read.

    Args:
        architecture: that of the GPU to launch on, which need not be in this machine if the tensors are on meta; None: that of
            k's device.
    """
    return _call(_Write(k, v, kv_cache, layer, slot_mapping, None), architecture)


def rope_and_write_kv_cache_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    is_neox: bool,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `rope_and_write_kv_cache`: see `write_kv_cache_call`."""
    return _call(_Write(k, v, kv_cache, layer, slot_mapping, _Rotation(q, positions, cos_sin_cache, is_neox)), architecture)


class _Rotation(NamedTuple):
    """The queries to rotate in place, and the angles for queries and keys: see `rope_and_write_kv_cache`."""

    q: torch.Tensor
    positions: torch.Tensor
    cos_sin_cache: torch.Tensor
    is_neox: bool


class _Write(NamedTuple):
    """The arguments of a write, after a rotation or without one."""

    k: torch.Tensor
    v: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    slot_mapping: torch.Tensor
    rotation: _Rotation | None


# one for all layers of a model and many steps of a decode: an architecture, and the launch on it
_LAUNCHES: SignatureCache[tuple[str, Launch]] = SignatureCache()


def _signature(write: _Write) -> Hashable:
    """Everything that checks and launches depend on, except for what `check_write_tensors` looks at in every call."""
    k, v, kv_cache, layer, slot_mapping, rotation = write
    tensors = (tensor_signature(k), tensor_signature(v), tensor_signature(kv_cache), tensor_signature(slot_mapping))
    rotated = None if rotation is None else (*map(tensor_signature, rotation[:3]), rotation.is_neox)
    return (*tensors, rotated, layer.signature, k.device, offset_of_scales(kv_cache, layer))


def _run(write: _Write, signature: Hashable) -> None:
    """Run a write that has been checked."""
    made, stored = _LAUNCHES.get(signature), _as_stored(write)
    if made is None:
        architecture = architecture_of(stored.k.device, stored.k.dtype)
        made = _LAUNCHES[signature] = architecture, _launch(stored, architecture)
    architecture, launch = made
    KernelCall(launch, _tensors(stored, architecture)).run(write.k.device)


def _call(write: _Write, architecture: str | None) -> KernelCall:
    stored = _as_stored(write)
    architecture = architecture or architecture_of(stored.k.device, stored.k.dtype)
    return KernelCall(_launch(stored, architecture), _tensors(stored, architecture))


def _as_stored(write: _Write) -> _Write:
    """The write with its tensors as the kernel takes them."""
    k, v, kv_cache, layer, slot_mapping, rotation = write
    if rotation is not None:
        q, cos_sin_cache = without_idle_strides(rotation.q), without_idle_strides(rotation.cos_sin_cache)
        rotation = rotation._replace(q=q, cos_sin_cache=cos_sin_cache)
    elif layer.kv_cache_dtype is None:
        # as integers: a copy of a float may change the bits of a NaN
        integer = INTEGER_OF_SIZE[k.element_size()]
        k, v, kv_cache = k.view(integer), v.view(integer), kv_cache.view(integer)
    k, v, kv_cache = without_idle_strides(k), without_idle_strides(v), without_idle_strides(kv_cache)
    return _Write(k, v, kv_cache, layer, slot_mapping, rotation)


def _launch(write: _Write, architecture: str) -> Launch:
    k, v, kv_cache, layer, slot_mapping, rotation = write
    tiles = row_tiles(architecture, head_size=max(layer.head_size, layer.v_head_size))
    num_positions = len(rotation.positions) if rotation else 0
    (num_query_tiles,) = row_grid(tiles, num_positions * layer.num_heads)
    (num_key_tiles,) = row_grid(tiles, len(slot_mapping) * layer.num_kv_heads)
    cache = kv_cache_strides(kv_cache, layer)
    per_token = token_scales(kv_cache, layer)
    k_scale, v_scale = per_token or (layer.k_scale, layer.v_scale)
    units, strides = _strides(k, v, kv_cache, cache, rotation)
    kind = WriteKind(
        **units,
        interior=cache.interior,
        x=16 // kv_cache.element_size(),
        kv_format=stored_format(kv_cache, architecture)[1],
        has_token_scales=per_token is not None,
        rotary_dim=rotation.cos_sin_cache.shape[1] if rotation else 0,
        is_neox=rotation.is_neox if rotation else False,
        head_size=layer.head_size,
        v_head_size=layer.v_head_size,
        block_rows=tiles.block_rows,
        block_d=tiles.block_d,
    )
    return Launch.of(
        write_kv_cache_kernel,
        (num_query_tiles + num_key_tiles,),
        {"KIND": kind},
        # with fused multiply-adds, products would not be rounded, and the rotation would differ
        {**tiles.options, "enable_fp_fusion": False},
        num_query_tiles=num_query_tiles,
        num_positions=num_positions,
        num_mapped=len(slot_mapping),
        num_cache_slots=cache.num_blocks * cache.block_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        block_size=cache.block_size,
        **strides,
        **scale_strides(k_scale).named("stride_k_scale"),
        **scale_strides(v_scale).named("stride_v_scale"),
    )


def _tensors(write: _Write, architecture: str) -> dict[str, torch.Tensor | None]:
    """The tensors of that launch, by the kernel's names."""
    k, v, kv_cache, layer, slot_mapping, rotation = write
    k_scale, v_scale = token_scales(kv_cache, layer) or (layer.k_scale, layer.v_scale)
    return {
        "kv_cache_ptr": stored_format(kv_cache, architecture)[0],
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
        "k_ptr": k,
        "v_ptr": v,
        "slot_mapping_ptr": slot_mapping,
        "q_ptr": rotation.q if rotation else None,
        "positions_ptr": rotation.positions if rotation else None,
        "cos_sin_cache_ptr": rotation.cos_sin_cache if rotation else None,
    }


def _strides(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, cache: KVCacheStrides, rotation: _Rotation | None
) -> tuple[dict[str, int], dict[str, int]]:
    """The kernel's strides and their units, by name."""
    row_unit, of_rows = in_units(
        k.element_size(),
        stride_q_row=rotation.q.stride(0) if rotation else 0,
        stride_q_head=rotation.q.stride(1) if rotation else 0,
        stride_k_row=k.stride(0),
        stride_k_head=k.stride(1),
        stride_v_row=v.stride(0),
        stride_v_head=v.stride(1),
    )
    kv_unit, of_cache = in_units(
        kv_cache.element_size(),
        stride_kv=cache.kv,
        stride_block=cache.block,
        stride_slot=cache.slot,
        stride_kv_head=cache.head,
    )
    cos_sin_unit, of_cos_sin = in_units(
        rotation.cos_sin_cache.element_size() if rotation else 4,
        stride_cos_sin=rotation.cos_sin_cache.stride(0) if rotation else 0,
    )
    units = {"row_unit": row_unit, "kv_unit": kv_unit, "cos_sin_unit": cos_sin_unit}
    return units, of_rows | of_cache | of_cos_sin
