"""Writing this step's latent vectors into pages of rows, in float8 and bfloat16, behind which their ue8m0 scales lie."""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.load import DIMS_PER_PLANE_SCALE
from attn_optimized.kernels.quantization import e8m0_code, e8m0_number, encode
from attn_optimized.kernels.write_latent_cache import copy_dims


@dataclass(frozen=True, kw_only=True)
class E8m0PlanesWriteKind:
    """What the kernel is compiled for: its one `tl.constexpr`; see `write_latent_cache.LatentWriteKind`."""

    row_unit: int
    kv_unit: int
    kv_format: str
    num_scales: int
    """Of a slot: all groups of DIMS_PER_PLANE_SCALE dims but the last have one."""
    row_bytes: int
    """Of a slot, without its scales."""
    block_rows: int
    block_groups: int
    """The groups of a row, padded to a power of two."""


@compiled_once(aligned=("kv_cache_ptr", "kept_ptr", "kv_c_ptr", "kept_dims_ptr"))
def write_e8m0_planes_kernel(
    # written: the cache, and as views of it in their types the scales and the dims that are kept as they are
    kv_cache_ptr, scales_ptr, kept_ptr,
    # read: [T_kv, D], the last DIMS_PER_PLANE_SCALE of its dims, [S]
    kv_c_ptr, kept_dims_ptr, slot_mapping_ptr,
    num_mapped, num_cache_slots, block_size,
    # in KIND.row_unit elements
    stride_kv_c,
    # in KIND.kv_unit bytes
    stride_block,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of KIND.block_rows tokens. Grid: (tiles,)."""
    FORMAT: tl.constexpr = KIND.kv_format
    # int64 from here on: tokens and slots get multiplied by strides
    first_token = tl.program_id(0).to(tl.int64) * KIND.block_rows
    # pairs of a token and a group: [rows * groups] each, and [rows * groups, dims of a group]
    pair = tl.arange(0, KIND.block_rows * KIND.block_groups)
    token, index = first_token + pair // KIND.block_groups, pair % KIND.block_groups
    written, page, slot = pages_of_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, KIND)
    has_scale = index < KIND.num_scales
    dim = (index * DIMS_PER_PLANE_SCALE)[:, None] + tl.arange(0, DIMS_PER_PLANE_SCALE)[None, :]  # int32: in its row
    kv_c_row_ptr = kv_c_ptr + token * stride_kv_c * KIND.row_unit
    quantized = (written & has_scale)[:, None]
    values = tl.load(kv_c_row_ptr[:, None] + dim, mask=quantized, other=0).to(tl.float32)
    scale_code = e8m0_code(values, FORMAT)
    scale = e8m0_number(scale_code)
    codes = encode(tl.div_rn(values, tl.broadcast_to(scale[:, None], values.shape)), FORMAT)
    tl.store(kv_cache_ptr + (page + slot * KIND.row_bytes)[:, None] + dim, codes, mask=quantized)
    # the last group has no scale, but a byte of padding
    scale_code = tl.where(has_scale, scale_code, 0).to(tl.uint8)
    scales_of_slot = page + slot * (KIND.num_scales + 1)
    tl.store(scales_ptr + scales_of_slot + index, scale_code, mask=written & (index <= KIND.num_scales))
    token = first_token + tl.arange(0, KIND.block_rows)
    written, page, slot = pages_of_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, KIND)
    kept_row_ptr = kept_ptr + (page + slot * KIND.row_bytes) // 2
    kept_dims_row_ptr = kept_dims_ptr + token * stride_kv_c * KIND.row_unit
    copy_dims(kept_row_ptr, kept_dims_row_ptr, kept_dims_ptr, written, "float", DIMS_PER_PLANE_SCALE, DIMS_PER_PLANE_SCALE)


@triton.jit
def pages_of_slots(slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, KIND: tl.constexpr):
    """Whether each token [rows] is written, how many bytes of the cache lie before its page, and its slot in the page."""
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_mapped, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < num_cache_slots)
    return written, mapped // block_size * stride_block * KIND.kv_unit, mapped % block_size
