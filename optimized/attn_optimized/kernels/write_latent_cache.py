"""Writing this step's latent vectors and rotated keys into the cache of latent attention (MLA)."""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.quantization import encode


@dataclass(frozen=True, kw_only=True)
class LatentWriteKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`; see `write_kv_cache.WriteKind`."""

    row_unit: int
    """Elements that the strides of kv_c and k_pe count in; see `launch.units`."""
    kv_unit: int
    """Elements that the strides of the cache count in."""
    kv_format: str
    """The format of the cache's elements: see quantization."""
    latent_size: int
    rope_size: int
    block_rows: int
    block_latent: int
    block_rope: int
    """The sizes padded to powers of two; block_rope is 0 if k_pe has no dims."""


@compiled_once(aligned=("kv_cache_ptr", "kv_c_ptr", "k_pe_ptr"))
def write_latent_cache_kernel(
    # written
    kv_cache_ptr,
    # read: [T_kv, Lkv], [T_kv, R], [S], and one scale unless KIND.kv_format is "float"
    kv_c_ptr, k_pe_ptr, slot_mapping_ptr, k_scale_ptr,
    num_mapped, num_cache_slots, block_size,
    # in KIND.row_unit elements
    stride_kv_c, stride_k_pe,
    # in KIND.kv_unit elements
    stride_block, stride_slot,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of KIND.block_rows tokens. Grid: (tiles,)."""
    # int64 from here on: tokens and slots get multiplied by strides
    token = tl.program_id(0).to(tl.int64) * KIND.block_rows + tl.arange(0, KIND.block_rows)
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_mapped, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < num_cache_slots)
    block, slot = mapped // block_size, mapped % block_size
    # [rows]
    row_ptr = kv_cache_ptr + (block * stride_block + slot * stride_slot) * KIND.kv_unit
    kv_c_row_ptr = kv_c_ptr + token * stride_kv_c * KIND.row_unit
    FORMAT: tl.constexpr = KIND.kv_format
    copy_dims(row_ptr, kv_c_row_ptr, k_scale_ptr, written, FORMAT, KIND.latent_size, KIND.block_latent)
    if KIND.block_rope > 0:
        k_pe_row_ptr = k_pe_ptr + token * stride_k_pe * KIND.row_unit
        copy_dims(row_ptr + KIND.latent_size, k_pe_row_ptr, k_scale_ptr, written, FORMAT, KIND.rope_size, KIND.block_rope)


@triton.jit
def copy_dims(to_ptr, from_ptr, scale_ptr, written, FORMAT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Copy SIZE dims of each row that is written, quantized unless FORMAT is "float"; pointers are [rows]."""
    # [1, D]
    dim = tl.arange(0, BLOCK)[None, :]
    stored = written[:, None] & (dim < SIZE)
    # [rows, D]
    dims = tl.load(from_ptr[:, None] + dim, mask=stored, other=0)
    if FORMAT != "float":
        dims = encode(tl.div_rn(dims.to(tl.float32), tl.full(dims.shape, 1.0, tl.float32) * tl.load(scale_ptr)), FORMAT)
    tl.store(to_ptr[:, None] + dim, dims, mask=stored)
