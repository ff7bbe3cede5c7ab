"""Writing this step's latent vectors and rotated keys into rows that hold float8, their scales, and bfloat16."""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.load import DIMS_PER_SCALE
from attn_optimized.kernels.quantization import encode, token_scale
from attn_optimized.kernels.write_latent_cache import copy_dims


@dataclass(frozen=True, kw_only=True)
class ScaledLatentWriteKind:
    """What the kernel is compiled for: its one `tl.constexpr`; see `write_latent_cache.LatentWriteKind`."""

    row_unit: int
    kv_unit: int
    kv_format: str
    num_scales: int
    """Of a row: each DIMS_PER_SCALE latent dims have one."""
    rope_size: int
    block_rows: int
    block_scales: int
    block_rope: int
    """The numbers padded to powers of two; block_rope is 0 if k_pe has no dims."""


@compiled_once(aligned=("kv_cache_ptr", "kv_c_ptr", "k_pe_ptr"))
def write_scaled_latent_cache_kernel(
    # written: the cache, and its scales and its rotated dims as views of it in their types
    kv_cache_ptr, scales_ptr, rotated_ptr,
    # read: [T_kv, Lkv], [T_kv, R], [S]
    kv_c_ptr, k_pe_ptr, slot_mapping_ptr,
    num_mapped, num_cache_slots, block_size,
    # in KIND.row_unit elements
    stride_kv_c, stride_k_pe,
    # in KIND.kv_unit bytes
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
    written, row = rows_of_slots(
        slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, stride_slot, KIND
    )
    written &= index < KIND.num_scales
    dim = (index * DIMS_PER_SCALE)[:, None] + tl.arange(0, DIMS_PER_SCALE)[None, :]  # int32: in its row
    kv_c_row_ptr = kv_c_ptr + token * stride_kv_c * KIND.row_unit
    values = tl.load(kv_c_row_ptr[:, None] + dim, mask=written[:, None], other=0).to(tl.float32)
    scale = token_scale(values, FORMAT)
    codes = encode(tl.div_rn(values, tl.broadcast_to(scale[:, None], values.shape)), FORMAT)
    tl.store(kv_cache_ptr + row[:, None] + dim, codes, mask=written[:, None])
    tl.store(scales_ptr + row // 4 + index, scale, mask=written)
    if KIND.block_rope > 0:
        token = first_token + tl.arange(0, KIND.block_rows)
        written, row = rows_of_slots(
            slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, stride_slot, KIND
        )
        k_pe_row_ptr = k_pe_ptr + token * stride_k_pe * KIND.row_unit
        copy_dims(rotated_ptr + row // 2, k_pe_row_ptr, k_pe_ptr, written, "float", KIND.rope_size, KIND.block_rope)


@triton.jit
def rows_of_slots(
    slot_mapping_ptr, token, num_mapped, num_cache_slots, block_size, stride_block, stride_slot, KIND: tl.constexpr
):
    """Whether each token [rows] is written, and how many bytes of the cache lie before its row."""
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_mapped, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < num_cache_slots)
    return written, (mapped // block_size * stride_block + mapped % block_size * stride_slot) * KIND.kv_unit
