"""Attention of a ragged batch over a paged KV cache or over its own dense tokens: prefill, extend and decode in one launch."""

import triton
import triton.language as tl

from attn_optimized.kernels.kv_layout import key_offset, value_offset
from attn_optimized.kernels.logits import alibi, qq_bias, soft_cap
from attn_optimized.kernels.online_softmax import attend, begin_rows, normalize
from attn_optimized.kernels.quantization import decode, encode
from attn_optimized.kernels.query_tiles import find_tile
from attn_optimized.kernels.visibility import in_any_range, in_chunk, in_window, with_ranges

# Compiled once for all of these: what changes from step to step, what is there or not, and strides.
_RUNTIME = [
    "scale", "cap", "left", "right", "ahead", "sink_tokens", "chunk", "range_left", "num_ranges", "bias_len", "has_lse",
    "has_sinks", "has_alibi", "has_causal", "has_scales", "has_output_scale", "num_requests", "num_tokens",
    "queries_per_tile", "group", "block_size", "num_splits", "first_part", "stride_out_part", "stride_out_row",
    "stride_out_head", "stride_q_row", "stride_q_head", "stride_kv", "stride_block", "stride_k_slot", "stride_k_head",
    "stride_v_slot", "stride_v_head", "stride_k_scale_block", "stride_k_scale_slot", "stride_k_scale_head",
    "stride_v_scale_block", "stride_v_scale_slot", "stride_v_scale_head", "stride_lse_head", "stride_lse_part",
    "stride_table", "stride_bias",
]  # fmt: skip
_ANY_ALIGNMENT = [
    "lse_ptr", "row_sum_ptr", "k_scale_ptr", "v_scale_ptr", "output_scale_ptr", "sinks_ptr", "alibi_slopes_ptr", "qq_bias_ptr",
    "ranges_ptr", "query_start_loc_ptr", "seq_lens_ptr", "block_table_ptr", "causal_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def attention_kernel(
    # written: [T, H, D], and [H, T] if has_lse. If PARTIAL, the softmax's state instead, for each part of the keys: its sums
    # of values [parts, T, H, D], its largest logits [parts, H, T], and the sums of its weights likewise
    out_ptr,
    lse_ptr,
    row_sum_ptr,
    # read: [T, H, D], and K and V; V's begin is stride_kv behind v_ptr
    q_ptr,
    k_ptr,
    v_ptr,
    # one, or one per KV head, if has_scales; [NB, BS, HK] if TOKEN_SCALES; one if has_output_scale
    k_scale_ptr,
    v_scale_ptr,
    output_scale_ptr,
    # [H] if has_sinks, [H] if has_alibi, [bias_len, bias_len], [R, num_ranges, 2]
    sinks_ptr,
    alibi_slopes_ptr,
    qq_bias_ptr,
    ranges_ptr,
    # the batch: [R + 1], [R], [R, max_blocks], and [R] if has_causal
    query_start_loc_ptr,
    seq_lens_ptr,
    block_table_ptr,
    causal_ptr,
    has_lse,
    has_sinks,
    has_alibi,
    has_causal,
    has_scales,
    has_output_scale,
    scale,
    cap,
    # distances: of the window's edges, of the farthest key ahead (0 if causal), and of the farthest key back inside a range
    left,
    right,
    ahead,
    range_left,
    sink_tokens,
    chunk,
    num_ranges,
    bias_len,
    num_requests,
    num_tokens,
    queries_per_tile,
    group,
    block_size,
    num_splits,
    first_part,
    # in Q_UNIT elements
    stride_out_part,
    stride_out_row,
    stride_out_head,
    stride_q_row,
    stride_q_head,
    # in KV_UNIT elements
    stride_kv,
    stride_block,
    stride_k_slot,
    stride_k_head,
    stride_v_slot,
    stride_v_head,
    # in elements
    stride_k_scale_block,
    stride_k_scale_slot,
    stride_k_scale_head,
    stride_v_scale_block,
    stride_v_scale_slot,
    stride_v_scale_head,
    stride_lse_part,
    stride_lse_head,
    stride_table,
    stride_bias,
    Q_UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    PAGED: tl.constexpr,
    INTERIOR: tl.constexpr,
    X: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    OUT_FORMAT: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    # whether what a row sees may have holes (sink_tokens, chunks, ranges, qq_bias), and whether logits are more than products
    HOLES: tl.constexpr,
    LOGITS: tl.constexpr,
    PARTIAL: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of queries of one request, all query heads of one KV head, one split of the keys.

    Grid: (tiles, num_kv_heads, num_splits). Row m of the tile is query `m // group` and head `m % group` of the group, for any
    group size. Tiles of keys begin at multiples of BLOCK_N, so that a row's sums do not depend on the tile that it is in.
    """
    # int64 from here on: rows, blocks and heads get multiplied by strides
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    request, first_row, query_len, first_query, end_query = find_tile(query_start_loc_ptr, num_requests, queries_per_tile, tile)
    if first_query >= query_len:
        return
    seq_len = tl.load(seq_lens_ptr + request).to(tl.int64) if PAGED else query_len
    if has_causal:
        ahead = tl.where(tl.load(causal_ptr + request), 0, ahead)

    # [M]
    tile_row = tl.arange(0, BLOCK_M)
    query = first_query + tile_row // group
    head = kv_head * group + tile_row % group
    row = first_row + query
    # rows are where outputs are written: unchecked lengths must not reach beyond them
    owned = (query < end_query) & (row >= 0) & (row < num_tokens)

    # keys beyond these are seen by no row of the tile: they may be garbage, and are not loaded
    context_len = seq_len - query_len
    first_position, last_position = context_len + first_query, context_len + end_query - 1
    position = context_len + query
    begin, end = in_window(first_position, last_position, left, tl.minimum(right, ahead), seq_len)
    row_begin, row_end = in_window(position, position, left, tl.minimum(right, ahead), seq_len)
    row_begin, row_end = row_begin.to(tl.int32), row_end.to(tl.int32)
    # tiles of keys: those of sink tokens before all others, then the others
    first_sink_tile, sink_tiles = 0, 0
    if HOLES:
        limit_begin, limit_end = in_chunk(first_position, last_position, chunk, tl.minimum(seq_len, last_position + ahead + 1))
        begin, end = with_ranges(
            tl.maximum(begin, limit_begin),
            tl.minimum(end, limit_end),
            first_position,
            last_position,
            ranges_ptr + request * num_ranges * 2,
            num_ranges,
            range_left,
            seq_len,
        )
        sink_end = tl.minimum(limit_end, sink_tokens)
        end = tl.where(limit_begin < sink_end, tl.maximum(end, sink_end), end)
        first_sink_tile = limit_begin // BLOCK_N
        sink_tiles = tl.maximum(tl.minimum(tl.cdiv(sink_end, BLOCK_N), begin // BLOCK_N) - first_sink_tile, 0)
        row_limit_begin, row_limit_end = in_chunk(position, position, chunk, tl.minimum(seq_len, position + ahead + 1))
        row_limit_begin, row_limit_end = row_limit_begin.to(tl.int32), row_limit_end.to(tl.int32)
    position = position.to(tl.int32)
    first_tile = begin // BLOCK_N
    num_tiles = sink_tiles + tl.maximum(tl.cdiv(end, BLOCK_N) - first_tile, 0)
    tiles_per_split = tl.cdiv(num_tiles, num_splits)
    split_begin = split * tiles_per_split
    split_end = tl.minimum(split_begin + tiles_per_split, num_tiles)

    # [M, D]
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE
    stored = owned[:, None] & in_head
    q_offset = (row * stride_q_row + head * stride_q_head) * Q_UNIT
    q = tl.load(q_ptr + q_offset[:, None] + dim, mask=stored, other=0.0)

    # the sink joins exactly one part
    row_max, row_sum, acc = begin_rows(sinks_ptr, tl.where(split == 0, has_sinks, 0), head, owned, BLOCK_M, BLOCK_D)
    k_scale = tl.load(k_scale_ptr + kv_head * stride_k_scale_head, mask=has_scales != 0, other=1.0)
    v_scale = tl.load(v_scale_ptr + kv_head * stride_v_scale_head, mask=has_scales != 0, other=1.0)
    table_ptr = block_table_ptr + request * stride_table
    k_head_ptr = k_ptr + kv_head * stride_k_head * KV_UNIT
    v_head_ptr = v_ptr + (stride_kv + kv_head * stride_v_head) * KV_UNIT
    for i in range(split_begin, split_end):
        # [N]
        first_key = tl.where(i < sink_tiles, first_sink_tile + i, first_tile + i - sink_tiles) * BLOCK_N
        key = first_key.to(tl.int32) + tl.arange(0, BLOCK_N)
        # [M, N]
        visible = (row_begin[:, None] <= key[None, :]) & (key[None, :] < row_end[:, None])
        in_tile = (begin <= key) & (key < end)
        if LOGITS:
            bias = alibi(alibi_slopes_ptr, has_alibi, head, owned, position, key)
            bias += qq_bias(qq_bias_ptr, stride_bias, bias_len, query, key - context_len)
        if HOLES:
            visible = visible | (key < sink_tokens)[None, :]
            visible = visible & (row_limit_begin[:, None] <= key[None, :]) & (key[None, :] < row_limit_end[:, None])
            request_ranges = ranges_ptr + request * num_ranges * 2
            visible = in_any_range(visible, position, key, request_ranges, num_ranges, range_left)
            visible = visible & (key < seq_len)[None, :] & owned[:, None]
            if LOGITS:
                visible = visible & (bias > float("-inf"))
            in_tile = tl.max(visible.to(tl.int32), 0) > 0
        if PAGED:
            block = tl.load(table_ptr + key // block_size, mask=in_tile, other=0).to(tl.int64)
            slot = (key % block_size).to(tl.int64)
        else:
            slot = first_row + key
        # [N, D]
        page = (block * stride_block * KV_UNIT)[:, None] if PAGED else 0
        k_offset = page + key_offset(slot[:, None], dim, block_size, stride_k_slot, KV_UNIT, X, INTERIOR)
        v_offset = page + value_offset(slot[:, None], dim, block_size, stride_v_slot, KV_UNIT, HEAD_SIZE, X, INTERIOR)
        loaded = in_tile[:, None] & in_head
        k = decode(tl.load(k_head_ptr + k_offset, mask=loaded, other=0.0), KV_FORMAT, q.dtype)
        v = decode(tl.load(v_head_ptr + v_offset, mask=loaded, other=0.0), KV_FORMAT, q.dtype)
        # ieee: the default is TF32 on NVIDIA and XF32 on gfx942, which is no float32 arithmetic
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * k_scale)
        token_v_scale = 1.0
        if TOKEN_SCALES:
            k_scale_offset = block * stride_k_scale_block + slot * stride_k_scale_slot + kv_head * stride_k_scale_head
            v_scale_offset = block * stride_v_scale_block + slot * stride_v_scale_slot + kv_head * stride_v_scale_head
            logits *= tl.load(k_scale_ptr + k_scale_offset, mask=in_tile, other=0.0)[None, :]
            token_v_scale = tl.load(v_scale_ptr + v_scale_offset, mask=in_tile, other=0.0)
        if LOGITS:
            logits = soft_cap(logits, cap) + bias
        logits = tl.where(visible, logits, float("-inf"))
        row_max, row_sum, acc = attend(row_max, row_sum, acc, logits, v, token_v_scale, TOKEN_SCALES)

    if PARTIAL:
        acc *= v_scale
        part = first_part + split
        out_offset = (part * stride_out_part + row * stride_out_row + head * stride_out_head) * Q_UNIT
        tl.store(out_ptr + out_offset[:, None] + dim, acc, mask=stored & (row_max > float("-inf"))[:, None])
        state_offset = part * stride_lse_part + head * stride_lse_head + row
        tl.store(lse_ptr + state_offset, row_max, mask=owned)
        tl.store(row_sum_ptr + state_offset, row_sum, mask=owned)
    else:
        out, lse = normalize(row_max, row_sum, acc)
        out *= v_scale
        if has_output_scale:
            out = tl.div_rn(out, tl.load(output_scale_ptr))
        out_offset = (row * stride_out_row + head * stride_out_head) * Q_UNIT
        tl.store(out_ptr + out_offset[:, None] + dim, encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty), mask=stored)
        if has_lse:
            tl.store(lse_ptr + head * stride_lse_head + row, lse, mask=owned)
