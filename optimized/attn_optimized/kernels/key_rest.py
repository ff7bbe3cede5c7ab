"""The dims that a second dot takes: of q and K, and of V.

A row of K of 576 or 192 dims, padded to a power of two, would be 1024 or 256. Cut into 512 and 64, or into 128 and 64, it is
not padded at all: q . k = q[:first] . k[:first] + q[first:] . k[first:]. In latent attention the first dims of K are V, too.
A row of V of 96 dims is cut into 64 and 32, and a tile has two sums of values.
"""

import triton
import triton.language as tl

from attn_optimized.kernels.load import load_dims, offset_of_keys, offset_of_values, signed_queries
from attn_optimized.kernels.quantization import decode


@triton.jit
def load_rest_of_queries(rows, args, KIND: tl.constexpr):
    """[M, D - first], with the sign of the layer's scale as `load_queries`; a 0 if there is one dot."""
    q_rest = 0.0
    if KIND.block_rest > 0:
        dim = tl.arange(0, KIND.block_rest)[None, :]
        loaded = rows.owned[:, None] & (dim < KIND.head_size - KIND.first_size)
        row, head = rows.row.to(tl.int64), rows.head.to(tl.int64)
        offset = (row * args.strides.q_row + head * args.strides.q_head) * KIND.q_unit + KIND.first_size
        q_rest = signed_queries(tl.load(args.tensors.q_ptr + offset[:, None] + dim, mask=loaded, other=0.0), KIND)
    return q_rest


@triton.jit
def load_rest_of_keys(source, block, slot, in_tile, dtype, args, KIND: tl.constexpr, MASKED: tl.constexpr):
    """[N, D - first] in a dtype; a 0 if there is one dot. The arguments are those of `load_keys_and_values` and its results."""
    KV_FORMAT: tl.constexpr = KIND.kv_format
    INTERIOR: tl.constexpr = KIND.interior
    k_rest = 0.0
    if KIND.block_rest > 0:
        SIZE: tl.constexpr = KIND.head_size - KIND.first_size
        offset = offset_of_keys(block, slot, args.strides, KIND)
        if INTERIOR == "latent_scaled":
            # of another type than the row's first dims: the row is counted in bytes, and these are bfloat16
            k_rest = load_rest(source.v_head_ptr, offset // 2, in_tile, SIZE, KIND.block_rest, MASKED).to(dtype)
        else:
            stored = load_rest(source.k_head_ptr + KIND.first_size, offset, in_tile, SIZE, KIND.block_rest, MASKED)
            k_rest = decode(stored, KV_FORMAT, dtype, KIND.has_integer_bfloat16)
    return k_rest


@triton.jit
def load_rest_of_values(source, block, slot, in_tile, dtype, args, KIND: tl.constexpr, MASKED: tl.constexpr):
    """[N, Dv - first] in a dtype; a 0 if there is one sum of values. The arguments are those of `load_rest_of_keys`."""
    KV_FORMAT: tl.constexpr = KIND.kv_format
    v_rest = 0.0
    if KIND.block_v_rest > 0:
        SIZE: tl.constexpr = KIND.v_head_size - KIND.first_v_head_size
        offset = offset_of_values(block, slot, args.strides, KIND)
        stored = load_rest(source.v_head_ptr + KIND.first_v_head_size, offset, in_tile, SIZE, KIND.block_v_rest, MASKED)
        v_rest = decode(stored, KV_FORMAT, dtype, KIND.has_integer_bfloat16)
    return v_rest


@triton.jit
def load_rest(ptr, offset, in_tile, SIZE: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """[N, BLOCK]: the SIZE dims from each offset [N] on, as they are stored."""
    dim = tl.arange(0, BLOCK)[None, :]
    in_rest = dim < SIZE
    return load_dims(ptr + dim + offset[:, None], in_tile[:, None] & in_rest, in_rest, BLOCK > SIZE, MASKED)
