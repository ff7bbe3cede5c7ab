"""Loads of the attention kernel: a program's queries, and tiles of keys and values from a cache or from rows."""

from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.key_tiles import keys_of_tile
from attn_optimized.kernels.kv_layout import load_packed_keys, load_packed_values
from attn_optimized.kernels.quantization import decode, decode_pairs, scale_number

# as few as a dot takes
FEW_ROWS = tl.constexpr(16)


class Source(NamedTuple):
    """Pointers to the keys and values of a request and a KV head, and with `k_dim_ptr`, `v_dim_ptr` to dims [1, D], [1, Dv].

    `selection` says which of the keys the tile's query selects.
    """

    request_table_ptr: tl.tensor
    k_head_ptr: tl.tensor
    v_head_ptr: tl.tensor
    k_dim_ptr: tl.tensor
    v_dim_ptr: tl.tensor
    first_row: tl.tensor
    kv_head: tl.tensor
    selection: tl.tensor


@triton.jit
def load_queries(rows, args, KIND: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr):
    """[M, D / STEP], dims FIRST, FIRST + STEP, ... of q, with the sign of the layer's scale: the largest logit of a row is then
    that of its largest product."""
    number = tl.arange(0, KIND.block_d // STEP)[None, :]
    dim = FIRST + (number if STEP == 1 else number + number)  # a sum: products in addresses have 64 bits
    in_head = dim < KIND.first_size
    loaded = rows.owned[:, None] & in_head
    offset = (rows.row.to(tl.int64) * args.strides.q_row + rows.head.to(tl.int64) * args.strides.q_head) * KIND.q_unit
    return signed_queries(tl.load(args.tensors.q_ptr + offset[:, None] + dim, mask=loaded, other=0.0), KIND)


@triton.jit
def signed_queries(q, KIND: tl.constexpr):
    """Queries as they were loaded -> the numbers that dots take. float16 holds each number of float8, and of its keys."""
    Q_FORMAT: tl.constexpr = KIND.q_format
    if Q_FORMAT != "float":
        q = decode(q, Q_FORMAT, tl.float16, False)
    if KIND.scale_sign != 1:
        q *= KIND.scale_sign
    return q


@triton.jit
def load_scales(tile, args):
    """The positive number that products of q and k are scaled by, and the scale of values; of scales per token, 1.0."""
    has_scales = args.flags.has_scales != 0
    k_scale = tl.load(args.tensors.k_scale_ptr + tile.kv_head * args.strides.k_scale_head, mask=has_scales, other=1.0)
    v_scale = tl.load(args.tensors.v_scale_ptr + tile.kv_head * args.strides.v_scale_head, mask=has_scales, other=1.0)
    return tl.maximum(tl.abs(args.rules.scale * k_scale), 2.0**-126), v_scale


@triton.jit
def source_of_keys(tile, selection, args, KIND: tl.constexpr):
    """The places of the keys and values of a tile of queries."""
    dim, value_dim = tl.arange(0, KIND.block_d)[None, :], tl.arange(0, KIND.block_v)[None, :]
    request_table_ptr = args.tensors.block_table_ptr + tile.request * args.strides.block_table
    k_head_ptr = args.tensors.k_ptr + tile.kv_head * args.strides.k_head * KIND.kv_unit
    v_head_ptr = args.tensors.v_ptr + (args.strides.kv + tile.kv_head * args.strides.v_head) * KIND.kv_unit
    return Source(
        request_table_ptr=request_table_ptr,
        k_head_ptr=k_head_ptr,
        v_head_ptr=v_head_ptr,
        k_dim_ptr=k_head_ptr + dim,
        v_dim_ptr=v_head_ptr + value_dim,
        first_row=tile.first_row,
        kv_head=tile.kv_head,
        selection=selection,
    )


@triton.jit
def load_blocks(source, i, end_key, loops, sink_tokens, KIND: tl.constexpr, MASKED: tl.constexpr, ALL: tl.constexpr):
    """[N]: the block of each key of tile `i` of a loop, 0 from `end_key` on; the number 0 if K and V are not paged.

    A loop looks up blocks one tile before it loads their keys. So no load of a key waits for a load of the same iteration, and
    a compiler that pipelines the loads keeps num_stages tiles in flight. Otherwise it would spend a stage on the block table.

    Args:
        ALL: True if all keys of the tile are below `end_key`, and a query may see each of them.
    """
    block = 0
    if KIND.is_paged:
        _, key, in_tile = keys_of_tile(i, loops, source.selection, KIND, MASKED)
        # an unsigned division by a power of two is one shift
        unsigned_key = key.to(tl.uint32, bitcast=True)
        block_ptr = source.request_table_ptr + unsigned_key // KIND.block_size
        if KIND.has_other_masks:
            in_tile = in_tile | ((key >= 0) & (key < sink_tokens))
        block = tl.load(block_ptr) if ALL else tl.load(block_ptr, mask=in_tile & (key < end_key), other=0)
    return block


@triton.jit
def load_keys_and_values(
    source, first_key, key, block, in_tile, dtype, args,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, PAIRS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of keys [N, D] and one of values [N, Dv] in a dtype, and the block and slot [N] of each key.

    Args:
        key: [N], keys of the request from `first_key` on.
        block: [N], of each key.
        in_tile: [N], whether a key is loaded, if MASKED. Otherwise all keys are loaded.

    Returns:
        k, v, v_odd, block, slot. If PAIRS, v and v_odd are the even and the odd dims of values, [N, Dv / 2]; otherwise both
        hold all dims. k is v in a latent cache.
    """
    KV_FORMAT: tl.constexpr = KIND.kv_format
    INTERIOR: tl.constexpr = KIND.interior
    if KIND.is_paged:
        block = block.to(tl.int64)
        unsigned_key = key.to(tl.uint32, bitcast=True)
        # Unsigned arithmetic lets the compiler hoist the slot out of the loop. Small tiles have no registers to spare for it.
        slot = ((unsigned_key if BLOCK_M > FEW_ROWS else key) % KIND.block_size).to(tl.int64)
    else:
        slot = source.first_row + key
    if INTERIOR == "latent_scaled":
        k = load_scaled_rows(source, block, slot, in_tile, dtype, args, KIND, MASKED)
        v = k
    elif INTERIOR == "rows" or INTERIOR == "latent":
        k, v = load_rows(source, block, slot, in_tile, args.strides, KIND, PAIRS, MASKED)
    else:
        page = block * args.strides.block * KIND.kv_unit
        k = load_packed_keys(
            source.k_head_ptr, page, slot, in_tile, KIND.block_size, KIND.head_size, KIND.block_d, KIND.x, MASKED
        )
        v = load_packed_values(
            source.v_head_ptr, source.request_table_ptr, args.strides.block, first_key, key, in_tile,
            KIND.kv_unit, KIND.block_size, KIND.head_size, KIND.block_n, KIND.block_d, KIND.x, INTERIOR, MASKED,
            KIND.selection_unit,
        )  # fmt: skip
    v_odd = v
    if PAIRS:
        v, v_odd = decode_pairs(v, source.v_head_ptr.dtype.element_ty, KV_FORMAT, dtype)
        k = v if INTERIOR == "latent" else decode(k, KV_FORMAT, dtype, KIND.has_integer_bfloat16)
    elif INTERIOR != "latent_scaled":
        v = decode(v, KV_FORMAT, dtype, KIND.has_integer_bfloat16)
        k, v_odd = v if INTERIOR == "latent" else decode(k, KV_FORMAT, dtype, KIND.has_integer_bfloat16), v
    return k, v, v_odd, block, slot


@triton.jit
def load_rows(source, block, slot, in_tile, strides, KIND: tl.constexpr, PAIRS: tl.constexpr, MASKED: tl.constexpr):
    """Keys [N, D] and values [N, Dv], or if PAIRS those of `load_value_pairs`, for K of a latent cache, too.

    Each slot of a head is a dense row of dims.
    """
    INTERIOR: tl.constexpr = KIND.interior
    # [1, D], [1, Dv], [N, D], [N, Dv]
    in_head = tl.arange(0, KIND.block_d)[None, :] < KIND.first_size
    in_value = tl.arange(0, KIND.block_v)[None, :] < KIND.first_v_head_size
    loaded, value_loaded = in_tile[:, None] & in_head, in_tile[:, None] & in_value
    k_pointer = source.k_dim_ptr + offset_of_keys(block, slot, strides, KIND)[:, None]
    v_pointer = source.v_dim_ptr + offset_of_values(block, slot, strides, KIND)[:, None]
    if INTERIOR == "latent" and PAIRS:
        k = load_value_pairs(source, block, slot, in_tile, strides, KIND, MASKED)
    else:
        k = load_dims(k_pointer, loaded, in_head, KIND.first_size < KIND.block_d, MASKED)
    # loaded once: the dims of K that the first dot takes are V
    if INTERIOR == "latent":
        v = k
    elif PAIRS:
        v = load_value_pairs(source, block, slot, in_tile, strides, KIND, MASKED)
    else:
        v = load_dims(v_pointer, value_loaded, in_value, KIND.first_v_head_size < KIND.block_v, MASKED)
    return k, v


@triton.jit
def load_value_pairs(source, block, slot, in_tile, strides, KIND: tl.constexpr, MASKED: tl.constexpr):
    """[N, Dv / 2], int16: two dims of values of one byte in each number.

    In a dot of few rows each thread takes values of several keys, one dim after the other: V is transposed on its way from
    shared memory. NVIDIA's ldmatrix transposes elements of 16 bits. Elements of 8 bits are loaded one by one. So V stays in
    pairs until it is in registers, and its even and its odd dims have a dot each. On an H100, decodes over a float8 cache are
    1.18 times as fast. K of a latent cache is V, and so it has two dots, too. On an H200, 64 decodes of 8k keys of 16 heads are
    1.26 times as fast.
    """
    # [1, Dv / 2]
    pair = tl.arange(0, KIND.block_v // 2)[None, :]
    in_value = pair < KIND.first_v_head_size // 2
    row = (block * strides.block + slot * strides.k_slot) * (KIND.kv_unit // 2)
    pointer = source.v_head_ptr.to(tl.pointer_type(tl.int16)) + row[:, None] + pair
    return load_dims(pointer, in_tile[:, None] & in_value, in_value, KIND.first_v_head_size < KIND.block_v, MASKED)


@triton.jit
def load_scaled_rows(source, block, slot, in_tile, dtype, args, KIND: tl.constexpr, MASKED: tl.constexpr):
    """[N, Dv] in a dtype: the dims of latent keys that are also V. KIND.scale_dims elements are multiplied by one scale.

    The last KIND.kept_dims of these dims have no scale: they are bfloat16, at v_ptr.
    """
    KV_FORMAT: tl.constexpr = KIND.kv_format
    NUM_SCALES: tl.constexpr = (KIND.first_size - KIND.kept_dims) // KIND.scale_dims
    IS_PADDED: tl.constexpr = KIND.first_size - KIND.kept_dims < KIND.block_d
    # [1, groups, 1], [1, 1, dims of one], [1, groups, dims of one], [N, groups, 1]
    index = tl.arange(0, KIND.block_d // KIND.scale_dims)[None, :, None]
    in_group = tl.arange(0, KIND.scale_dims)[None, None, :]
    dim = index * KIND.scale_dims + in_group  # int32: in its row
    has_scale = index < NUM_SCALES
    loaded = in_tile[:, None, None] & has_scale
    row = offset_of_keys(block, slot, args.strides, KIND)[:, None, None]
    scales_of_row = (block * args.strides.k_scale_block + slot * args.strides.k_scale_slot)[:, None, None]
    scale = load_dims(args.tensors.k_scale_ptr + scales_of_row + index, loaded, has_scale, IS_PADDED, MASKED)
    stored = load_dims(source.k_head_ptr + row + dim, loaded, has_scale, IS_PADDED, MASKED)
    numbers = decode(stored, KV_FORMAT, tl.float32, False) * scale_number(scale)
    if KIND.kept_dims > 0:
        # [N, 1, dims of a group]; the row is counted in bytes, and these are bfloat16
        kept = load_dims(source.v_head_ptr + row // 2 + in_group, in_tile[:, None, None], in_group >= 0, False, MASKED)
        numbers = tl.where(index == NUM_SCALES, kept.to(dtype), numbers.to(dtype))
    return tl.reshape(numbers.to(dtype), [slot.shape[0], KIND.block_d])


@triton.jit
def offset_of_keys(block, slot, strides, KIND: tl.constexpr):
    """[N]: the distance in elements from the dims of slot 0 of block 0 to those of each key."""
    return ((block * strides.block if KIND.is_paged else 0) + slot * strides.k_slot) * KIND.kv_unit


@triton.jit
def offset_of_values(block, slot, strides, KIND: tl.constexpr):
    """[N]: as `offset_of_keys`, for values. A paged cache has one sum for both: pointers are most of a loop over few rows."""
    return offset_of_keys(block, slot, strides, KIND) if KIND.is_paged else slot * strides.v_slot * KIND.kv_unit


@triton.jit
def load_dims(pointer, loaded, in_row, IS_PADDED: tl.constexpr, MASKED: tl.constexpr):
    """[N, D]: dims of keys. They are masked by `loaded` [N, D] if MASKED, or by `in_row` [1, D] if a row IS_PADDED."""
    if MASKED:
        dims = tl.load(pointer, mask=loaded, other=0.0)
    elif IS_PADDED:
        dims = tl.load(pointer, mask=in_row, other=0.0)
    else:
        dims = tl.load(pointer)
    return dims
