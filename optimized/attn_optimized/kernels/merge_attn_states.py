"""Merging attention over two disjoint sets of keys."""

import triton.language as tl

from attn_optimized.kernels.attn_states import load_lse, normalized, shift_of, weight_of_output
from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.quantization import encode


@compiled_once(aligned=("out_ptr", "out_a_ptr", "out_b_ptr"))
def merge_attn_states_kernel(
    # written: [T, H, D], and [H, T] or None
    out_ptr, lse_ptr,
    # read: the attention over each set of keys, shaped as the result
    out_a_ptr, lse_a_ptr, out_b_ptr, lse_b_ptr,
    # one number, or None
    output_scale_ptr,
    num_tokens, num_heads, prefill_tokens_with_context,
    # in STRIDE_UNIT elements
    stride_out_row, stride_out_head, stride_a_row, stride_a_head, stride_b_row, stride_b_head,
    # in elements
    stride_lse, stride_lse_a, stride_lse_b,
    STRIDE_UNIT: tl.constexpr, OUT_FORMAT: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_ROWS pairs of (token, query head), token by token. Grid: (tiles,)."""
    # [rows]
    pair = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = pair // num_heads
    head = pair % num_heads
    owned = token < num_tokens
    lse_a = load_lse(lse_a_ptr + head * stride_lse_a + token, owned & (token < prefill_tokens_with_context))
    lse_b = load_lse(lse_b_ptr + head * stride_lse_b + token, owned)
    largest = tl.maximum(lse_a, lse_b)
    shift = shift_of(largest)
    weight_a = tl.exp(lse_a - shift)
    weight_b = tl.exp(lse_b - shift)
    total = weight_a + weight_b

    dim = tl.arange(0, BLOCK_D)[None, :]
    # [rows, D]; a side that saw no key is not read: its output may be NaN, and 0 * NaN is NaN
    stored = owned[:, None] & (dim < HEAD_SIZE)
    from_a = stored & (lse_a > float("-inf"))[:, None]
    from_b = stored & (lse_b > float("-inf"))[:, None]
    a_offset = (token * stride_a_row + head * stride_a_head) * STRIDE_UNIT
    b_offset = (token * stride_b_row + head * stride_b_head) * STRIDE_UNIT
    out_a = tl.load(out_a_ptr + a_offset[:, None] + dim, mask=from_a, other=0.0)
    out_b = tl.load(out_b_ptr + b_offset[:, None] + dim, mask=from_b, other=0.0)
    weighted_a = out_a.to(tl.float32) * weight_of_output(weight_a, lse_a)[:, None]
    weighted = weighted_a + out_b.to(tl.float32) * weight_of_output(weight_b, lse_b)[:, None]
    out = normalized(weighted, total, output_scale_ptr)

    # the output may be one of the inputs: all threads of this tile have read before one writes
    tl.debug_barrier()
    offset = (token * stride_out_row + head * stride_out_head) * STRIDE_UNIT
    tl.store(out_ptr + offset[:, None] + dim, encode(out, OUT_FORMAT).to(out_ptr.dtype.element_ty), mask=stored)
    if lse_ptr is not None:
        tl.store(lse_ptr + head * stride_lse + token, largest + tl.log(tl.where(total == 0.0, 1.0, total)), mask=owned)
