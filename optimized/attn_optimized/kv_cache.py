"""Writing this step's keys and values into the KV cache, as they are or after their rotation."""

import torch
from attn_contract import Layer
from attn_contract.validation import check_rope_and_write_kv_cache, check_write_kv_cache

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, LaunchForm
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.quantization import stored_format
from attn_optimized.strides import kv_cache_strides, scale_strides, token_scales

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}


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

    A cache of k's dtype gets every bit. A quantized one gets value / scale, one float32 division, clamped to the largest number
    of the type and rounded to nearest even; a NaN stays one. The scale is the layer's, or, for each token and head, the largest
    finite magnitude of its row over the largest number of the type, at least 2**-100, and is written too; an int8 row that
    holds a NaN gets a scale of NaN.

    Args:
        k, v: [T_kv, HK, D] float32, float16 or bfloat16; the last dimension is dense. Rows past S are not read.
        kv_cache: as `layer.layout` says, of `layer.kv_cache_dtype` or k's dtype, with any strides.
        layer: its layout, kv_cache_dtype and scales count.
        slot_mapping: [S] int64, `block * block_size + offset`; -1 writes nothing.
        validate: check the slots and scales too, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: tensors on a CPU without Triton's interpreter, or bfloat16 that it would have to convert. Nothing was
            written.
    """
    check_write_kv_cache(k, v, kv_cache, layer, slot_mapping, values=validate)
    write_kv_cache_call(k, v, kv_cache, layer, slot_mapping).launch(k.device)


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
    """Rotate q in place and write k, rotated likewise, and v into the cache (RoPE; Su et al., arXiv:2104.09864).

    Two dims x1, x2 that rotate together become `x1 * cos - x2 * sin` and `x2 * cos + x1 * sin`, each product and sum rounded to
    float32 by itself, and the result once to the dtype of q. What is written is what `write_kv_cache` writes for such rows.

    Args:
        q: [T, H, D] of k's dtype; the last dimension is dense. Rows 0 to P - 1 are rotated, those of slot -1 too.
        k, v: as in write_kv_cache; they are not changed, and may be columns of one fused tensor with q.
        positions: [P] int64, rows of cos_sin_cache, for the rows of q and k.
        cos_sin_cache: [max_position, rotary_dim], rotary_dim / 2 cosines, then the sines, float32 or of q's dtype; dims from
            rotary_dim on are not rotated.
        kv_cache, layer: as in write_kv_cache.
        slot_mapping: [S] int64 with S <= P, as in write_kv_cache.
        is_neox: whether dims (i, i + rotary_dim / 2) rotate together, as in GPT-NeoX, else (2i, 2i + 1), as in GPT-J.
        validate: check the positions, slots and scales too, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: tensors on a CPU without Triton's interpreter, or bfloat16 in an interpreter that computes it wrongly.
            Nothing was written.
    """
    check_rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, is_neox, kv_cache, layer, slot_mapping, values=validate)
    call = rope_and_write_kv_cache_call(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)
    call.launch(k.device)


def write_kv_cache_call(
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `write_kv_cache`; nothing is checked or read.

    Args:
        architecture: of a GPU that need not be here, for tensors on meta; None: that of k's device.
    """
    if layer.kv_cache_dtype is None:
        # integers: their copies keep every bit, those of a NaN too
        k, v, kv_cache = (tensor.view(_INTEGER_OF_SIZE[k.element_size()]) for tensor in (k, v, kv_cache))
    return _call(k, v, kv_cache, layer, slot_mapping, architecture)


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
    rotation = {"q": q, "positions": positions, "cos_sin_cache": cos_sin_cache}
    return _call(k, v, kv_cache, layer, slot_mapping, architecture, **rotation, is_neox=is_neox)


def _call(
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    architecture: str | None,
    *,
    q: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    cos_sin_cache: torch.Tensor | None = None,
    is_neox: bool = False,
) -> KernelCall:
    architecture = architecture or architecture_of(k.device, k.dtype)
    tiles = row_tiles(architecture, head_size=layer.head_size)
    num_positions = 0 if positions is None else len(positions)
    (num_query_tiles,) = row_grid(tiles, num_positions * layer.num_heads)
    (num_key_tiles,) = row_grid(tiles, len(slot_mapping) * layer.num_kv_heads)
    cache = kv_cache_strides(kv_cache, layer)
    row_unit, row_strides = in_units(
        k.element_size(),
        stride_q_row=0 if q is None else q.stride(0),
        stride_q_head=0 if q is None else q.stride(1),
        stride_k_row=k.stride(0),
        stride_k_head=k.stride(1),
        stride_v_row=v.stride(0),
        stride_v_head=v.stride(1),
    )
    kv_unit, kv_strides = in_units(
        kv_cache.element_size(),
        stride_kv=cache.kv,
        stride_block=cache.block,
        stride_slot=cache.slot,
        stride_kv_head=cache.head,
    )
    cos_sin_unit, cos_sin_strides = in_units(
        4 if cos_sin_cache is None else cos_sin_cache.element_size(),
        stride_cos_sin=0 if cos_sin_cache is None else cos_sin_cache.stride(0),
    )
    per_token = token_scales(kv_cache, layer)
    k_scale, v_scale = per_token or (layer.k_scale, layer.v_scale)
    k_scale_strides, v_scale_strides = scale_strides(k_scale), scale_strides(v_scale)
    stored, stored_as = stored_format(kv_cache, architecture)
    constants = {
        **tiles.constants,
        "ROW_UNIT": row_unit,
        "KV_UNIT": kv_unit,
        "INTERIOR": cache.interior,
        "X": 16 // kv_cache.element_size(),
        "FORMAT": stored_as,
        "TOKEN_SCALES": per_token is not None,
        "ROTARY_DIM": 0 if cos_sin_cache is None else cos_sin_cache.shape[1],
        "IS_NEOX": is_neox,
        "COS_SIN_UNIT": cos_sin_unit,
    }
    form = LaunchForm.of(
        write_kv_cache_kernel,
        (num_query_tiles + num_key_tiles,),
        constants,
        # a product that is not rounded before it is added would be another rotation
        {**tiles.options, "enable_fp_fusion": False},
        num_query_tiles=num_query_tiles,
        num_positions=num_positions,
        num_slots=len(slot_mapping),
        cache_slots=cache.num_blocks * cache.block_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        block_size=cache.block_size,
        stride_k_scale_block=k_scale_strides.block,
        stride_k_scale_slot=k_scale_strides.slot,
        stride_k_scale_head=k_scale_strides.head,
        stride_v_scale_block=v_scale_strides.block,
        stride_v_scale_slot=v_scale_strides.slot,
        stride_v_scale_head=v_scale_strides.head,
        **row_strides,
        **kv_strides,
        **cos_sin_strides,
    )
    tensors = {
        "kv_cache_ptr": stored,
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "slot_mapping_ptr": slot_mapping,
        "positions_ptr": positions,
        "cos_sin_cache_ptr": cos_sin_cache,
    }
    return KernelCall(form, tensors)
