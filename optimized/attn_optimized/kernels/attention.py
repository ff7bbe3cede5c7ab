"""Attention of a ragged batch over a paged KV cache or over its own dense tokens: prefill, extend and decode in one launch."""

import triton
import triton.language as tl

from attn_optimized.kernels.kv_layout import load_packed_keys, load_packed_values
from attn_optimized.kernels.logits import alibi, qq_bias, tanh
from attn_optimized.kernels.online_softmax import FINISHED, LOG2E, attend, begin_rows, divide, normalize
from attn_optimized.kernels.quantization import decode, encode
from attn_optimized.kernels.query_tiles import find_tile, rows_of_tile
from attn_optimized.kernels.split_keys import tiles_of_part
from attn_optimized.kernels.visibility import among, in_any_range, in_chunk, in_window, num_keys, with_ranges

# Compiled once for all of these: what changes from step to step, what is there or not, and strides.
_RUNTIME = [
    "scale", "cap", "left", "right", "ahead", "sink_tokens", "chunk", "range_left", "num_ranges", "bias_len", "has_lse",
    "has_sinks", "has_alibi", "has_causal", "has_scales", "has_output_scale", "finishes", "num_requests", "num_tokens",
    "queries_per_tile", "one_each", "heads_first", "group", "group_inverse", "num_splits", "even_splits", "least_tiles",
    "most_tiles", "first_part", "stride_acc_part", "stride_acc_row", "stride_out_row", "stride_out_head", "stride_q_row",
    "stride_q_head", "stride_kv", "stride_block", "stride_k_slot", "stride_k_head", "stride_v_slot", "stride_v_head",
    "stride_k_scale_block", "stride_k_scale_slot", "stride_k_scale_head", "stride_v_scale_block", "stride_v_scale_slot",
    "stride_v_scale_head", "stride_lse_head", "stride_state_part", "stride_state_head", "stride_table", "stride_bias",
]  # fmt: skip
_ANY_ALIGNMENT = [
    "lse_ptr", "row_max_ptr", "row_sum_ptr", "k_scale_ptr", "v_scale_ptr", "output_scale_ptr", "sinks_ptr", "alibi_slopes_ptr",
    "qq_bias_ptr", "ranges_ptr", "query_start_loc_ptr", "seq_lens_ptr", "block_table_ptr", "causal_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def attention_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr,
    lse_ptr,
    # if PARTIAL, the softmax's state for each part of the keys is written instead: its sums of values [parts, T, H, D], its
    # largest logits in base 2 [parts, H, T], and the sums of its weights likewise
    acc_ptr,
    row_max_ptr,
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
    # whether a tile all of whose keys are one part writes its output itself
    finishes,
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
    # whether each request has one tile, or as many as its queries need
    one_each,
    # whether neighbouring programs are heads of one tile, or tiles of one head
    heads_first,
    group,
    # 2^16 / group, rounded up: a row of a tile times this, shifted by 16, is its query
    group_inverse,
    # see split_keys
    num_splits,
    even_splits,
    least_tiles,
    most_tiles,
    first_part,
    # in elements of float32
    stride_acc_part,
    stride_acc_row,
    # in Q_UNIT elements
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
    stride_state_part,
    stride_state_head,
    stride_lse_head,
    stride_table,
    stride_bias,
    Q_UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INTERIOR: tl.constexpr,
    X: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    OUT_FORMAT: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    # of scale: 1, -1 or 0
    SIGN: tl.constexpr,
    # whether what a row sees may have holes (sink_tokens, chunks, ranges, qq_bias), whether tiles that every row sees have a
    # loop of their own, and whether logits are more than products
    HOLES: tl.constexpr,
    INNER: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    FEW_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of queries of one request, all query heads of one KV head, one split of the keys.

    Grid: (tiles, num_kv_heads, num_splits), or (num_kv_heads, tiles, num_splits) if heads_first. A request whose
    rows fit FEW_M takes a tile of so many: what decodes beside a long prefill reads its keys as fast as in a step of its own.
    FEW_M 0: all tiles are alike.
    """
    # int64 from here on: rows, blocks and heads get multiplied by strides
    if heads_first:
        # the heads of a request are neighbours in memory, and are read at the same time
        tile, kv_head = tl.program_id(1), tl.program_id(0).to(tl.int64)
    else:
        # the last tiles of a causal request have the most keys, and begin first; those of one head share its keys
        tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    request, first_row, query_len, first_query, end_query = find_tile(
        query_start_loc_ptr, num_requests, queries_per_tile, one_each, tile
    )
    # all at once, before what is loaded by now is waited for
    seq_len = tl.load(seq_lens_ptr + request).to(tl.int64) if PAGED else query_len
    if has_causal:
        ahead = tl.where(tl.load(causal_ptr + request), 0, ahead)
    # 0, and no compiler knows it
    zero = tl.load(query_start_loc_ptr + request, volatile=True) - first_row.to(tl.int32)
    if first_query >= query_len:
        return
    tiles_per_split = 0
    if PARTIAL:
        tiles_per_split = tiles_of_part(seq_lens_ptr, num_requests, num_splits, even_splits, least_tiles, most_tiles, BLOCK_N)
    place = (request, kv_head, split, seq_len, first_row, query_len, first_query, end_query, zero)
    tensors = (
        out_ptr, lse_ptr, acc_ptr, row_max_ptr, row_sum_ptr, q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, output_scale_ptr,
        sinks_ptr, alibi_slopes_ptr, qq_bias_ptr, ranges_ptr, block_table_ptr,
    )  # fmt: skip
    flags = (has_lse, has_sinks, has_alibi, has_scales, has_output_scale, finishes)
    rules = (scale, cap, left, right, ahead, range_left, sink_tokens, chunk, num_ranges, bias_len)
    sizes = (num_tokens, group, group_inverse, num_splits, tiles_per_split, first_part)
    strides = (
        stride_acc_part, stride_acc_row, stride_out_row, stride_out_head, stride_q_row, stride_q_head, stride_kv,
        stride_block, stride_k_slot, stride_k_head, stride_v_slot, stride_v_head, stride_k_scale_block, stride_k_scale_slot,
        stride_k_scale_head, stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head, stride_state_part,
        stride_state_head, stride_lse_head, stride_table, stride_bias,
    )  # fmt: skip
    # two ifs: the compiler decides the first
    if FEW_M > 0:  # noqa: SIM102
        if query_len * group <= FEW_M:
            attend_tile(
                place, tensors, flags, rules, sizes, strides,
                Q_UNIT, KV_UNIT, PAGED, BLOCK_SIZE, INTERIOR, X, KV_FORMAT, OUT_FORMAT, TOKEN_SCALES, SIGN, HOLES, INNER,
                SOFT_CAP, BIAS, PARTIAL, HEAD_SIZE, FEW_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            return
    attend_tile(
        place, tensors, flags, rules, sizes, strides,
        Q_UNIT, KV_UNIT, PAGED, BLOCK_SIZE, INTERIOR, X, KV_FORMAT, OUT_FORMAT, TOKEN_SCALES, SIGN, HOLES, INNER, SOFT_CAP,
        BIAS, PARTIAL, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip


@triton.jit
def attend_tile(
    place,
    tensors,
    flags,
    rules,
    sizes,
    strides,
    Q_UNIT: tl.constexpr,
    KV_UNIT: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INTERIOR: tl.constexpr,
    X: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    OUT_FORMAT: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    SIGN: tl.constexpr,
    HOLES: tl.constexpr,
    INNER: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attend to a part of the keys; the arguments are the kernel's.

    Row m of the tile is query `m // group` and head `m % group` of the group, for any group size. Tiles of keys begin at
    multiples of BLOCK_N, so that a row's sums do not depend on the tile that it is in.
    """
    request, kv_head, split, seq_len, first_row, query_len, first_query, end_query, zero = place
    (
        out_ptr, lse_ptr, acc_ptr, row_max_ptr, row_sum_ptr, q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, output_scale_ptr,
        sinks_ptr, alibi_slopes_ptr, qq_bias_ptr, ranges_ptr, block_table_ptr,
    ) = tensors  # fmt: skip
    has_lse, has_sinks, has_alibi, has_scales, has_output_scale, finishes = flags
    scale, cap, left, right, ahead, range_left, sink_tokens, chunk, num_ranges, bias_len = rules
    num_tokens, group, group_inverse, num_splits, tiles_per_split, first_part = sizes
    (
        stride_acc_part, stride_acc_row, stride_out_row, stride_out_head, stride_q_row, stride_q_head, stride_kv,
        stride_block, stride_k_slot, stride_k_head, stride_v_slot, stride_v_head, stride_k_scale_block, stride_k_scale_slot,
        stride_k_scale_head, stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head, stride_state_part,
        stride_state_head, stride_lse_head, stride_table, stride_bias,
    ) = strides  # fmt: skip
    # [M]
    query, head, row, owned = rows_of_tile(
        first_row, first_query, end_query, kv_head, num_tokens, group, group_inverse, 0, BLOCK_M
    )

    # keys beyond these are seen by no row of the tile: they may be garbage, and are not loaded
    context_len = seq_len - query_len
    first_position, last_position = context_len + first_query, context_len + end_query - 1
    position = context_len + query
    begin, end = in_window(first_position, last_position, left, tl.minimum(right, ahead), seq_len)
    row_begin, row_end = in_window(position, position, left, tl.minimum(right, ahead), seq_len)
    row_begin, row_len = row_begin.to(tl.int32), num_keys(row_begin, row_end)
    # tile n of keys: those of sink tokens before all others, then the others from first_tile + n on
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
        row_limit_len = num_keys(row_limit_begin, tl.where(owned, row_limit_end, 0))
        row_limit_begin = row_limit_begin.to(tl.int32)
    position = position.to(tl.int32)
    first_tile = begin // BLOCK_N - sink_tiles
    num_tiles = tl.maximum(tl.cdiv(end, BLOCK_N) - first_tile, sink_tiles)
    is_partial = False
    split_begin, split_end = tl.full((), 0, tl.int64), num_tiles
    if PARTIAL:
        state_offset = (first_part + split) * stride_state_part + head.to(tl.int64) * stride_state_head + row
        # unchecked, a length may be beyond the host's bound
        tiles_per_split = tl.maximum(tiles_per_split, tl.cdiv(num_tiles, num_splits))
        split_begin = split * tiles_per_split
        split_end = tl.minimum(split_begin + tiles_per_split, num_tiles)
        is_partial = (finishes == 0) | (num_tiles > tiles_per_split)
        if (split > 0) & (split_begin >= num_tiles):
            tl.store(row_max_ptr + state_offset, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=owned)
            return

    # [M, D]
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE
    stored = owned[:, None] & in_head
    q_offset = (row.to(tl.int64) * stride_q_row + head.to(tl.int64) * stride_q_head) * Q_UNIT
    q = tl.load(q_ptr + q_offset[:, None] + dim, mask=stored, other=0.0)

    # the sink joins exactly one part
    row_max, row_sum, acc = begin_rows(sinks_ptr, tl.where(split == 0, has_sinks, 0), head, owned, BLOCK_M, BLOCK_D)
    k_scale = tl.load(k_scale_ptr + kv_head * stride_k_scale_head, mask=has_scales != 0, other=1.0)
    v_scale = tl.load(v_scale_ptr + kv_head * stride_v_scale_head, mask=has_scales != 0, other=1.0)
    # the largest logit is that of the largest product if products are scaled by a positive number: its sign goes into q
    factor = tl.maximum(tl.abs(scale * k_scale), 2.0**-126)
    if SIGN != 1:
        q *= SIGN
    table_ptr = block_table_ptr + request * stride_table
    k_head_ptr = k_ptr + kv_head * stride_k_head * KV_UNIT
    v_head_ptr = v_ptr + (stride_kv + kv_head * stride_v_head) * KV_UNIT
    k_dim_ptr, v_dim_ptr = k_head_ptr + dim, v_head_ptr + dim

    # tiles all of whose keys every row sees need no mask, and are most of a long sequence
    inner_begin, inner_end = split_end, split_end
    if INNER:
        all_begin, _ = in_window(last_position, last_position, left, 0, seq_len)
        _, all_end = in_window(first_position, first_position, 0, tl.minimum(right, ahead), seq_len)
        if HOLES:
            # from where the last position's chunk begins to where the first one's ends
            chunk_begin, all_end = in_chunk(last_position, first_position, chunk, all_end)
            all_begin = tl.maximum(all_begin, chunk_begin)
            if BIAS:
                # which hides keys of the step's own tokens
                all_end = tl.where(bias_len > 0, tl.minimum(all_end, context_len), all_end)
        inner_begin = tl.minimum(tl.maximum(tl.cdiv(all_begin, BLOCK_N) - first_tile, split_begin), split_end)
        inner_end = tl.minimum(tl.maximum(all_end // BLOCK_N - first_tile, inner_begin), split_end)
    split_begin, split_end = split_begin.to(tl.int32), split_end.to(tl.int32)
    inner_begin, inner_end = inner_begin.to(tl.int32), inner_end.to(tl.int32)
    begin, end, first_tile = begin.to(tl.int32), end.to(tl.int32), first_tile.to(tl.int32)
    for EDGES in tl.static_range(0 if INNER else 1, 2):
        if EDGES:
            # before the inner tiles, and behind them
            loop_begin, loop_end = split_begin, split_end - (inner_end - inner_begin)
        else:
            loop_begin, loop_end = inner_begin, inner_end
        for i in range(loop_begin, loop_end):
            # [N]
            n = tl.where(i < inner_begin, i, i + inner_end - inner_begin) if EDGES else i
            key_tile = first_tile + n
            if HOLES and EDGES:
                key_tile = tl.where(n < sink_tiles, first_sink_tile + n, key_tile).to(tl.int32)
            first_key = key_tile * BLOCK_N
            key = first_key + tl.arange(0, BLOCK_N)
            in_tile = (begin <= key) & (key < end)
            # a division by a power of two is one shift of what has no sign
            unsigned_key = key.to(tl.uint32, bitcast=True)
            if BIAS:
                bias = alibi(alibi_slopes_ptr, has_alibi, head, owned, position, key)
                bias += qq_bias(qq_bias_ptr, stride_bias, bias_len, query, key - context_len)
            if EDGES:
                # [M, N]
                visible = among(key, row_begin, row_len)
            if HOLES and EDGES:
                visible = visible | (key < sink_tokens)[None, :]
                visible = visible & among(key, row_limit_begin, row_limit_len)
                request_ranges = ranges_ptr + request * num_ranges * 2
                visible = in_any_range(visible, position, owned, key, request_ranges, num_ranges, range_left, seq_len)
                if BIAS:
                    visible = visible & (bias > float("-inf"))
                in_tile = tl.max(visible.to(tl.int32), 0) > 0
            if PAGED:
                if EDGES:
                    block = tl.load(table_ptr + unsigned_key // BLOCK_SIZE, mask=in_tile, other=0).to(tl.int64)
                else:
                    block = tl.load(table_ptr + unsigned_key // BLOCK_SIZE).to(tl.int64)
                # without a sign, a slot is seen to be the same in all tiles, and kept: registers that tiles of few rows lack
                slot = ((unsigned_key if BLOCK_M > 16 else key) % BLOCK_SIZE).to(tl.int64)
            else:
                slot = first_row + key
            # [N, D]
            loaded = in_tile[:, None] & in_head
            if INTERIOR == "rows":
                # [N]; one sum for both: pointers are most of a loop over a few rows of q
                k_row = ((block * stride_block if PAGED else 0) + slot * stride_k_slot) * KV_UNIT
                k_pointer = k_dim_ptr + k_row[:, None]
                v_pointer = v_dim_ptr + (k_row if PAGED else slot * stride_v_slot * KV_UNIT)[:, None]
                if EDGES:
                    k, v = tl.load(k_pointer, mask=loaded, other=0.0), tl.load(v_pointer, mask=loaded, other=0.0)
                elif HEAD_SIZE < BLOCK_D:
                    k, v = tl.load(k_pointer, mask=in_head, other=0.0), tl.load(v_pointer, mask=in_head, other=0.0)
                else:
                    k, v = tl.load(k_pointer), tl.load(v_pointer)
            else:
                page = block * stride_block * KV_UNIT
                k = load_packed_keys(k_head_ptr, page, slot, in_tile, BLOCK_SIZE, HEAD_SIZE, BLOCK_D, X, EDGES)
                v = load_packed_values(
                    v_head_ptr, table_ptr, stride_block, first_key, in_tile,
                    KV_UNIT, BLOCK_SIZE, HEAD_SIZE, BLOCK_N, BLOCK_D, X, INTERIOR, EDGES,
                )  # fmt: skip
            k, v = decode(k, KV_FORMAT, q.dtype), decode(v, KV_FORMAT, q.dtype)
            # ieee: the default is TF32 on NVIDIA and XF32 on gfx942, which is no float32 arithmetic
            logits = tl.dot(q, tl.trans(k), input_precision="ieee")
            to_base_2 = factor * LOG2E
            token_v_scale = 1.0
            if TOKEN_SCALES:
                k_scale_offset = block * stride_k_scale_block + slot * stride_k_scale_slot + kv_head * stride_k_scale_head
                v_scale_offset = block * stride_v_scale_block + slot * stride_v_scale_slot + kv_head * stride_v_scale_head
                logits *= tl.load(k_scale_ptr + k_scale_offset, mask=in_tile, other=0.0)[None, :]
                token_v_scale = tl.load(v_scale_ptr + v_scale_offset, mask=in_tile, other=0.0)
            if SOFT_CAP:
                logits = tanh(logits * tl.minimum(factor / cap, 2.0**100))
                to_base_2 = cap * LOG2E
            if BIAS:
                logits = logits * (cap if SOFT_CAP else factor) + bias
                to_base_2 = LOG2E
            if EDGES:
                logits = tl.where(visible, logits, float("-inf"))
            row_max, row_sum, acc = attend(row_max, row_sum, acc, logits, to_base_2, v, token_v_scale, TOKEN_SCALES)

    # rows are computed anew: kept until here, they would be a few dozen registers of every thread in the loops
    if PARTIAL:
        query, head, row, owned = rows_of_tile(
            first_row, first_query, end_query, kv_head, num_tokens, group, group_inverse, zero, BLOCK_M
        )
        state_offset = (first_part + split) * stride_state_part + head.to(tl.int64) * stride_state_head + row
        if is_partial:
            acc_offset = (
                (first_part + split) * stride_acc_part + row.to(tl.int64) * stride_acc_row + head.to(tl.int64) * HEAD_SIZE
            )
            saw_keys = row_max > float("-inf")
            tl.store(acc_ptr + acc_offset[:, None] + dim, acc * v_scale, mask=(owned & saw_keys)[:, None] & in_head)
            tl.store(row_max_ptr + state_offset, row_max, mask=owned)
            tl.store(row_sum_ptr + state_offset, row_sum, mask=owned)
            return
        tl.store(row_max_ptr + state_offset, row_max, mask=owned)
        tl.store(row_sum_ptr + state_offset, tl.full([BLOCK_M], FINISHED, tl.float32), mask=owned)
    out, lse = normalize(row_max, row_sum, acc)
    if KV_FORMAT != "float":
        out *= v_scale
    if has_output_scale:
        out = divide(out, tl.full([BLOCK_M], 1.0, tl.float32) * tl.load(output_scale_ptr))
    query, head, row, owned = rows_of_tile(
        first_row, first_query, end_query, kv_head, num_tokens, group, group_inverse, zero, BLOCK_M
    )
    stored = owned[:, None] & in_head
    head, row = head.to(tl.int64), row.to(tl.int64)
    out_offset = (row * stride_out_row + head * stride_out_head) * Q_UNIT
    tl.store(out_ptr + out_offset[:, None] + dim, encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty), mask=stored)
    if has_lse:
        tl.store(lse_ptr + head * stride_lse_head + row, lse, mask=owned)
