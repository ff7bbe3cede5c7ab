"""Merging attention over any number of disjoint sets of keys."""

import triton.language as tl

from attn_optimized.kernels.attn_states import load_lse, normalized, shift_of, weight_of_output
from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.quantization import encode


@compiled_once(aligned=("out_ptr", "outs_ptr"))
def merge_attn_parts_kernel(
    # written: [T, H, D], and [H, T] or None
    out_ptr, lse_ptr,
    # read: [N, T, H, D] and [N, H, T]
    outs_ptr, lses_ptr,
    # one number, or None
    output_scale_ptr,
    num_parts, num_tokens, num_heads,
    # factors that take an LSE that was read to base 2 and to base e
    to_base_2, to_base_e,
    # in STRIDE_UNIT elements
    stride_out_row, stride_out_head, stride_outs_part, stride_outs_row, stride_outs_head,
    # in elements
    stride_lse, stride_lses_part, stride_lses_head, stride_lses_token,
    STRIDE_UNIT: tl.constexpr, OUT_FORMAT: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_ROWS pairs of (token, query head), token by token. Grid: (tiles,).

    A tile reads its LSEs twice: for their largest, and for the weights. Its outputs are read once, part by part in order.
    """
    # [rows]
    pair = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = pair // num_heads
    head = pair % num_heads
    owned = token < num_tokens
    lses = lses_ptr + head * stride_lses_head + token * stride_lses_token
    # int64: offsets count all elements
    lse_step, out_step = stride_lses_part.to(tl.int64), stride_outs_part.to(tl.int64)

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    # at least once: there is a part
    for part in range(num_parts):
        largest = tl.maximum(largest, load_lse(lses + part * lse_step, owned))
    shift = shift_of(largest)

    dim = tl.arange(0, BLOCK_D)[None, :]
    stored = owned[:, None] & (dim < HEAD_SIZE)
    row_offset = token * stride_outs_row + head * stride_outs_head
    total = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    weighted = tl.full([BLOCK_ROWS, BLOCK_D], 0.0, tl.float32) * -1.0
    # at least once: there is a part
    for part in range(num_parts):
        lse = load_lse(lses + part * lse_step, owned)
        weight = tl.exp2((lse - shift) * to_base_2)
        # [rows, D]; an empty part is not read: its output may be NaN, and 0 * NaN is NaN
        read = stored & (lse > float("-inf"))[:, None]
        out_offset = (part * out_step + row_offset) * STRIDE_UNIT
        out = tl.load(outs_ptr + out_offset[:, None] + dim, mask=read, other=0.0)
        total += weight
        weighted += out.to(tl.float32) * weight_of_output(weight, lse)[:, None]

    out = normalized(weighted, total, output_scale_ptr)
    offset = (token * stride_out_row + head * stride_out_head) * STRIDE_UNIT
    tl.store(out_ptr + offset[:, None] + dim, encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty), mask=stored)
    if lse_ptr is not None:
        lse = largest * to_base_e + tl.log(tl.where(total == 0.0, 1.0, total))
        tl.store(lse_ptr + head * stride_lse + token, lse, mask=owned)
