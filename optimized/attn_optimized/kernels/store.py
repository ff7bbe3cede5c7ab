"""Stores of the attention kernel: rows of the output, or the softmax's state for a part of the keys."""

import triton
import triton.language as tl

from attn_optimized.kernels.dependent_launch import let_next_begin
from attn_optimized.kernels.online_softmax import FINISHED, divide, normalize
from attn_optimized.kernels.quantization import encode
from attn_optimized.kernels.query_tiles import recomputed_rows


@triton.jit
def finish(tile, is_part, row_max, row_sum, acc, acc_rest, v_scale, args, KIND: tl.constexpr, BLOCK_M: tl.constexpr):
    """Store the state of the rows if the tile is a part of their keys; otherwise store the output."""
    tensors = args.tensors
    if KIND.has_dependent:
        let_next_begin()
    if KIND.is_partial:
        rows = recomputed_rows(tile, args.sizes, KIND, BLOCK_M)
        state_offset = offset_of_state(tile, rows, args)
        if is_part:
            part = args.sizes.first_part + tile.split
            row, head = rows.row.to(tl.int64), rows.head.to(tl.int64)
            acc_offset = (part * args.strides.acc_part + row * args.strides.acc_row + head) * KIND.v_head_size
            stored = rows.owned & (row_max > float("-inf"))
            store_dims(tensors.acc_ptr, acc_offset, acc * v_scale, stored, KIND, False)
            if KIND.block_v_rest > 0:
                store_dims(tensors.acc_ptr, acc_offset, acc_rest * v_scale, stored, KIND, True)
            tl.store(tensors.row_max_ptr + state_offset, row_max, mask=rows.owned)
            tl.store(tensors.row_sum_ptr + state_offset, row_sum, mask=rows.owned)
            return
        tl.store(tensors.row_max_ptr + state_offset, row_max, mask=rows.owned)
        tl.store(tensors.row_sum_ptr + state_offset, tl.full([BLOCK_M], FINISHED, tl.float32), mask=rows.owned)
    store_output(tile, row_max, row_sum, acc, v_scale, args, KIND, BLOCK_M, False)
    if KIND.block_v_rest > 0:
        store_output(tile, row_max, row_sum, acc_rest, v_scale, args, KIND, BLOCK_M, True)


@triton.jit
def store_output(
    tile, row_max, row_sum, acc, v_scale, args,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Normalize, scale, round and store the first dims of the output and the LSE, or if REST the dims after the first."""
    KV_FORMAT: tl.constexpr = KIND.kv_format
    OUT_FORMAT: tl.constexpr = KIND.out_format
    tensors, strides = args.tensors, args.strides
    out, lse = normalize(row_max, row_sum, acc)
    if KV_FORMAT != "float":
        out *= v_scale
    if args.flags.has_output_scale:
        out = divide(out, tl.full([BLOCK_M], 1.0, tl.float32) * tl.load(tensors.output_scale_ptr))
    rows = recomputed_rows(tile, args.sizes, KIND, BLOCK_M)
    head, row = rows.head.to(tl.int64), rows.row.to(tl.int64)
    out_offset = (row * strides.out_row + head * strides.out_head) * KIND.q_unit
    out = encode(out, OUT_FORMAT).to(tensors.out_ptr.dtype.element_ty)
    store_dims(tensors.out_ptr, out_offset, out, rows.owned, KIND, REST)
    # two ifs, because the compiler decides the first one
    if not REST:  # noqa: SIM102
        if args.flags.has_lse:
            tl.store(tensors.lse_ptr + head * strides.lse_head + row, lse, mask=rows.owned)


@triton.jit
def store_dims(ptr, offset, values, stored, KIND: tl.constexpr, REST: tl.constexpr):
    """Store the first dims of V, or if REST the dims after them, to rows that begin at `offset` [M], where `stored` [M]."""
    FIRST: tl.constexpr = KIND.first_v_head_size if REST else 0
    END: tl.constexpr = KIND.v_head_size if REST else KIND.first_v_head_size
    dim = FIRST + tl.arange(0, KIND.block_v_rest if REST else KIND.block_v)[None, :]
    tl.store(ptr + offset[:, None] + dim, values, mask=stored[:, None] & (dim < END))


@triton.jit
def offset_of_state(tile, rows, args):
    """[M]: the offset of a part's largest logits and of its sums of weights."""
    part = args.sizes.first_part + tile.split
    return part * args.strides.state_part + rows.head.to(tl.int64) * args.strides.state_head + rows.row
