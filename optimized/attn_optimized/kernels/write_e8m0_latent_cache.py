"""Writing this step's latent vectors into rows that hold float8 and their scales, which are powers of two, ue8m0."""

from dataclasses import dataclass

import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.load import DIMS_PER_E8M0
from attn_optimized.kernels.quantization import e8m0_code, e8m0_number, encode
from attn_optimized.kernels.write_scaled_latent_cache import rows_of_slots


@dataclass(frozen=True, kw_only=True)
class E8m0LatentWriteKind:
    """What the kernel is compiled for: its one `tl.constexpr`; see `write_latent_cache.LatentWriteKind`."""

    row_unit: int
    kv_unit: int
    kv_format: str
    num_scales: int
    """Of a row: each DIMS_PER_E8M0 latent dims have one."""
    block_rows: int
    block_scales: int
    """num_scales, padded to a power of two."""


@compiled_once(aligned=("kv_cache_ptr", "kv_c_ptr"))
def write_e8m0_latent_cache_kernel(
    # written: the cache, and its bytes, in which the scales are
    kv_cache_ptr, bytes_ptr,
    # read: [T_kv, D], [S]
    kv_c_ptr, slot_mapping_ptr,
    num_mapped, num_cache_slots, block_size,
    # in KIND.row_unit elements
    stride_kv_c,
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
    dim = (index * DIMS_PER_E8M0)[:, None] + tl.arange(0, DIMS_PER_E8M0)[None, :]  # int32: in its row
    kv_c_row_ptr = kv_c_ptr + token * stride_kv_c * KIND.row_unit
    values = tl.load(kv_c_row_ptr[:, None] + dim, mask=written[:, None], other=0).to(tl.float32)
    scale_code = e8m0_code(values, FORMAT)
    scale = e8m0_number(scale_code)
    codes = encode(tl.div_rn(values, tl.broadcast_to(scale[:, None], values.shape)), FORMAT)
    tl.store(kv_cache_ptr + row[:, None] + dim, codes, mask=written[:, None])
    tl.store(bytes_ptr + row + KIND.num_scales * DIMS_PER_E8M0 + index, scale_code.to(tl.uint8), mask=written)
