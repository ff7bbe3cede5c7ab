"""Scatter of this step's keys and values into the KV cache."""

import triton
import triton.language as tl

# Compiled once for all of these: what changes from step to step, and strides, which are counted in STRIDE_UNIT elements.
_RUNTIME = [
    "num_slots", "num_kv_heads", "block_size", "stride_k_row", "stride_k_head", "stride_v_row", "stride_v_head", "stride_kv",
    "stride_block", "stride_slot", "stride_kv_head",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=["slot_mapping_ptr"])
def write_kv_cache_kernel(
    # written: the cache, as integers of its element size
    kv_cache_ptr,
    # read: [T_kv, HK, D] alike, and [S]
    k_ptr,
    v_ptr,
    slot_mapping_ptr,
    num_slots,
    num_kv_heads,
    block_size,
    # in STRIDE_UNIT elements
    stride_k_row,
    stride_k_head,
    stride_v_row,
    stride_v_head,
    stride_kv,
    stride_block,
    stride_slot,
    stride_kv_head,
    STRIDE_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_ROWS pairs of (token, KV head), token by token. Grid: (tiles,)."""
    # [rows]
    pair = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = pair // num_kv_heads
    head = pair % num_kv_heads
    slot = tl.load(slot_mapping_ptr + token, mask=token < num_slots, other=-1)
    block = slot // block_size

    dim = tl.arange(0, BLOCK_D)[None, :]
    # [rows, D]; slot -1 is padding: nothing to write
    written = (slot >= 0)[:, None] & (dim < HEAD_SIZE)
    k_offset = (token * stride_k_row + head * stride_k_head) * STRIDE_UNIT
    v_offset = (token * stride_v_row + head * stride_v_head) * STRIDE_UNIT
    k = tl.load(k_ptr + k_offset[:, None] + dim, mask=written)
    v = tl.load(v_ptr + v_offset[:, None] + dim, mask=written)
    offset = (block * stride_block + (slot % block_size) * stride_slot + head * stride_kv_head) * STRIDE_UNIT
    tl.store(kv_cache_ptr + offset[:, None] + dim, k, mask=written)
    tl.store(kv_cache_ptr + stride_kv.to(tl.int64) * STRIDE_UNIT + offset[:, None] + dim, v, mask=written)
