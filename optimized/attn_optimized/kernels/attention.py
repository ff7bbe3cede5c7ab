"""Attention of a ragged batch over a paged KV cache or over its own dense tokens: prefill, extend and decode in one launch."""

from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.arguments import Arguments, Flags, Sizes, Strides, Tensors
from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.float16_dots import LOG2_UNIT, float16_queries
from attn_optimized.kernels.key_rest import load_rest_of_keys, load_rest_of_queries, load_rest_of_values
from attn_optimized.kernels.key_tiles import key_tiles, keys_of_tile, loops_over
from attn_optimized.kernels.load import (
    FEW_ROWS,
    load_blocks,
    load_keys_and_values,
    load_queries,
    load_scales,
    source_of_keys,
)
from attn_optimized.kernels.logits import Operands, added_to_logits, scores
from attn_optimized.kernels.online_softmax import add_values, begin_rows, in_columns, softmax_step
from attn_optimized.kernels.query_tiles import Tile, find_tile, hidden_zero, rows_of_tile
from attn_optimized.kernels.selection import selection_of
from attn_optimized.kernels.split_keys import tiles_of_part, tiles_of_split
from attn_optimized.kernels.store import finish, offset_of_state
from attn_optimized.kernels.visibility import Rules, positions_of, seen_keys, visible_keys


@compiled_once(aligned=("out_ptr", "acc_ptr", "q_ptr", "k_ptr", "v_ptr"))
def attention_kernel(
    # written: [T, H, Dv], and [H, T] if has_lse
    out_ptr, lse_ptr,
    # if KIND.is_partial, the softmax's state for each part of the keys is written instead: its sums of values
    # [parts, T, H, Dv], its largest logits in base 2 [parts, H, T], and its sums of weights [parts, H, T]
    acc_ptr, row_max_ptr, row_sum_ptr,
    # read: [T, H, D], and K and V; V begins stride_kv after v_ptr
    q_ptr, k_ptr, v_ptr,
    # one scale of q, or one per KV head; None if KIND.q_format is "float": a compiled kernel then has no such argument
    q_scale_ptr,
    # one scale, or one per KV head, if has_scales; [NB, BS, HK] if KIND.has_token_scales; only of K, [NB, BS, scales of
    # a row] float32 or ue8m0 bytes, if KIND.interior is "latent_scaled"
    k_scale_ptr, v_scale_ptr,
    # one if has_output_scale, [H] if has_sinks, [H] if has_alibi_slopes, [qq_bias_len, qq_bias_len], [R, num_ranges, 2]
    output_scale_ptr, sinks_ptr, alibi_slopes_ptr, qq_bias_ptr, bidirectional_ranges_ptr,
    # the batch: [R + 1], [R], [R, max_blocks], and [R] if has_causal
    query_start_loc_ptr, seq_lens_ptr, block_table_ptr, causal_ptr,
    # [1 or HK, T, num_selected]; None if KIND.selection_unit is 0
    selected_ptr,
    has_lse, has_sinks, has_alibi_slopes, has_causal, has_scales, has_output_scale,
    # True if a tile whose keys are all in one part writes its output itself and leaves nothing to reduce
    writes_output,
    scale, logits_soft_cap,
    # distances from a query: to its window's edges, to the farthest key ahead (0 if causal), and back inside a range
    window_left, window_right, max_ahead, range_left,
    sink_tokens, chunked_local, num_ranges, qq_bias_len,
    num_requests, num_tokens, queries_per_tile,
    # whether each request has one tile, or as many as its queries need
    one_tile_per_request,
    # whether the grid's second dimension holds the tiles, and its first the heads
    heads_first,
    # query heads of a tile, and 2^16 / heads_per_group, rounded up: a row of a tile times this, shifted by 16, is its query
    heads_per_group, inverse_heads_per_group,
    # see split_keys
    num_splits, balanced_splits, filling_splits, work_shares, min_tiles_per_split, max_tiles, first_part,
    # in rows of KIND.v_head_size elements: so the compiler knows a divisor of the offsets, and stores 16 bytes at once
    stride_acc_part, stride_acc_row,
    # in KIND.q_unit elements
    stride_out_row, stride_out_head, stride_q_row, stride_q_head,
    # in KIND.kv_unit elements
    stride_kv, stride_block, stride_k_slot, stride_k_head, stride_v_slot, stride_v_head,
    # in elements
    stride_k_scale_block, stride_k_scale_slot, stride_k_scale_head,
    stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head,
    stride_state_part, stride_state_head, stride_lse_head, stride_block_table, stride_qq_bias,
    # the number of entries of a query's row of `selected`, and the tensor's strides; all are 0 without a selection
    num_selected, stride_selected_head, stride_selected_row,
    KIND: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one request, at most `heads_per_group` query heads of one KV head, one split of the keys.

    Grid: (tiles, groups, num_splits), or (groups, tiles, num_splits) if heads_first. A request whose rows fit
    KIND.small_block_m has a tile of that many rows. So a request that decodes in a batch with a long prefill reads its keys as
    fast as in a batch of decodes.
    """
    # The last tiles of a causal request have the most keys, so they begin first; in heads_first, those of all heads do. Without
    # heads_first, a GPU that runs few waves of programs ends with the longest tiles of the last head: on an H100, 2048 tokens
    # of 16 heads take 1.38 times as long. In many waves it is better if tiles of one head follow each other, because its keys
    # are still in the cache: a prompt of 72k tokens and 32 KV heads takes 1.26 times as long in heads_first.
    # int64 from here on: rows, blocks and heads get multiplied by strides
    if heads_first:
        tile_index, head_group = tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(0).to(tl.int64)
    else:
        tile_index, head_group = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    request, first_row, query_len, first_query, end_query = find_tile(
        query_start_loc_ptr, num_requests, queries_per_tile, one_tile_per_request, tile_index
    )
    # issue these loads before the results of the loads above are used, so that all loads are in flight together
    seq_len = tl.load(seq_lens_ptr + request).to(tl.int64) if KIND.is_paged else query_len
    if has_causal:
        max_ahead = tl.where(tl.load(causal_ptr + request), 0, max_ahead)
    zero = hidden_zero(query_start_loc_ptr, request, first_row)
    if first_query >= query_len:
        return
    tiles_per_split = 0
    if KIND.is_partial:
        tiles_per_split = tiles_of_part(
            query_start_loc_ptr, seq_lens_ptr, num_requests, queries_per_tile, num_splits, balanced_splits,
            filling_splits, work_shares, min_tiles_per_split, max_tiles, KIND.block_n * KIND.key_unit,
        )  # fmt: skip
    tile = Tile(
        request=request, head_group=head_group, kv_head=head_group // KIND.groups_per_kv_head, split=split, seq_len=seq_len,
        first_row=first_row, query_len=query_len, first_query=first_query, end_query=end_query, hidden_zero=zero,
    )  # fmt: skip
    Q_FORMAT: tl.constexpr = KIND.q_format
    if Q_FORMAT != "float":
        scale *= tl.load(q_scale_ptr + tile.kv_head * KIND.q_scale_step)
    tensors = Tensors(
        out_ptr=out_ptr, lse_ptr=lse_ptr, acc_ptr=acc_ptr, row_max_ptr=row_max_ptr, row_sum_ptr=row_sum_ptr, q_ptr=q_ptr,
        k_ptr=k_ptr, v_ptr=v_ptr, k_scale_ptr=k_scale_ptr, v_scale_ptr=v_scale_ptr, output_scale_ptr=output_scale_ptr,
        sinks_ptr=sinks_ptr, alibi_slopes_ptr=alibi_slopes_ptr, qq_bias_ptr=qq_bias_ptr,
        bidirectional_ranges_ptr=bidirectional_ranges_ptr, block_table_ptr=block_table_ptr,
        selected_ptr=selected_ptr,
    )  # fmt: skip
    flags = Flags(
        has_lse=has_lse, has_sinks=has_sinks, has_alibi_slopes=has_alibi_slopes, has_scales=has_scales,
        has_output_scale=has_output_scale, writes_output=writes_output,
    )  # fmt: skip
    rules = Rules(
        scale=scale, logits_soft_cap=logits_soft_cap, window_left=window_left, window_right=window_right, max_ahead=max_ahead,
        range_left=range_left, sink_tokens=sink_tokens, chunked_local=chunked_local, num_ranges=num_ranges,
        qq_bias_len=qq_bias_len,
    )  # fmt: skip
    sizes = Sizes(
        num_tokens=num_tokens, heads_per_group=heads_per_group, inverse_heads_per_group=inverse_heads_per_group,
        num_splits=num_splits, tiles_per_split=tiles_per_split, first_part=first_part, num_selected=num_selected,
    )  # fmt: skip
    strides = Strides(
        acc_part=stride_acc_part, acc_row=stride_acc_row, out_row=stride_out_row, out_head=stride_out_head,
        q_row=stride_q_row, q_head=stride_q_head, kv=stride_kv, block=stride_block, k_slot=stride_k_slot,
        k_head=stride_k_head, v_slot=stride_v_slot, v_head=stride_v_head, k_scale_block=stride_k_scale_block,
        k_scale_slot=stride_k_scale_slot, k_scale_head=stride_k_scale_head, v_scale_block=stride_v_scale_block,
        v_scale_slot=stride_v_scale_slot, v_scale_head=stride_v_scale_head, state_part=stride_state_part,
        state_head=stride_state_head, lse_head=stride_lse_head, block_table=stride_block_table, qq_bias=stride_qq_bias,
        selected_head=stride_selected_head, selected_row=stride_selected_row,
    )  # fmt: skip
    args = Arguments(tensors, flags, rules, sizes, strides)
    # two ifs, because the compiler decides the first one
    if KIND.small_block_m > 0:  # noqa: SIM102
        if query_len * heads_per_group <= KIND.small_block_m:
            attend_tile(tile, args, KIND, KIND.small_block_m)
            return
    attend_tile(tile, args, KIND, KIND.block_m)


class Queries(NamedTuple):
    """A tile of queries as the loops over keys read it: rows, positions, what each row sees, and dims.

    `q` holds the dims of the first dot. If dims come in pairs, `q` holds the even and `q_odd` the odd ones; otherwise `q_odd`
    is `q`. `factor` is the scale of logits.
    """

    tile: Tile
    rows: tl.tensor
    positions: tl.tensor
    seen_by_each: tl.tensor
    q: tl.tensor
    q_odd: tl.tensor
    q_rest: tl.tensor
    factor: tl.tensor


@triton.jit
def attend_tile(tile, args, KIND: tl.constexpr, BLOCK_M: tl.constexpr):
    """Attend to a part of the keys, and write the rows of the output or the state of that part.

    Row m of the tile is query `m // heads_per_group` and head `m % heads_per_group` of the group, for any group size. Tiles of
    keys begin at multiples of KIND.block_n, so that a row's sums do not depend on the tile that the row is in.
    """
    # [M]
    rows = rows_of_tile(tile, args.sizes, 0, KIND, BLOCK_M)
    positions = positions_of(tile, rows, KIND)
    seen_by_some, seen_by_each = seen_keys(tile, rows, positions, args, KIND)
    selection = selection_of(tile, args, KIND)
    tiles = key_tiles(seen_by_some, selection, KIND)
    begin, end, is_part = tl.full((), 0, tl.int64), tiles.count, False
    if KIND.is_partial:
        state_offset = offset_of_state(tile, rows, args)
        begin, end, is_part = tiles_of_split(tile.split, tiles.count, args.sizes, args.flags.writes_output)
        if (tile.split > 0) & (begin >= tiles.count):
            # this part has no keys: the reduction sees a largest logit of -inf, and reads no sums of the part
            no_key = tl.full([BLOCK_M], float("-inf"), tl.float32)
            tl.store(args.tensors.row_max_ptr + state_offset, no_key, mask=rows.owned)
            return
    q, q_odd, q_rest = load_queries_of_tile(rows, args, KIND, BLOCK_M)
    # the sink joins exactly one part
    has_sinks = tl.where(tile.split == 0, args.flags.has_sinks, 0)
    PAIRS: tl.constexpr = KIND.has_value_pairs and BLOCK_M <= FEW_ROWS
    FLOAT16: tl.constexpr = PAIRS and KIND.has_float16_dots
    DIMS: tl.constexpr = KIND.block_v // 2 if PAIRS else KIND.block_v
    row_max, sums, acc = begin_rows(args.tensors.sinks_ptr, has_sinks, rows, BLOCK_M, DIMS)
    if FLOAT16:
        sums *= 2.0**LOG2_UNIT
    if KIND.has_sums_in_columns:
        sums = in_columns(sums, KIND.block_n)
    # sums of the odd dims if PAIRS, and of the dims of V after the first block_v; otherwise placeholders that are not read
    acc_odd = acc
    acc_rest = tl.full([BLOCK_M, KIND.block_v_rest], 0.0, tl.float32) if KIND.block_v_rest > 0 else acc
    factor, v_scale = load_scales(tile, args)
    if FLOAT16:
        q, q_odd, q_rest, factor = float16_queries(q, q_odd, q_rest, factor, KIND)
    queries = Queries(
        tile=tile, rows=rows, positions=positions, seen_by_each=seen_by_each, q=q, q_odd=q_odd, q_rest=q_rest, factor=factor
    )
    source = source_of_keys(tile, selection, args, KIND)
    loops = loops_over(tiles, begin, end, tile, positions, args.rules, KIND)
    for MASKED in tl.static_range(0 if KIND.has_unmasked_loop else 1, 2):
        if MASKED:
            # masked tiles lie before and after the unmasked range, which `keys_of_tile` skips
            begin, end = loops.begin, loops.end - (loops.unmasked_end - loops.unmasked_begin)
        else:
            begin, end = loops.unmasked_begin, loops.unmasked_end
        # two ifs, because the compiler decides the first one
        if MASKED and KIND.skips_masked_loop:
            if begin < end:
                row_max, sums, acc, acc_odd, acc_rest = attend_keys(
                    row_max, sums, acc, acc_odd, acc_rest, begin, end, queries, loops, source, args, KIND, BLOCK_M, MASKED
                )
        else:
            row_max, sums, acc, acc_odd, acc_rest = attend_keys(
                row_max, sums, acc, acc_odd, acc_rest, begin, end, queries, loops, source, args, KIND, BLOCK_M, MASKED
            )
    if PAIRS:
        acc = tl.reshape(tl.join(acc, acc_odd), [BLOCK_M, KIND.block_v])
    row_sum = tl.sum(sums, 1) if KIND.has_sums_in_columns else sums
    if FLOAT16:
        acc, acc_rest, row_sum = acc * 2.0**-LOG2_UNIT, acc_rest * 2.0**-LOG2_UNIT, row_sum * 2.0**-LOG2_UNIT
    finish(tile, is_part, row_max, row_sum, acc, acc_rest, v_scale, args, KIND, BLOCK_M)


@triton.jit
def load_queries_of_tile(rows, args, KIND: tl.constexpr, BLOCK_M: tl.constexpr):
    """The tile's queries: the dims of the first dot, its odd dims if they are apart, and the dims of the second dot."""
    PAIRS: tl.constexpr = KIND.has_value_pairs and BLOCK_M <= FEW_ROWS
    INTERIOR: tl.constexpr = KIND.interior
    # K of a latent cache is V
    KEY_PAIRS: tl.constexpr = PAIRS and INTERIOR == "latent"
    # [M, D], or if KEY_PAIRS even and odd dims, [M, D / 2]
    q = load_queries(rows, args, KIND, 0, 2 if KEY_PAIRS else 1)
    q_odd = load_queries(rows, args, KIND, 1, 2) if KEY_PAIRS else q
    q_rest = load_rest_of_queries(rows, args, KIND)
    if KIND.has_hidden_dots and BLOCK_M > FEW_ROWS:
        q_rest = -q_rest
    return q, q_odd, q_rest


@triton.jit
def attend_keys(
    row_max, sums, acc, acc_odd, acc_rest, begin, end, queries, loops, source, args,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One loop over tiles [begin, end) of keys: the tiles that need a mask if MASKED, otherwise the tiles that need none.

    Returns:
        row_max, sums, acc, acc_odd, acc_rest: the state with these keys added.
    """
    tile, rows, positions, seen_by_each, q, q_odd, q_rest, factor = queries
    PAIRS: tl.constexpr = KIND.has_value_pairs and BLOCK_M <= FEW_ROWS
    INTERIOR: tl.constexpr = KIND.interior
    KEY_PAIRS: tl.constexpr = PAIRS and INTERIOR == "latent"
    FLOAT16: tl.constexpr = PAIRS and KIND.has_float16_dots
    HIDDEN: tl.constexpr = KIND.has_hidden_dots and BLOCK_M > FEW_ROWS
    # with hidden dots the weights are rounded before they come here
    IN_INTEGERS: tl.constexpr = KIND.has_integer_bfloat16 and not HIDDEN
    BLOCK_N: tl.constexpr = KIND.block_n
    # if the loop is empty (begin == end), look up a clamped tile and no keys: the first key of `begin` may not fit in int32
    first, end_key = tl.minimum(begin, end - 1), tl.where(begin < end, loops.end_key, 0)
    next_block = load_blocks(source, first, end_key, loops, args.rules.sink_tokens, KIND, MASKED, False)
    for i in range(begin, end):
        # [N]
        first_key, key, in_tile = keys_of_tile(i, loops, source.selection, KIND, MASKED)
        block = next_block
        # the last iteration looks up its own blocks once more
        next_block = load_blocks(
            source, tl.minimum(i + 1, end - 1), end_key, loops, args.rules.sink_tokens, KIND, MASKED, not MASKED
        )
        # [M, N]
        bias = added_to_logits(rows, seen_by_each.position, key, positions.context_len, args, KIND.has_bias)
        visible, in_tile = visible_keys(tile, rows, seen_by_each, key, in_tile, bias, args, KIND, MASKED)
        # [N, D], [N, Dv], [N, Dv], [N], [N]
        k, v, v_odd, block, slot = load_keys_and_values(
            source, first_key, key, block, in_tile, q.dtype, args, KIND, BLOCK_M, PAIRS, MASKED
        )
        k_rest = load_rest_of_keys(source, block, slot, in_tile, q.dtype, args, KIND, MASKED)
        v_rest = load_rest_of_values(source, block, slot, in_tile, q.dtype, args, KIND, MASKED)
        operands = Operands(q=q, k=k, q_odd=q_odd, k_odd=v_odd, q_rest=q_rest, k_rest=k_rest)
        # [M, N], [M], [N]
        if HIDDEN:
            # placeholders of these types, which are never used: the branch below is always taken
            weights, decay, v_token_scale = tl.broadcast_to(row_max[:, None], [BLOCK_M, BLOCK_N]).to(v.dtype), row_max, 1.0
            if tile.hidden_zero == 0:
                row_max, sums, exact_weights, decay, _ = weigh_keys(
                    row_max, sums, operands, factor, bias, visible, source, block, slot, in_tile, args,
                    KIND, KEY_PAIRS, FLOAT16, HIDDEN, MASKED,
                )  # fmt: skip
                weights = exact_weights.to(v.dtype)
        else:
            row_max, sums, weights, decay, v_token_scale = weigh_keys(
                row_max, sums, operands, factor, bias, visible, source, block, slot, in_tile, args,
                KIND, KEY_PAIRS, FLOAT16, HIDDEN, MASKED,
            )  # fmt: skip
        acc = add_values(acc, decay, weights, v, v_token_scale, KIND.has_token_scales, IN_INTEGERS)
        if PAIRS:
            acc_odd = add_values(acc_odd, decay, weights, v_odd, v_token_scale, KIND.has_token_scales, IN_INTEGERS)
        if KIND.block_v_rest > 0:
            acc_rest = add_values(acc_rest, decay, weights, v_rest, v_token_scale, KIND.has_token_scales, IN_INTEGERS)
    return row_max, sums, acc, acc_odd, acc_rest


@triton.jit
def weigh_keys(
    row_max, sums, operands, factor, bias, visible, source, block, slot, in_tile, args,
    KIND: tl.constexpr, PAIRS: tl.constexpr, FLOAT16: tl.constexpr, HIDDEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile's logits, and the softmax's step over them.

    Args:
        visible: [M, N], whether a row sees a key, if MASKED; else all do.

    Returns:
        row_max, sums, weights [M, N], decay [M], and the scales of values: see `scores` and `softmax_step`.
    """
    logits, to_base_2, v_token_scale = scores(
        operands, factor, bias, source, block, slot, in_tile, args, KIND, PAIRS, FLOAT16, HIDDEN
    )
    if MASKED:
        logits = tl.where(visible, logits, float("-inf"))
    row_max, sums, weights, decay = softmax_step(
        row_max, sums, logits, to_base_2, KIND.has_sums_in_columns, LOG2_UNIT if FLOAT16 else 0
    )
    return row_max, sums, weights, decay, v_token_scale
