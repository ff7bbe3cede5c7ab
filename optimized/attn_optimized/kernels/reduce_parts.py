"""Attention over parts of the keys, reduced to attention over all of them (split-KV decode, cascade)."""

import triton
import triton.language as tl

from attn_optimized.kernels.online_softmax import normalize
from attn_optimized.kernels.quantization import encode

# Compiled once for all of these: what changes from step to step, what is there or not, and strides.
_RUNTIME = [
    "has_lse", "has_output_scale", "num_requests", "num_heads", "num_rows", "num_parts", "stride_out_row", "stride_out_head",
    "stride_lse_head",
]  # fmt: skip
_ANY_ALIGNMENT = ["lse_ptr", "row_max_ptr", "row_sum_ptr", "output_scale_ptr", "query_start_loc_ptr"]


@triton.jit(do_not_specialize=_RUNTIME, do_not_specialize_on_alignment=_ANY_ALIGNMENT)
def reduce_parts_kernel(
    # written: [T, H, D], and [H, T] if has_lse
    out_ptr,
    lse_ptr,
    # read, dense: [parts, rows, H, D], [parts, H, rows] twice; only parts in which a row saw a key were written
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
    BLOCK_D: tl.constexpr,
):
    """BLOCK_ROWS pairs of (token, query head), token by token. Grid: (tiles,)."""
    # [rows]
    pair = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = pair // num_heads
    head = pair % num_heads
    owned = token < tl.minimum(tl.load(query_start_loc_ptr + num_requests), num_rows)
    dim = tl.arange(0, BLOCK_D)[None, :]
    in_head = dim < HEAD_SIZE
    # int64: multiplied by what counts all elements
    rows, heads = num_rows.to(tl.int64), num_heads.to(tl.int64)

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    for part in range(num_parts):
        offset = (part * heads + head) * rows + token
        largest = tl.maximum(largest, tl.load(row_max_ptr + offset, mask=owned, other=float("-inf")))
    shift = tl.where(largest == float("-inf"), 0.0, largest)

    row_sum = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    acc = tl.full([BLOCK_ROWS, BLOCK_D], 0.0, tl.float32)
    for part in range(num_parts):
        offset = (part * heads + head) * rows + token
        row_max = tl.load(row_max_ptr + offset, mask=owned, other=float("-inf"))
        # what saw no key was not written, and may be NaN
        saw_keys = owned & (row_max > float("-inf"))
        weight = tl.exp(row_max - shift)
        row_sum += weight * tl.load(row_sum_ptr + offset, mask=saw_keys, other=0.0)
        acc_offset = ((part * rows + token) * heads + head) * HEAD_SIZE
        acc += weight[:, None] * tl.load(acc_ptr + acc_offset[:, None] + dim, mask=saw_keys[:, None] & in_head, other=0.0)

    out, lse = normalize(largest, row_sum, acc)
    if has_output_scale:
        out = tl.div_rn(out, tl.load(output_scale_ptr))
    out_offset = (token * stride_out_row + head * stride_out_head) * OUT_UNIT
    out = encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_offset[:, None] + dim, out, mask=owned[:, None] & in_head)
    if has_lse:
        tl.store(lse_ptr + head * stride_lse_head + token, lse, mask=owned)
