"""Attention of each request over its own tokens, dense and bidirectional: an encoder's self-attention."""

import triton
import triton.language as tl

from attn_optimized.kernels.online_softmax import attend, begin_rows, normalize
from attn_optimized.kernels.query_tiles import find_tile
from attn_optimized.kernels.visibility import visible_keys

# Compiled once for all of these: what changes from step to step, what is there or not, and strides, which are counted in
# STRIDE_UNIT elements.
_RUNTIME = [
    "scale", "left", "right", "has_lse", "has_sinks", "num_requests", "queries_per_tile", "group", "stride_out_row",
    "stride_out_head", "stride_q_row", "stride_q_head", "stride_k_row", "stride_k_head", "stride_v_row", "stride_v_head",
    "stride_lse_head",
]  # fmt: skip
_ANY_ALIGNMENT = ["lse_ptr", "sinks_ptr", "query_start_loc_ptr"]


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def varlen_attention_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr,
    lse_ptr,
    # read: [T, H, D], [T, HK, D], [T, HK, D], and [H] if has_sinks
    q_ptr,
    k_ptr,
    v_ptr,
    sinks_ptr,
    # the batch: [R + 1]
    query_start_loc_ptr,
    has_lse,
    has_sinks,
    scale,
    left,
    right,
    num_requests,
    queries_per_tile,
    group,
    # in STRIDE_UNIT elements
    stride_out_row,
    stride_out_head,
    stride_q_row,
    stride_q_head,
    stride_k_row,
    stride_k_head,
    stride_v_row,
    stride_v_head,
    # in elements
    stride_lse_head,
    STRIDE_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of queries of one request and all query heads of one KV head. Grid: (tiles, num_kv_heads).

    Row m of the tile is query `m // group` and head `m % group` of the group, for any group size. Keys and queries are the
    same tokens: a query's position is its number, and query_len is the number of keys.
    """
    # int64 from here on: rows and heads get multiplied by strides
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    _, first_row, query_len, first_query, end_query = find_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile)
    if first_query >= query_len:
        return

    # [M]
    tile_row = tl.arange(0, BLOCK_M)
    query = first_query + tile_row // group
    head = kv_head * group + tile_row % group
    row = first_row + query
    owned = query < end_query

    # a query stands at the position of its own key; keys beyond these are seen by no row of the tile
    begin, end = visible_keys(first_query, end_query - 1, left, right, query_len)
    position = query[:, None]
    row_begin, row_end = visible_keys(position, position, left, right, query_len)

    # [M, D]
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE
    stored = owned[:, None] & in_head
    q_offset = (row * stride_q_row + head * stride_q_head) * STRIDE_UNIT
    q = tl.load(q_ptr + q_offset[:, None] + dim, mask=stored, other=0.0)

    row_max, row_sum, acc = begin_rows(sinks_ptr, has_sinks, head, owned, BLOCK_M, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        # [N]
        key = start + tl.arange(0, BLOCK_N)
        key_row = first_row + key
        # [N, D]
        loaded = (key < end)[:, None] & in_head
        k_offset = (key_row * stride_k_row + kv_head * stride_k_head) * STRIDE_UNIT
        v_offset = (key_row * stride_v_row + kv_head * stride_v_head) * STRIDE_UNIT
        k = tl.load(k_ptr + k_offset[:, None] + dim, mask=loaded, other=0.0)
        v = tl.load(v_ptr + v_offset[:, None] + dim, mask=loaded, other=0.0)
        visible = (row_begin <= key[None, :]) & (key[None, :] < row_end)
        row_max, row_sum, acc = attend(row_max, row_sum, acc, q, k, v, visible, scale)

    out, lse = normalize(row_max, row_sum, acc)
    out = out.to(out_ptr.dtype.element_ty)
    out_offset = (row * stride_out_row + head * stride_out_head) * STRIDE_UNIT
    tl.store(out_ptr + out_offset[:, None] + dim, out, mask=stored)
    if has_lse:
        tl.store(lse_ptr + head * stride_lse_head + row, lse, mask=owned)
