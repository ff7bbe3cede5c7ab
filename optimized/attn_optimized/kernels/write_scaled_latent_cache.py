"""Writing this step's latent vectors and rotated keys into slots that hold float8, their scales, and bfloat16."""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.quantization import encode, group_scale, scale_number
from attn_optimized.kernels.write_latent_cache import copy_dims


@dataclass(frozen=True, kw_only=True)
class ScaledLatentWriteKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`; see `write_latent_cache.LatentWriteKind`."""

    row_unit: int
    kv_unit: int
    kv_format: str
    scale_dims: int
    """Dims that share a scale."""
    num_scales: int
    """Scales of a slot."""
    padding: int
    """Scales after those that are written as 0."""
    has_e8m0_scales: bool
    """True if scales are ue8m0 bytes, and not float32."""
    scales_apart: bool
    """True if the scales of a page lie after its rows, and not in each of them."""
    kept_size: int
    """Dims that are copied."""
    block_rows: int
    block_scales: int
    block_kept: int
    """Scales with their padding, and kept dims, padded to powers of two; block_kept is 0 if there are no kept dims."""


@compiled_once(aligned=("kv_cache_ptr", "kept_ptr", "kv_c_ptr", "kept_dims_ptr"))
def write_scaled_latent_cache_kernel(
    # written: the cache, and as views of it in their types its scales and the dims that are kept as they are
    kv_cache_ptr, scales_ptr, kept_ptr,
    # read: [T_kv, Lkv], [T_kv, KIND.kept_size], [S]
    kv_c_ptr, kept_dims_ptr, slot_mapping_ptr,
    num_mapped, num_cache_slots, block_size,
    # in KIND.row_unit elements
    stride_kv_c, stride_kept_dims,
    # in KIND.kv_unit bytes; that of slots is not used if KIND.scales_apart
    stride_block, stride_slot,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of KIND.block_rows tokens. Grid: (tiles,)."""
    FORMAT: tl.constexpr = KIND.kv_format
    # int64 from here on: tokens and slots get multiplied by strides
    first_token = tl.program_id(0).to(tl.int64) * KIND.block_rows
    # pairs of a token and a scale: [rows * scales] each, and [rows * scales, dims of a scale]
    pair = tl.arange(0, KIND.block_rows * KIND.block_scales)
    token, index = first_token + pair // KIND.block_scales, pair % KIND.block_scales
    written, page, slot = find_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block)
    has_scale = index < KIND.num_scales
    dim = (index * KIND.scale_dims)[:, None] + tl.arange(0, KIND.scale_dims)[None, :]  # int32: in its row
    row = row_of_slot(page, slot, stride_slot, KIND)
    kv_c_row_ptr = kv_c_ptr + token * stride_kv_c * KIND.row_unit
    quantized = written & has_scale
    values = tl.load(kv_c_row_ptr[:, None] + dim, mask=quantized[:, None], other=0).to(tl.float32)
    scale = group_scale(values, KIND.has_e8m0_scales, FORMAT)
    codes = encode(tl.div_rn(values, tl.broadcast_to(scale_number(scale)[:, None], values.shape)), FORMAT)
    tl.store(kv_cache_ptr + row[:, None] + dim, codes, mask=quantized[:, None])
    SCALE_BYTES: tl.constexpr = 1 if KIND.has_e8m0_scales else 4
    if KIND.scales_apart:
        scales_of_slot = page * KIND.kv_unit // SCALE_BYTES + slot * (KIND.num_scales + KIND.padding)
    else:
        scales_of_slot = row // SCALE_BYTES
    if KIND.padding > 0:
        scale, quantized = tl.where(has_scale, scale, 0), written & (index < KIND.num_scales + KIND.padding)
    tl.store(scales_ptr + scales_of_slot + index, scale.to(scales_ptr.dtype.element_ty), mask=quantized)
    if KIND.block_kept > 0:
        token = first_token + tl.arange(0, KIND.block_rows)
        written, page, slot = find_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block)
        kept_row_ptr = kept_ptr + row_of_slot(page, slot, stride_slot, KIND) // 2
        kept_dims_row_ptr = kept_dims_ptr + token * stride_kept_dims * KIND.row_unit
        copy_dims(kept_row_ptr, kept_dims_row_ptr, kept_dims_ptr, written, "float", KIND.kept_size, KIND.block_kept)


@triton.jit
def find_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block):
    """A mask of the tokens [rows] that are written, the offset of each token's page, and its slot in the page."""
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_mapped, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < num_cache_slots)
    return written, mapped // block_size * stride_block, mapped % block_size


@triton.jit
def row_of_slot(page, slot, stride_slot, KIND: tl.constexpr):
    """Bytes of the cache before each slot's row, which is dense if scales lie apart."""
    ROW_BYTES: tl.constexpr = KIND.num_scales * KIND.scale_dims + 2 * KIND.kept_size
    return page * KIND.kv_unit + slot * ROW_BYTES if KIND.scales_apart else (page + slot * stride_slot) * KIND.kv_unit
