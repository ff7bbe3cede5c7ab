"""Writing this step's latent vectors and rotated keys into the cache of latent attention (MLA)."""

from typing import Any

import torch
from attn_contract import Layer, Layout
from attn_contract.validation import check_write_latent_cache

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.load import DIMS_PER_E8M0
from attn_optimized.kernels.write_e8m0_latent_cache import E8m0LatentWriteKind, write_e8m0_latent_cache_kernel
from attn_optimized.kernels.write_e8m0_planes import E8m0PlanesWriteKind, write_e8m0_planes_kernel
from attn_optimized.kernels.write_latent_cache import LatentWriteKind, write_latent_cache_kernel
from attn_optimized.kernels.write_scaled_latent_cache import ScaledLatentWriteKind, write_scaled_latent_cache_kernel
from attn_optimized.kv_cache import INTEGER_OF_SIZE
from attn_optimized.launch.tiles import RowTiles, row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.launch.widths import power_of_2
from attn_optimized.quantization import stored_format
from attn_optimized.strides import (
    KVCacheStrides,
    kv_cache_strides,
    parts_of_e8m0_planes,
    parts_of_scaled_rows,
    without_idle_strides,
)


def write_latent_cache(
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    validate: bool = False,
) -> None:
    """Write the row `cat(kv_c[s], k_pe[s])` to slot `slot_mapping[s]` of a latent cache; every other byte stays as it is.

    A cache of kv_c's dtype gets a copy, bit by bit. A float8 cache gets value / k_scale, as `write_kv_cache` does. A row of
    LATENT_SCALED gets a copy of k_pe, and kv_c by the scale of each 128 dims, which is written too: their largest finite
    magnitude over the largest number of the type, and at least 2**-100. A row of LATENT_E8M0 gets kv_c by the scale of each 32
    dims, which is the least power of two at or above that, and is written as one byte. A slot of LATENT_E8M0_PLANES gets the
    same of each 64 dims, but a copy of the last 64.

    Args:
        kv_c: [T_kv, Lkv] float32, float16 or bfloat16, Lkv = layer.head_size_v; the last dimension is dense, as that of k_pe.
            Rows past S are not read.
        k_pe: [T_kv, R] of kv_c's dtype, rotated already; Lkv + R = layer.head_size. R may be 0.
        kv_cache: [NB, BS, Lkv + R] of `layer.kv_cache_dtype` or kv_c's dtype, or the rows of LATENT_SCALED or LATENT_E8M0, or
            the pages of LATENT_E8M0_PLANES; blocks and slots may be padded.
        layer: only its layout, sizes, kv_cache_dtype and k_scale are read.
        slot_mapping: [S] int64, `block * block_size + offset`; -1 writes nothing.
        validate: also check the slots and the scale, which waits for the device.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: tensors on a CPU without Triton's interpreter, or bfloat16 that it would have to convert. Nothing was
            written.
    """
    check_write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping, values=validate)
    write_latent_cache_call(kv_c, k_pe, kv_cache, layer, slot_mapping).run(kv_c.device)


def write_latent_cache_call(
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `write_latent_cache`. No argument is checked, and no element is read.

    Args:
        architecture: of the GPU to launch on, which need not be here if the tensors are on meta; None: of kv_c's device.
    """
    kv_c, k_pe, kv_cache = (without_idle_strides(tensor) for tensor in (kv_c, k_pe, kv_cache))
    if layer.layout is Layout.LATENT_SCALED:
        return _write_scaled_latent_cache_call(kv_c, k_pe, kv_cache, layer, slot_mapping, architecture)
    if layer.layout is Layout.LATENT_E8M0:
        return _write_e8m0_latent_cache_call(kv_c, kv_cache, layer, slot_mapping, architecture)
    if layer.layout is Layout.LATENT_E8M0_PLANES:
        return _write_e8m0_planes_call(kv_c, kv_cache, layer, slot_mapping, architecture)
    if layer.kv_cache_dtype is None:
        # as integers: a copy of a float may change the bits of a NaN
        kv_c, k_pe, kv_cache = (tensor.view(INTEGER_OF_SIZE[kv_c.element_size()]) for tensor in (kv_c, k_pe, kv_cache))
    architecture = architecture or architecture_of(kv_c.device, kv_c.dtype)
    latent_size, rope_size = kv_c.shape[1], k_pe.shape[1]
    tiles = row_tiles(architecture, head_size=latent_size)
    cache = kv_cache_strides(kv_cache, layer)
    stored, kv_format = stored_format(kv_cache, architecture)
    row_unit, of_rows = in_units(kv_c.element_size(), stride_kv_c=kv_c.stride(0), stride_k_pe=k_pe.stride(0))
    kv_unit, of_cache = in_units(kv_cache.element_size(), stride_block=cache.block, stride_slot=cache.slot)
    kind = LatentWriteKind(
        row_unit=row_unit,
        kv_unit=kv_unit,
        kv_format=kv_format,
        latent_size=latent_size,
        rope_size=rope_size,
        block_rows=tiles.block_rows,
        block_latent=tiles.block_d,
        block_rope=power_of_2(rope_size) if rope_size else 0,
    )
    launch = _launch(write_latent_cache_kernel, kind, tiles, cache, slot_mapping, of_rows | of_cache)
    tensors = {
        "kv_cache_ptr": stored,
        "kv_c_ptr": kv_c,
        "k_pe_ptr": k_pe,
        "slot_mapping_ptr": slot_mapping,
        "k_scale_ptr": layer.k_scale,
    }
    return KernelCall(launch, tensors)


def _write_scaled_latent_cache_call(
    kv_c: torch.Tensor,
    k_pe: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    architecture: str | None,
) -> KernelCall:
    """The launch of `write_latent_cache` on LATENT_SCALED."""
    architecture = architecture or architecture_of(kv_c.device, kv_c.dtype)
    latent_size, rope_size = kv_c.shape[1], k_pe.shape[1]
    tiles = row_tiles(architecture, head_size=latent_size)
    cache = kv_cache_strides(kv_cache, layer)
    stored, kv_format = stored_format(kv_cache, architecture)
    scales, rotated = parts_of_scaled_rows(kv_cache, layer)
    row_unit, of_rows = in_units(kv_c.element_size(), stride_kv_c=kv_c.stride(0), stride_k_pe=k_pe.stride(0))
    kv_unit, of_cache = in_units(kv_cache.element_size(), stride_block=cache.block, stride_slot=cache.slot)
    kind = ScaledLatentWriteKind(
        row_unit=row_unit,
        kv_unit=kv_unit,
        kv_format=kv_format,
        num_scales=scales.shape[2],
        rope_size=rope_size,
        block_rows=tiles.block_rows,
        block_scales=power_of_2(scales.shape[2]),
        block_rope=power_of_2(rope_size) if rope_size else 0,
    )
    launch = _launch(write_scaled_latent_cache_kernel, kind, tiles, cache, slot_mapping, of_rows | of_cache)
    tensors: dict[str, torch.Tensor | None] = {
        "kv_cache_ptr": stored,
        "scales_ptr": scales,
        # as integers: a copy of a float may change the bits of a NaN
        "rotated_ptr": rotated.view(torch.int16),
        "kv_c_ptr": kv_c,
        "k_pe_ptr": k_pe.view(torch.int16),
        "slot_mapping_ptr": slot_mapping,
    }
    return KernelCall(launch, tensors)


def _write_e8m0_latent_cache_call(
    kv_c: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, architecture: str | None
) -> KernelCall:
    """The launch of `write_latent_cache` on LATENT_E8M0."""
    architecture = architecture or architecture_of(kv_c.device, kv_c.dtype)
    latent_size = kv_c.shape[1]
    tiles = row_tiles(architecture, head_size=latent_size)
    cache = kv_cache_strides(kv_cache, layer)
    stored, kv_format = stored_format(kv_cache, architecture)
    row_unit, of_rows = in_units(kv_c.element_size(), stride_kv_c=kv_c.stride(0))
    kv_unit, of_cache = in_units(kv_cache.element_size(), stride_block=cache.block, stride_slot=cache.slot)
    num_scales = latent_size // DIMS_PER_E8M0.value
    kind = E8m0LatentWriteKind(
        row_unit=row_unit,
        kv_unit=kv_unit,
        kv_format=kv_format,
        num_scales=num_scales,
        block_rows=tiles.block_rows,
        block_scales=power_of_2(num_scales),
    )
    launch = _launch(write_e8m0_latent_cache_kernel, kind, tiles, cache, slot_mapping, of_rows | of_cache)
    tensors: dict[str, torch.Tensor | None] = {
        "kv_cache_ptr": stored,
        "bytes_ptr": kv_cache.view(torch.uint8),
        "kv_c_ptr": kv_c,
        "slot_mapping_ptr": slot_mapping,
    }
    return KernelCall(launch, tensors)


def _write_e8m0_planes_call(
    kv_c: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, architecture: str | None
) -> KernelCall:
    """The launch of `write_latent_cache` on LATENT_E8M0_PLANES."""
    architecture = architecture or architecture_of(kv_c.device, kv_c.dtype)
    tiles = row_tiles(architecture, head_size=kv_c.shape[1])
    cache = kv_cache_strides(kv_cache, layer)
    stored, kv_format = stored_format(kv_cache, architecture)
    scales, kept = parts_of_e8m0_planes(kv_cache, layer)
    row_unit, of_rows = in_units(kv_c.element_size(), stride_kv_c=kv_c.stride(0))
    kv_unit, of_cache = in_units(kv_cache.element_size(), stride_block=cache.block)
    kind = E8m0PlanesWriteKind(
        row_unit=row_unit,
        kv_unit=kv_unit,
        kv_format=kv_format,
        num_scales=scales.shape[2] - 1,
        row_bytes=cache.slot,
        block_rows=tiles.block_rows,
        block_groups=power_of_2(scales.shape[2]),
    )
    launch = _launch(write_e8m0_planes_kernel, kind, tiles, cache, slot_mapping, of_rows | of_cache)
    tensors: dict[str, torch.Tensor | None] = {
        "kv_cache_ptr": stored,
        "scales_ptr": scales,
        # as integers: a copy of a float may change the bits of a NaN
        "kept_ptr": kept.view(torch.int16),
        "kv_c_ptr": kv_c,
        "kept_dims_ptr": kv_c[:, -kept.shape[2] :].view(torch.int16),
        "slot_mapping_ptr": slot_mapping,
    }
    return KernelCall(launch, tensors)


def _launch(
    kernel: Any, kind: Any, tiles: RowTiles, cache: KVCacheStrides, slot_mapping: torch.Tensor, strides: dict[str, int]
) -> Launch:
    """The launch of a kernel that writes one row for each slot of the mapping."""
    return Launch.of(
        kernel,
        row_grid(tiles, len(slot_mapping)),
        {"KIND": kind},
        tiles.options,
        num_mapped=len(slot_mapping),
        num_cache_slots=cache.num_blocks * cache.block_size,
        block_size=cache.block_size,
        **strides,
    )
