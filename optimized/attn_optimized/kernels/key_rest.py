"""The dims of q and K that a second dot takes.

A row of K of 576 or 192 dims, padded to a power of two, would be 1024 or 256. Cut into 512 and 64, or into 128 and 64, it is
not padded at all: q . k = q[:first] . k[:first] + q[first:] . k[first:]. In latent attention the first dims of K are V, too.
"""

import triton
import triton.language as tl

from attn_optimized.kernels.load import load_dims, offset_of_keys, signed_queries
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
    REST_SIZE: tl.constexpr = KIND.head_size - KIND.first_size
    k_rest = 0.0
    if KIND.block_rest > 0:
        dim = tl.arange(0, KIND.block_rest)[None, :]
        in_rest = dim < REST_SIZE
        offset = offset_of_keys(block, slot, args.strides, KIND)[:, None]
        if INTERIOR == "latent_scaled":
            # of another type than the row's first dims: the row is counted in bytes, and these are bfloat16
            pointer = source.v_head_ptr + dim + offset // 2
        else:
            pointer = source.k_head_ptr + KIND.first_size + dim + offset
        stored = load_dims(pointer, in_tile[:, None] & in_rest, in_rest, KIND.block_rest > REST_SIZE, MASKED)
        if INTERIOR == "latent_scaled":
            k_rest = stored.to(dtype)
        else:
            k_rest = decode(stored, KV_FORMAT, dtype, KIND.has_integer_bfloat16)
    return k_rest
