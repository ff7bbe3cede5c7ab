"""Reducing attention over parts of the keys to attention over all of them (split-KV decode, cascade)."""

import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.dependent_launch import wait_for_previous
from attn_optimized.kernels.online_softmax import FINISHED, divide, normalize
from attn_optimized.kernels.quantization import encode


@compiled_once(aligned=("out_ptr", "acc_ptr"))
def reduce_parts_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr,
    lse_ptr,
    # read, dense: [parts, rows, H, D] and [parts, H, rows] twice. A row that saw no key of a part has no sums in the part
    acc_ptr,
    row_max_ptr,
    row_sum_ptr,
    output_scale_ptr,
    query_start_loc_ptr,
    has_lse,
    has_output_scale,
    num_requests,
    num_heads,
    num_rows,
    num_parts,
    # in OUT_UNIT elements
    stride_out_row,
    stride_out_head,
    # in elements
    stride_lse_head,
    OUT_UNIT: tl.constexpr,
    OUT_FORMAT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Reduce BLOCK_D dims of BLOCK_ROWS pairs of (token, query head), in the order of tokens.

    A program loads BLOCK_PARTS parts at once, so that it waits for memory once for all of them.
    Grid: (tiles, blocks of dims).
    """
    if IS_DEPENDENT:
        wait_for_previous()
    # [rows]
    pair = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = pair // num_heads
    head = pair % num_heads
    owned = token < tl.minimum(tl.load(query_start_loc_ptr + num_requests), num_rows)
    # int64: offsets count all elements
    rows, heads = num_rows.to(tl.int64), num_heads.to(tl.int64)
    in_block = tl.arange(0, BLOCK_PARTS)[None, :]
    # [D]
    dims = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    dim = dims[None, None, :]

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    row_sum = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    acc = tl.full([BLOCK_ROWS, BLOCK_D], 0.0, tl.float32)
    # at least once: there is a part to reduce
    for first_part in range(0, num_parts, BLOCK_PARTS):
        # [rows, parts]
        part = first_part + in_block
        there = owned[:, None] & (part < num_parts)
        offset = (part * heads + head[:, None]) * rows + token[:, None]
        row_max = tl.load(row_max_ptr + offset, mask=there, other=float("-inf"))
        # the sums of a row that saw no key are not written, and may be NaN
        saw_keys = there & (row_max > float("-inf"))
        weights = tl.load(row_sum_ptr + offset, mask=saw_keys, other=0.0)
        owned = owned & (tl.min(weights, 1) != FINISHED)
        saw_keys = saw_keys & owned[:, None]
        new_largest = tl.maximum(largest, tl.max(tl.where(saw_keys, row_max, float("-inf")), 1))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        decay = tl.exp2(largest - shift)
        weight = tl.where(saw_keys, tl.exp2(row_max - shift[:, None]), 0.0)
        row_sum = row_sum * decay + tl.sum(weight * weights, 1)
        # [rows, parts, D]
        acc_offset = ((part * rows + token[:, None]) * heads + head[:, None]) * HEAD_SIZE
        read = saw_keys[:, :, None] & (dim < HEAD_SIZE)
        values = tl.load(acc_ptr + acc_offset[:, :, None] + dim, mask=read, other=0.0)
        acc = acc * decay[:, None] + tl.sum(weight[:, :, None] * values, 1)
        largest = new_largest

    out, lse = normalize(largest, tl.where(owned, row_sum, 0.0), acc)
    if has_output_scale:
        out = divide(out, tl.full([BLOCK_ROWS], 1.0, tl.float32) * tl.load(output_scale_ptr))
    out_offset = (token * stride_out_row + head * stride_out_head) * OUT_UNIT
    dim = dims[None, :]
    out = encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_offset[:, None] + dim, out, mask=owned[:, None] & (dim < HEAD_SIZE))
    # all blocks of a row's dims share one LSE
    if has_lse:  # noqa: SIM102
        if tl.program_id(1) == 0:
            tl.store(lse_ptr + head * stride_lse_head + token, lse, mask=owned)
