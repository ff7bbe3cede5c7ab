"""Writing this step's latent vectors and rotated keys into the cache of latent attention (MLA)."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from attn_contract import Layer
from attn_contract.arguments import check_type
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_write_latent_cache, check_write_tensors

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.write_latent_cache import LatentWriteKind, write_latent_cache_kernel
from attn_optimized.kernels.write_scaled_latent_cache import ScaledLatentWriteKind, write_scaled_latent_cache_kernel
from attn_optimized.kv_cache import INTEGER_OF_SIZE
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.launch.widths import power_of_2
from attn_optimized.quantization import stored_format
from attn_optimized.signature_cache import SignatureCache
from attn_optimized.strides import LatentRow, kv_cache_strides, offset_of_scales, without_idle_strides


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

    A cache of kv_c's dtype gets a copy, bit by bit. A float8 cache gets value / k_scale, as `write_kv_cache` does. A layout
    with a `latent_format` gets a copy of the dims that it keeps, and of the others value / scale, and their scales: the
    largest finite magnitude of the dims that share it over the largest number of the type, and at least 2**-100. A ue8m0 scale
    is the least power of two at or above that.

    Args:
        kv_c: [T_kv, Lkv] float32, float16 or bfloat16, Lkv = layer.head_size_v; the last dimension is dense, as that of k_pe.
            Rows past S are not read.
        k_pe: [T_kv, R] of kv_c's dtype, rotated already; Lkv + R = layer.head_size. R may be 0.
        kv_cache: [NB, BS, Lkv + R] of `layer.kv_cache_dtype` or kv_c's dtype, or the rows or pages of a latent layout with
            scales; blocks and slots may be padded.
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
        architecture: that of the GPU to launch on, which need not be in this machine if the tensors are on meta; None: that of
            kv_c's device.
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


# one for all layers of a model and many steps of a decode: an architecture, and the launch on it
_LAUNCHES: SignatureCache[tuple[str, Launch]] = SignatureCache()


def _signature(write: _Write) -> Hashable:
    """Everything that checks and launches depend on, except for what `check_write_tensors` looks at in every call."""
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
    cache, row = kv_cache_strides(kv_cache, layer), LatentRow.of(layer)
    name, copied = ("stride_k_pe", k_pe) if row is None else ("stride_kept_dims", _kept_dims(write, row))
    of_rows = {"stride_kv_c": kv_c.stride(0), name: copied.stride(0) if copied.shape[1] else 0}
    row_unit, of_rows = in_units(kv_c.element_size(), **of_rows)
    kv_unit, of_cache = in_units(kv_cache.element_size(), stride_block=cache.block, stride_slot=cache.slot)
    shared: dict[str, Any] = {
        "row_unit": row_unit,
        "kv_unit": kv_unit,
        "kv_format": stored_format(kv_cache, architecture)[1],
        "block_rows": tiles.block_rows,
    }
    kind = _latent_kind(write, shared) if row is None else _scaled_kind(row, shared)
    return Launch.of(
        write_latent_cache_kernel if row is None else write_scaled_latent_cache_kernel,
        row_grid(tiles, len(slot_mapping)),
        {"KIND": kind},
        tiles.options,
        num_mapped=len(slot_mapping),
        num_cache_slots=cache.num_blocks * cache.block_size,
        block_size=cache.block_size,
        **of_rows,
        **of_cache,
    )


def _latent_kind(write: _Write, shared: dict[str, Any]) -> LatentWriteKind:
    latent_size, rope_size = write.kv_c.shape[1], write.k_pe.shape[1]
    return LatentWriteKind(
        **shared,
        latent_size=latent_size,
        rope_size=rope_size,
        block_latent=power_of_2(latent_size),
        block_rope=power_of_2(rope_size) if rope_size else 0,
    )


def _scaled_kind(row: LatentRow, shared: dict[str, Any]) -> ScaledLatentWriteKind:
    padding = row.padding // row.scale_dtype.itemsize
    return ScaledLatentWriteKind(
        **shared,
        scale_dims=row.scale_dims,
        num_scales=row.num_scales,
        padding=padding,
        has_e8m0_scales=row.scale_dtype == torch.uint8,
        scales_apart=row.scales_apart,
        kept_size=row.kept,
        block_scales=power_of_2(row.num_scales + padding),
        block_kept=power_of_2(row.kept) if row.kept else 0,
    )


def _kept_dims(write: _Write, row: LatentRow) -> torch.Tensor:
    """[T_kv, kept]: k_pe, or the last dims of kv_c. What is copied counts as integers, as in `_as_stored`."""
    kept = write.k_pe if row.quantized == write.kv_c.shape[1] else write.kv_c[:, row.quantized :]
    return kept.view(torch.int16)


def _tensors(write: _Write, architecture: str) -> dict[str, torch.Tensor | None]:
    """The tensors of that launch, by the kernel's names."""
    kv_c, k_pe, kv_cache, layer, slot_mapping = write
    shared: dict[str, torch.Tensor | None] = {
        "kv_cache_ptr": stored_format(kv_cache, architecture)[0],
        "kv_c_ptr": kv_c,
        "slot_mapping_ptr": slot_mapping,
    }
    if (row := LatentRow.of(layer)) is None:
        return {**shared, "k_pe_ptr": k_pe, "k_scale_ptr": layer.k_scale}
    scales, kept = row.parts(kv_cache)
    kept_dims = _kept_dims(write, row)
    # without kept dims these tensors are not read or written
    kept = kept_dims if kept is None else kept.view(torch.int16)
    return {**shared, "scales_ptr": scales, "kept_ptr": kept, "kept_dims_ptr": kept_dims}
