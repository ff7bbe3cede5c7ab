"""Scatter of this step's keys and values into the KV cache, after a rotation of queries and keys if one is asked for."""

import triton
import triton.language as tl

from attn_optimized.kernels.kv_layout import key_offset, value_offset
from attn_optimized.kernels.quantization import encode, token_scale
from attn_optimized.kernels.rotary import load_rotated

# Compiled once for all of these: what changes from step to step, and strides.
_RUNTIME = [
    "num_query_tiles", "num_positions", "num_slots", "cache_slots", "num_heads", "num_kv_heads", "block_size", "stride_q_row",
    "stride_q_head", "stride_k_row", "stride_k_head", "stride_v_row", "stride_v_head", "stride_kv", "stride_block",
    "stride_slot", "stride_kv_head", "stride_k_scale_block", "stride_k_scale_slot", "stride_k_scale_head",
    "stride_v_scale_block", "stride_v_scale_slot", "stride_v_scale_head", "stride_cos_sin",
]  # fmt: skip
_ANY_ALIGNMENT = ["k_scale_ptr", "v_scale_ptr", "slot_mapping_ptr", "positions_ptr"]


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def write_kv_cache_kernel(
    # written: the cache, [NB, BS, HK] twice if TOKEN_SCALES (else read), and [T, H, D] if ROTARY_DIM
    kv_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    q_ptr,
    # read: [T_kv, HK, D] twice, [S], and if ROTARY_DIM [P] and [max_position, ROTARY_DIM]
    k_ptr,
    v_ptr,
    slot_mapping_ptr,
    positions_ptr,
    cos_sin_cache_ptr,
    num_query_tiles,
    num_positions,
    num_slots,
    cache_slots,
    num_heads,
    num_kv_heads,
    block_size,
    # in ROW_UNIT elements
    stride_q_row,
    stride_q_head,
    stride_k_row,
    stride_k_head,
    stride_v_row,
    stride_v_head,
    # in KV_UNIT elements
    stride_kv,
    stride_block,
    stride_slot,
    stride_kv_head,
    # in elements
    stride_k_scale_block,
    stride_k_scale_slot,
    stride_k_scale_head,
    stride_v_scale_block,
    stride_v_scale_slot,
    stride_v_scale_head,
    # in COS_SIN_UNIT elements
    stride_cos_sin,
    ROW_UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    INTERIOR: tl.constexpr,
    X: tl.constexpr,
    FORMAT: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    # dims that are rotated, 0 if none
    ROTARY_DIM: tl.constexpr,
    IS_NEOX: tl.constexpr,
    COS_SIN_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_ROWS pairs of (token, head), token by token. Grid: (num_query_tiles + tiles of keys and values,)."""
    # int64 from here on: tokens, heads and slots get multiplied by strides
    tile = tl.program_id(0).to(tl.int64)
    # [1, D]
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE

    if ROTARY_DIM > 0:
        if tile < num_query_tiles:
            # [rows]
            pair = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            token, head = pair // num_heads, pair % num_heads
            in_batch = token < num_positions
            position = tl.load(positions_ptr + token, mask=in_batch, other=0)
            cos_sin_ptr = cos_sin_cache_ptr + (position * stride_cos_sin * COS_SIN_UNIT)[:, None]
            q_row_ptr = q_ptr + ((token * stride_q_row + head * stride_q_head) * ROW_UNIT)[:, None]
            loaded = in_batch[:, None] & in_head
            q = load_rotated(q_row_ptr, cos_sin_ptr, dim, loaded, ROTARY_DIM, IS_NEOX)
            # in place: each thread has read both dims of its pairs before any thread writes one
            tl.debug_barrier()
            tl.store(q_row_ptr + dim, q, mask=loaded & (dim < ROTARY_DIM))
            return
        tile -= num_query_tiles

    # [rows]
    pair = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token, head = pair // num_kv_heads, pair % num_kv_heads
    mapped = tl.load(slot_mapping_ptr + token, mask=token < num_slots, other=-1)
    # slot -1 is padding: nothing to write; unchecked slots must not reach beyond the cache
    written = (mapped >= 0) & (mapped < cache_slots)
    block, slot = mapped // block_size, mapped % block_size

    # [rows, D]
    stored = written[:, None] & in_head
    k_row_ptr = k_ptr + ((token * stride_k_row + head * stride_k_head) * ROW_UNIT)[:, None]
    v_row_ptr = v_ptr + ((token * stride_v_row + head * stride_v_head) * ROW_UNIT)[:, None]
    if ROTARY_DIM > 0:
        position = tl.load(positions_ptr + token, mask=written, other=0)
        cos_sin_ptr = cos_sin_cache_ptr + (position * stride_cos_sin * COS_SIN_UNIT)[:, None]
        k = load_rotated(k_row_ptr, cos_sin_ptr, dim, stored, ROTARY_DIM, IS_NEOX)
    else:
        k = tl.load(k_row_ptr + dim, mask=stored, other=0)
    v = tl.load(v_row_ptr + dim, mask=stored, other=0)
    if FORMAT != "float":
        k_scale_ptr += block * stride_k_scale_block + slot * stride_k_scale_slot + head * stride_k_scale_head
        v_scale_ptr += block * stride_v_scale_block + slot * stride_v_scale_slot + head * stride_v_scale_head
        k = quantize(k, k_scale_ptr, written, FORMAT, TOKEN_SCALES)
        v = quantize(v, v_scale_ptr, written, FORMAT, TOKEN_SCALES)

    k_page_ptr = kv_cache_ptr + ((block * stride_block + head * stride_kv_head) * KV_UNIT)[:, None]
    v_page_ptr = k_page_ptr + stride_kv.to(tl.int64) * KV_UNIT
    k_offset = key_offset(slot[:, None], dim, block_size, stride_slot, KV_UNIT, X, INTERIOR)
    v_offset = value_offset(slot[:, None], dim, block_size, stride_slot, KV_UNIT, HEAD_SIZE, X, INTERIOR)
    tl.store(k_page_ptr + k_offset, k, mask=stored)
    tl.store(v_page_ptr + v_offset, v, mask=stored)


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
