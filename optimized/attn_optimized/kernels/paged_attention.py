"""Attention over a paged KV cache: prefill, extend and decode of a ragged batch in one launch."""

import triton
import triton.language as tl

from attn_optimized.kernels.online_softmax import attend, begin_rows, normalize
from attn_optimized.kernels.query_tiles import find_tile
from attn_optimized.kernels.visibility import visible_keys

# Compiled once for all of these: what changes from step to step, what is there or not, and strides, which are counted in
# STRIDE_UNIT elements.
_RUNTIME = [
    "scale", "left", "right", "has_lse", "has_sinks", "has_causal", "num_requests", "queries_per_tile", "group", "block_size",
    "stride_out_row", "stride_out_head", "stride_q_row", "stride_q_head", "stride_kv", "stride_block", "stride_slot",
    "stride_kv_head", "stride_lse_head", "stride_table",
]  # fmt: skip
_ANY_ALIGNMENT = ["lse_ptr", "sinks_ptr", "query_start_loc_ptr", "seq_lens_ptr", "block_table_ptr", "causal_ptr"]


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def paged_attention_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr,
    lse_ptr,
    # read: [T, H, D], the cache, and [H] if has_sinks
    q_ptr,
    kv_cache_ptr,
    sinks_ptr,
    # the batch: [R + 1], [R], [R, max_blocks], and [R] if has_causal
    query_start_loc_ptr,
    seq_lens_ptr,
    block_table_ptr,
    causal_ptr,
    has_lse,
    has_sinks,
    has_causal,
    scale,
    left,
    right,
    num_requests,
    queries_per_tile,
    group,
    block_size,
    # in STRIDE_UNIT elements
    stride_out_row,
    stride_out_head,
    stride_q_row,
    stride_q_head,
    stride_kv,
    stride_block,
    stride_slot,
    stride_kv_head,
    # in elements
    stride_lse_head,
    stride_table,
    STRIDE_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of queries of one request and all query heads of one KV head. Grid: (tiles, num_kv_heads).

    Row m of the tile is query `m // group` and head `m % group` of the group, for any group size.
    """
    # int64 from here on: rows, blocks and heads get multiplied by strides
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    request, first_row, query_len, first_query, end_query = find_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile)
    if first_query >= query_len:
        return
    seq_len = tl.load(seq_lens_ptr + request).to(tl.int64)
    if has_causal:
        right = tl.where(tl.load(causal_ptr + request), tl.minimum(right, 0), right)

    # [M]
    tile_row = tl.arange(0, BLOCK_M)
    query = first_query + tile_row // group
    head = kv_head * group + tile_row % group
    row = first_row + query
    owned = query < end_query

    # keys beyond these are seen by no row of the tile: they may be garbage, and are not loaded
    context_len = seq_len - query_len
    begin, end = visible_keys(context_len + first_query, context_len + end_query - 1, left, right, seq_len)
    position = (context_len + query)[:, None]
    row_begin, row_end = visible_keys(position, position, left, right, seq_len)

    # [M, D]
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE
    stored = owned[:, None] & in_head
    q_offset = (row * stride_q_row + head * stride_q_head) * STRIDE_UNIT
    q = tl.load(q_ptr + q_offset[:, None] + dim, mask=stored, other=0.0)

    row_max, row_sum, acc = begin_rows(sinks_ptr, has_sinks, head, owned, BLOCK_M, BLOCK_D)
    table_ptr = block_table_ptr + request * stride_table
    k_cache_ptr = kv_cache_ptr + kv_head * stride_kv_head * STRIDE_UNIT + dim
    v_cache_ptr = k_cache_ptr + stride_kv.to(tl.int64) * STRIDE_UNIT
    for start in range(begin, end, BLOCK_N):
        # [N]
        key = start + tl.arange(0, BLOCK_N)
        in_tile = key < end
        block = tl.load(table_ptr + key // block_size, mask=in_tile, other=0).to(tl.int64)
        offset = (block * stride_block + (key % block_size).to(tl.int64) * stride_slot) * STRIDE_UNIT
        # [N, D]
        loaded = in_tile[:, None] & in_head
        k = tl.load(k_cache_ptr + offset[:, None], mask=loaded, other=0.0)
        v = tl.load(v_cache_ptr + offset[:, None], mask=loaded, other=0.0)
        visible = (row_begin <= key[None, :]) & (key[None, :] < row_end)
        row_max, row_sum, acc = attend(row_max, row_sum, acc, q, k, v, visible, scale)

    out, lse = normalize(row_max, row_sum, acc)
    out = out.to(out_ptr.dtype.element_ty)
    out_offset = (row * stride_out_row + head * stride_out_head) * STRIDE_UNIT
    tl.store(out_ptr + out_offset[:, None] + dim, out, mask=stored)
    if has_lse:
        tl.store(lse_ptr + head * stride_lse_head + row, lse, mask=owned)
