"""Writing this step's keys and values into the KV cache, and rotating queries and keys if the call asks for it (RoPE)."""

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.kv_layout import key_offset, value_offset
from attn_optimized.kernels.quantization import encode, token_scale
from attn_optimized.kernels.rotary import load_rotated


@dataclass(frozen=True, kw_only=True)
class WriteKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`.

    Triton 3.6 takes a string from it only by way of a local constant: `FORMAT: tl.constexpr = KIND.kv_format`.
    """

    row_unit: int
    """Elements that the strides of q, k and v count in; see `launch.units`."""
    kv_unit: int
    """Elements that the strides of the cache count in."""
    interior: str
    """The order of a page in memory, and the elements in 16 bytes of it: see kv_layout."""
    x: int
    kv_format: str
    """The format of the cache's elements: see quantization."""
    has_token_scales: bool
    """True if the cache has a scale for each token and head, which is written too."""
    rotary_dim: int
    """Dims of a head that are rotated, 0 if the call asks for no rotation."""
    is_neox: bool
    cos_sin_unit: int
    """Elements that the stride of the cosines and sines counts in."""
    head_size: int
    """Dims of q and k."""
    v_head_size: int
    """Dims of v."""
    block_rows: int
    block_d: int
    """The wider of the two, padded to a power of two."""


class Rows(NamedTuple):
    """The rows of q, k or v that this call reads, [num_rows, num_heads, D]. Strides count KIND.row_unit elements."""

    ptr: tl.tensor
    num_rows: tl.tensor
    num_heads: tl.tensor
    stride_row: tl.tensor
    stride_head: tl.tensor


class Rotation(NamedTuple):
    """The positions of the rows, [P], and the cosines and sines of each position, [max_position, KIND.rotary_dim]."""

    positions_ptr: tl.tensor
    cos_sin_cache_ptr: tl.tensor
    stride_position: tl.tensor


class Scales(NamedTuple):
    """The scales of K or of V. Strides count elements."""

    ptr: tl.tensor
    stride_block: tl.tensor
    stride_slot: tl.tensor
    stride_head: tl.tensor


class Cache(NamedTuple):
    """The KV cache. Strides count KIND.kv_unit elements; `stride_kv` leads from K to V."""

    ptr: tl.tensor
    k_scales: Scales
    v_scales: Scales
    num_slots: tl.tensor
    block_size: tl.tensor
    stride_kv: tl.tensor
    stride_block: tl.tensor
    stride_slot: tl.tensor
    stride_head: tl.tensor


@compiled_once(aligned=("kv_cache_ptr", "q_ptr", "k_ptr", "v_ptr", "cos_sin_cache_ptr"))
def write_kv_cache_kernel(
    # written: the cache, its scales [NB, BS, HK] if KIND.has_token_scales (else they are read), [T, H, D] if KIND.rotary_dim
    kv_cache_ptr, k_scale_ptr, v_scale_ptr, q_ptr,
    # read: [T_kv, HK, D] twice, [S], and if KIND.rotary_dim [P] and [max_position, KIND.rotary_dim]
    k_ptr, v_ptr, slot_mapping_ptr, positions_ptr, cos_sin_cache_ptr,
    num_query_tiles, num_positions, num_mapped, num_cache_slots, num_heads, num_kv_heads, block_size,
    # in KIND.row_unit elements
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head,
    # in KIND.kv_unit elements
    stride_kv, stride_block, stride_slot, stride_kv_head,
    # in elements
    stride_k_scale_block, stride_k_scale_slot, stride_k_scale_head,
    stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head,
    # in KIND.cos_sin_unit elements
    stride_cos_sin,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of KIND.block_rows pairs of (token, head), token by token: of queries to rotate, or of keys and values to write.

    Grid: (num_query_tiles + tiles of keys and values,). One launch does both: a decode has too few rows to fill a GPU twice.
    """
    # int64 from here on: tokens, heads and slots get multiplied by strides
    tile = tl.program_id(0).to(tl.int64)
    # [1, D]
    dim = tl.arange(0, KIND.block_d)[None, :]
    rotation = Rotation(positions_ptr, cos_sin_cache_ptr, stride_cos_sin)
    if KIND.rotary_dim > 0:
        if tile < num_query_tiles:
            rotate_queries(tile, dim, Rows(q_ptr, num_positions, num_heads, stride_q_row, stride_q_head), rotation, KIND)
            return
        tile -= num_query_tiles
    k = Rows(k_ptr, num_mapped, num_kv_heads, stride_k_row, stride_k_head)
    v = Rows(v_ptr, num_mapped, num_kv_heads, stride_v_row, stride_v_head)
    cache = Cache(
        ptr=kv_cache_ptr, num_slots=num_cache_slots, block_size=block_size,
        k_scales=Scales(k_scale_ptr, stride_k_scale_block, stride_k_scale_slot, stride_k_scale_head),
        v_scales=Scales(v_scale_ptr, stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head),
        stride_kv=stride_kv, stride_block=stride_block, stride_slot=stride_slot, stride_head=stride_kv_head,
    )  # fmt: skip
    write_keys_and_values(tile, dim, k, v, slot_mapping_ptr, rotation, cache, KIND)


@triton.jit
def rotate_queries(tile, dim, q, rotation, KIND: tl.constexpr):
    """Rotate a tile of rows of q in place; dim is [1, D]."""
    # [rows]
    token, head = pairs_of_tile(tile, q.num_heads, KIND)
    owned = token < q.num_rows
    position = tl.load(rotation.positions_ptr + token, mask=owned, other=0)
    cos_sin_ptr = cos_sin_pointers(rotation, position, KIND)
    row_ptr = row_pointers(q, token, head, KIND)
    # [rows, D]
    loaded = owned[:, None] & (dim < KIND.head_size)
    rotated = load_rotated(row_ptr, cos_sin_ptr, dim, loaded, KIND.rotary_dim, KIND.is_neox)
    # in place: each thread has read both dims of its pairs before any thread writes one
    tl.debug_barrier()
    tl.store(row_ptr + dim, rotated, mask=loaded & (dim < KIND.rotary_dim))


@triton.jit
def write_keys_and_values(tile, dim, k_rows, v_rows, slot_mapping_ptr, rotation, cache, KIND: tl.constexpr):
    """Write a tile of rows of k, rotated if KIND.rotary_dim, and of v to their slots of the cache; dim is [1, D]."""
    # [rows]
    token, head = pairs_of_tile(tile, k_rows.num_heads, KIND)
    mapped = tl.load(slot_mapping_ptr + token, mask=token < k_rows.num_rows, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < cache.num_slots)
    block, slot = mapped // cache.block_size, mapped % cache.block_size

    # [rows, D] of k and of v
    stored, v_stored = written[:, None] & (dim < KIND.head_size), written[:, None] & (dim < KIND.v_head_size)
    k_row_ptr, v_row_ptr = row_pointers(k_rows, token, head, KIND), row_pointers(v_rows, token, head, KIND)
    if KIND.rotary_dim > 0:
        position = tl.load(rotation.positions_ptr + token, mask=written, other=0)
        cos_sin_ptr = cos_sin_pointers(rotation, position, KIND)
        k = load_rotated(k_row_ptr, cos_sin_ptr, dim, stored, KIND.rotary_dim, KIND.is_neox)
    else:
        k = tl.load(k_row_ptr + dim, mask=stored, other=0)
    v = tl.load(v_row_ptr + dim, mask=v_stored, other=0)
    FORMAT: tl.constexpr = KIND.kv_format
    if FORMAT != "float":
        k_scale_ptr = scale_pointers(cache.k_scales, block, slot, head)
        v_scale_ptr = scale_pointers(cache.v_scales, block, slot, head)
        k = quantize(k, k_scale_ptr, written, FORMAT, KIND.has_token_scales)
        v = quantize(v, v_scale_ptr, written, FORMAT, KIND.has_token_scales)
    store_elements(cache, block, slot[:, None], head, dim, k, v, stored, v_stored, KIND)


@triton.jit
def pairs_of_tile(tile, num_heads, KIND: tl.constexpr):
    """The token and the head of each row of a tile, [rows] twice."""
    pair = tile * KIND.block_rows + tl.arange(0, KIND.block_rows)
    return pair // num_heads, pair % num_heads


@triton.jit
def row_pointers(rows, token, head, KIND: tl.constexpr):
    """The first element of each pair's row, [rows, 1]."""
    return rows.ptr + ((token * rows.stride_row + head * rows.stride_head) * KIND.row_unit)[:, None]


@triton.jit
def cos_sin_pointers(rotation, position, KIND: tl.constexpr):
    """The first cosine of each position, [rows, 1]."""
    return rotation.cos_sin_cache_ptr + (position * rotation.stride_position * KIND.cos_sin_unit)[:, None]


@triton.jit
def scale_pointers(scales, block, slot, head):
    """The scale of each row, [rows]."""
    return scales.ptr + (block * scales.stride_block + slot * scales.stride_slot + head * scales.stride_head)


@triton.jit
def store_elements(cache, block, slot, head, dim, k, v, stored, v_stored, KIND: tl.constexpr):
    """Write k and v, [rows, D] each, to blocks [rows], slots [rows, 1], heads [rows] and dims [1, D].

    What is written of k is `stored`, and of v `v_stored`.
    """
    INTERIOR: tl.constexpr = KIND.interior
    k_page_ptr = cache.ptr + ((block * cache.stride_block + head * cache.stride_head) * KIND.kv_unit)[:, None]
    v_page_ptr = k_page_ptr + cache.stride_kv.to(tl.int64) * KIND.kv_unit
    k_offset = key_offset(slot, dim, cache.block_size, cache.stride_slot, KIND.kv_unit, KIND.x, INTERIOR)
    v_offset = value_offset(slot, dim, cache.block_size, cache.stride_slot, KIND.kv_unit, KIND.v_head_size, KIND.x, INTERIOR)
    tl.store(k_page_ptr + k_offset, k, mask=stored)
    tl.store(v_page_ptr + v_offset, v, mask=v_stored)


@triton.jit
def quantize(rows, scale_ptr, written, FORMAT: tl.constexpr, TOKEN_SCALES: tl.constexpr):
    """Rows of numbers [rows, D] as elements of a cache, by the scales [rows], which are stored if each token has its own."""
    values = rows.to(tl.float32)
    if TOKEN_SCALES:
        scale = token_scale(values, FORMAT)
        tl.store(scale_ptr, scale, mask=written)
    else:
        scale = tl.load(scale_ptr, mask=written, other=1.0)
    return encode(tl.div_rn(values, scale[:, None]), FORMAT)
