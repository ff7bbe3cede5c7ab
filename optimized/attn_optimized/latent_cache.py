"""Writing this step's latent vectors and rotated keys into the cache of latent attention (MLA)."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from attn_contract import Layer, Layout
from attn_contract.arguments import check_type
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_write_latent_cache, check_write_tensors

from attn_optimized.device import architecture_of
from attn_optimized.kept import Kept
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.load import DIMS_PER_E8M0, DIMS_PER_SCALE
from attn_optimized.kernels.write_e8m0_latent_cache import E8m0LatentWriteKind, write_e8m0_latent_cache_kernel
from attn_optimized.kernels.write_e8m0_planes import E8m0PlanesWriteKind, write_e8m0_planes_kernel
from attn_optimized.kernels.write_latent_cache import LatentWriteKind, write_latent_cache_kernel
from attn_optimized.kernels.write_scaled_latent_cache import ScaledLatentWriteKind, write_scaled_latent_cache_kernel
from attn_optimized.kv_cache import INTEGER_OF_SIZE
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.launch.widths import power_of_2
from attn_optimized.quantization import stored_format
from attn_optimized.strides import (
    KVCacheStrides,
    kv_cache_strides,
    offset_of_scales,
    parts_of_e8m0_planes,
    parts_of_scaled_rows,
    sizes_of_e8m0_planes,
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
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, tensors on a CPU without Triton's interpreter, or bfloat16 that
            it would have to convert. Nothing was written.
    """
    check_type("validate", validate, bool, "a bool")
    check_write_tensors({"kv_c": kv_c, "k_pe": k_pe}, kv_cache, layer, slot_mapping)
    write = _Write(kv_c, k_pe, kv_cache, layer, slot_mapping)
    signature = _signature(write)
    if validate or signature not in _LAUNCHES:
        check_write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping, values=validate)
    _run(write, signature)


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
    stored = _as_stored(_Write(kv_c, k_pe, kv_cache, layer, slot_mapping))
    architecture = architecture or architecture_of(stored.kv_c.device, stored.kv_c.dtype)
    return KernelCall(_launch(stored, architecture), _tensors(stored, architecture))


class _Write(NamedTuple):
    """The arguments of a write."""

    kv_c: torch.Tensor
    k_pe: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    slot_mapping: torch.Tensor


# what the layers of a model and the steps of a decode share: an architecture, and the launch on it
_LAUNCHES: Kept[tuple[str, Launch]] = Kept()


def _signature(write: _Write) -> Hashable:
    """All that checks and launches depend on, but for what `check_write_tensors` looks at in every call."""
    kv_c, k_pe, kv_cache, layer, slot_mapping = write
    tensors = (tensor_signature(kv_c), tensor_signature(k_pe), tensor_signature(kv_cache), tensor_signature(slot_mapping))
    return (*tensors, layer.signature, kv_c.device, offset_of_scales(kv_cache, layer))


def _run(write: _Write, signature: Hashable) -> None:
    """Run a write that has been checked."""
    made, stored = _LAUNCHES.get(signature), _as_stored(write)
    if made is None:
        architecture = architecture_of(stored.kv_c.device, stored.kv_c.dtype)
        made = _LAUNCHES[signature] = architecture, _launch(stored, architecture)
    architecture, launch = made
    KernelCall(launch, _tensors(stored, architecture)).run(write.kv_c.device)


def _as_stored(write: _Write) -> _Write:
    """The write with its tensors as the kernels take them."""
    kv_c, k_pe, kv_cache, layer, slot_mapping = write
    if layer.kv_cache_dtype is None:
        # as integers: a copy of a float may change the bits of a NaN
        integer = INTEGER_OF_SIZE[kv_c.element_size()]
        kv_c, k_pe, kv_cache = kv_c.view(integer), k_pe.view(integer), kv_cache.view(integer)
    kv_c, k_pe, kv_cache = without_idle_strides(kv_c), without_idle_strides(k_pe), without_idle_strides(kv_cache)
    return _Write(kv_c, k_pe, kv_cache, layer, slot_mapping)


def _launch(write: _Write, architecture: str) -> Launch:
    """The launch of the layout's kernel, which writes one row for each slot of the mapping."""
    kv_c, k_pe, kv_cache, layer, slot_mapping = write
    tiles = row_tiles(architecture, head_size=max(kv_c.shape[1], k_pe.shape[1]))
    cache = kv_cache_strides(kv_cache, layer)
    units, strides = _strides(write, cache)
    shared = {**units, "kv_format": stored_format(kv_cache, architecture)[1], "block_rows": tiles.block_rows}
    kernel, kind = _kernel(write, cache, shared)
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


def _strides(write: _Write, cache: KVCacheStrides) -> tuple[dict[str, int], dict[str, int]]:
    """The kernel's strides, and the units that they count in, by name."""
    kv_c, k_pe, kv_cache, layer, _ = write
    of_rows, of_cache = {"stride_kv_c": kv_c.stride(0)}, {"stride_block": cache.block}
    if layer.layout in (Layout.LATENT, Layout.LATENT_SCALED):
        of_rows["stride_k_pe"] = k_pe.stride(0)
    if layer.layout is not Layout.LATENT_E8M0_PLANES:
        of_cache["stride_slot"] = cache.slot
    row_unit, of_rows = in_units(kv_c.element_size(), **of_rows)
    kv_unit, of_cache = in_units(kv_cache.element_size(), **of_cache)
    return {"row_unit": row_unit, "kv_unit": kv_unit}, of_rows | of_cache


def _kernel(write: _Write, cache: KVCacheStrides, shared: dict[str, Any]) -> tuple[Any, Any]:
    """The layout's kernel, and its kind, of which the kinds of all layouts have the fields `shared`."""
    latent_size, rope_size, layer = write.kv_c.shape[1], write.k_pe.shape[1], write.layer
    rotated: dict[str, Any] = {"rope_size": rope_size, "block_rope": power_of_2(rope_size) if rope_size else 0}
    match layer.layout:
        case Layout.LATENT_SCALED:
            num_scales = latent_size // DIMS_PER_SCALE.value
            scales: dict[str, Any] = {"num_scales": num_scales, "block_scales": power_of_2(num_scales)}
            return write_scaled_latent_cache_kernel, ScaledLatentWriteKind(**shared, **scales, **rotated)
        case Layout.LATENT_E8M0:
            num_scales = latent_size // DIMS_PER_E8M0.value
            scales = {"num_scales": num_scales, "block_scales": power_of_2(num_scales)}
            return write_e8m0_latent_cache_kernel, E8m0LatentWriteKind(**shared, **scales)
        case Layout.LATENT_E8M0_PLANES:
            _, num_groups = sizes_of_e8m0_planes(layer)
            scales = {"num_scales": num_groups - 1, "block_groups": power_of_2(num_groups)}
            return write_e8m0_planes_kernel, E8m0PlanesWriteKind(**shared, **scales, row_bytes=cache.slot)
        case _:
            latent: dict[str, Any] = {"latent_size": latent_size, "block_latent": power_of_2(latent_size)}
            return write_latent_cache_kernel, LatentWriteKind(**shared, **latent, **rotated)


def _tensors(write: _Write, architecture: str) -> dict[str, torch.Tensor | None]:
    """The tensors of that launch, by the kernel's names. What is copied counts as integers, as in `_as_stored`."""
    kv_c, k_pe, kv_cache, layer, slot_mapping = write
    shared: dict[str, torch.Tensor | None] = {
        "kv_cache_ptr": stored_format(kv_cache, architecture)[0],
        "kv_c_ptr": kv_c,
        "slot_mapping_ptr": slot_mapping,
    }
    match layer.layout:
        case Layout.LATENT_SCALED:
            scales, rotated = parts_of_scaled_rows(kv_cache, layer)
            own = {"scales_ptr": scales, "rotated_ptr": rotated.view(torch.int16), "k_pe_ptr": k_pe.view(torch.int16)}
        case Layout.LATENT_E8M0:
            own = {"bytes_ptr": kv_cache.view(torch.uint8)}
        case Layout.LATENT_E8M0_PLANES:
            scales, kept = parts_of_e8m0_planes(kv_cache, layer)
            kept_dims = kv_c[:, -kept.shape[2] :]
            own = {"scales_ptr": scales, "kept_ptr": kept.view(torch.int16), "kept_dims_ptr": kept_dims.view(torch.int16)}
        case _:
            own = {"k_pe_ptr": k_pe, "k_scale_ptr": layer.k_scale}
    return shared | own
