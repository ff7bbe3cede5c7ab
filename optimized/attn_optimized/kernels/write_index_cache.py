"""Writing this step's index keys into the cache of an index layer."""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.index_cache import index_key_offset, index_scale_ptr
from attn_optimized.kernels.quantization import encode

_SMALLEST_MAGNITUDE = tl.constexpr(1e-4)
"""The least magnitude that a scale is made for, as engines have it."""


@dataclass(frozen=True, kw_only=True)
class IndexWriteKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`; see `write_kv_cache.WriteKind`."""

    row_unit: int
    """Elements that the stride of k counts in; see `launch.units`."""
    cache_unit: int
    """Elements that the strides of the cache count in."""
    layout: str
    """The layout of the cache: see index_cache."""
    cache_format: str
    """The format of the cache's elements: see quantization."""
    has_e8m0_scales: bool
    """True if scales are powers of two. They are stored as float32 in any case."""
    head_size: int
    block_rows: int
    block_d: int
    """The head size padded to a power of two."""


@compiled_once(aligned=("index_cache_ptr", "k_ptr"))
def write_index_cache_kernel(
    # written
    index_cache_ptr,
    # read: [T_k, D], [S]
    k_ptr, slot_mapping_ptr,
    num_mapped, num_cache_slots, block_size,
    # the magnitude that a row's largest number is stored as
    largest,
    # in KIND.row_unit elements
    stride_k,
    # in KIND.cache_unit elements; that of slots is used only by the layout "plain"
    stride_block, stride_slot,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of KIND.block_rows tokens. Grid: (tiles,)."""
    FORMAT: tl.constexpr = KIND.cache_format
    LAYOUT: tl.constexpr = KIND.layout
    # int64 from here on: tokens and slots get multiplied by strides
    token = tl.program_id(0).to(tl.int64) * KIND.block_rows + tl.arange(0, KIND.block_rows)
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_mapped, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < num_cache_slots)
    page, slot = mapped // block_size * stride_block * KIND.cache_unit, mapped % block_size
    # [1, D], [rows, D]
    dim = tl.arange(0, KIND.block_d)[None, :]
    stored = written[:, None] & (dim < KIND.head_size)
    numbers = tl.load(k_ptr + (token * stride_k * KIND.row_unit)[:, None] + dim, mask=stored, other=0)
    if FORMAT != "float":
        numbers = numbers.to(tl.float32)
        if LAYOUT != "plain":
            scale = index_scale(numbers, largest, KIND.has_e8m0_scales)
            tl.store(index_scale_ptr(index_cache_ptr, page, slot, block_size, KIND.head_size), scale, mask=written)
            numbers = tl.div_rn(numbers, tl.broadcast_to(scale[:, None], numbers.shape))
        numbers = encode(numbers, FORMAT)
    tl.store(index_cache_ptr + index_key_offset(page[:, None], slot[:, None], dim, stride_slot, KIND), numbers, mask=stored)


@triton.jit
def index_scale(numbers, largest, E8M0: tl.constexpr):
    """The scale [rows] of each row of float32 numbers [rows, D]: its largest magnitude over `largest`, or if E8M0 the next
    power of two that is not smaller."""
    magnitude = tl.maximum(tl.max(tl.abs(numbers), 1), _SMALLEST_MAGNITUDE)
    scale = tl.div_rn(magnitude, tl.full(magnitude.shape, 1.0, tl.float32) * largest)
    if E8M0:
        # a mantissa above 1 carries into the exponent, and then goes
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & -0x800000).to(tl.float32, bitcast=True)
    return scale
