"""Causal attention of prompts over pages of at least a tile of keys, for warp specialization on sm90.

Some warps of a program copy K and V by tensor descriptors, and the others compute. Triton specializes a loop only if the kernel
has four warps, one such loop, neither `else` nor early `return`, and no reshape between Q and its dot, and if all operands of
dots come by descriptors. If a condition is not met, Triton leaves the loop as it is and says nothing. So this is a kernel
of its own, simpler than `attention_kernel`: a tile has the queries of one head, and all tiles of keys are masked.

The kernel makes its descriptors itself. For Q it must: Triton halves Q's tile for two groups of warps, but not the box of a
descriptor that the host makes. A launch takes memory for descriptors from torch's allocator, as for any tensor of a step, so a
CUDA graph can record it; nothing is copied or waited for. The interpreter and its sanitizer see addresses and masks.
"""

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.online_softmax import LOG2E, normalize, softmax_step
from attn_optimized.kernels.query_tiles import request_of_tile


@compiled_once(aligned=("out_ptr", "q_ptr", "k_ptr"))
def warp_specialized_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr, lse_ptr,
    # read: [T, H, D], and rows of K and V: see `load_rows`
    q_ptr, k_ptr,
    # [H] if has_sinks
    sinks_ptr,
    # the batch: [R + 1], [R], [R, max_blocks]
    query_start_loc_ptr, seq_lens_ptr, block_table_ptr,
    has_lse, has_sinks, scale,
    num_requests, num_tokens,
    # whether the grid's second dimension holds the tiles, and its first the heads
    heads_first,
    # query heads of a KV head
    group,
    # rows of K and V in the cache, from one block to the next, and from a row of K to that of V
    num_rows, rows_of_block, rows_to_v,
    # in elements
    stride_out_row, stride_out_head, stride_q_row, stride_q_head, stride_kv_row, stride_kv_head, stride_lse_head,
    stride_block_table,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one request and one query head. Grid: (tiles, heads), or (heads, tiles) if heads_first."""
    tile_of_second, tile_of_first = tl.num_programs(1) - 1 - tl.program_id(1), tl.num_programs(0) - 1 - tl.program_id(0)
    tile = tl.where(heads_first != 0, tile_of_second, tile_of_first)
    head = tl.where(heads_first != 0, tl.program_id(0), tl.program_id(1)).to(tl.int64)
    kv_head = head // group
    request = request_of_tile(query_start_loc_ptr, num_requests, BLOCK_M, tile)
    first_row = tl.load(query_start_loc_ptr + request)
    query_len = tl.load(query_start_loc_ptr + request + 1) - first_row
    first_query = (tile - request - first_row // BLOCK_M) * BLOCK_M  # int32: a query of its request
    seq_len = tl.load(seq_lens_ptr + request)
    first_position = seq_len - query_len + first_query
    end_key = tl.where(first_query < query_len, tl.minimum(first_position + BLOCK_M, seq_len), 0)
    end = tl.cdiv(end_key, BLOCK_N)
    table_ptr = block_table_ptr + request.to(tl.int64) * stride_block_table
    # rows of other requests are not read and give zeros; a descriptor has at least one row
    end_row = tl.maximum(tl.minimum(first_row + query_len, num_tokens), 1)
    q_rows = tl.make_tensor_descriptor(
        q_ptr + head * stride_q_head, [end_row, BLOCK_D], [stride_q_row.to(tl.int64), 1], [BLOCK_M, BLOCK_D]
    )
    kv_stride = stride_kv_row.to(tl.int64)
    kv_rows = tl.make_tensor_descriptor(
        k_ptr + kv_head * stride_kv_head - BLOCK_N * kv_stride,  # see `load_rows`
        [num_rows + BLOCK_N, BLOCK_N, BLOCK_D], [kv_stride, kv_stride, 1], [1, BLOCK_N, BLOCK_D],
    )  # fmt: skip
    q = q_rows.load([tl.where(first_query < query_len, first_row + first_query, end_row), 0])
    # [M]
    query = first_query + tl.arange(0, BLOCK_M)
    position = first_position + tl.arange(0, BLOCK_M)
    sink = tl.load(sinks_ptr + head * has_sinks)
    row_max = tl.full([BLOCK_M], 0.0, tl.float32) + tl.where(has_sinks != 0, sink * LOG2E, float("-inf"))
    row_sum = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    to_base_2 = scale * LOG2E
    for i in tl.range(0, end, warp_specialize=True):
        first_key = i * BLOCK_N  # int32: a key
        block = tl.load(table_ptr + first_key // BLOCK_SIZE)
        k_row = block * rows_of_block + first_key % BLOCK_SIZE  # int32: below num_rows
        k = load_rows(kv_rows, k_row, first_key, end_key, BLOCK_N, BLOCK_D)
        v = load_rows(kv_rows, k_row + rows_to_v, first_key, end_key, BLOCK_N, BLOCK_D)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        key = first_key + tl.arange(0, BLOCK_N)
        logits = tl.where(key[None, :] <= position[:, None], logits, float("-inf"))
        row_max, row_sum, weights, decay = softmax_step(row_max, row_sum, logits, to_base_2, False, 0)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    out, lse = normalize(row_max, row_sum, acc)
    row = first_row + query
    # outputs are written to these rows: lengths that were not checked must not reach beyond them
    owned = (query < query_len) & (row >= 0) & (row < num_tokens)
    out_offset = row.to(tl.int64) * stride_out_row + head * stride_out_head
    dim = tl.arange(0, BLOCK_D)
    tl.store(out_ptr + out_offset[:, None] + dim[None, :], out.to(out_ptr.dtype.element_ty), mask=owned[:, None])
    tl.store(lse_ptr + head * stride_lse_head + row, lse, mask=owned & (has_lse != 0))


@triton.jit
def load_rows(rows, row, first_key, end_key, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """[N, D]: the rows from `row` on, which hold the keys from `first_key` on. From `end_key` on they are zeros and not read.

    Rows beyond a request's keys may hold NaN, which a weight of 0 would not hide. A descriptor gives zeros only beyond its
    ends, and a request's keys end in the middle of the cache. So `rows` has an additional dimension: its element (a, b, d) is
    dim d of row a + b - N, for b below N. It begins N rows before the cache. An H200 reads nothing there, unless all rows of a
    load are zeros; they are not, because first_key is below end_key.
    """
    missing = tl.maximum(first_key + BLOCK_N - end_key, 0)
    return tl.reshape(rows.load([row + (BLOCK_N - missing), missing, 0]), [BLOCK_N, BLOCK_D])
