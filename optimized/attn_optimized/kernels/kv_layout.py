"""Offsets of an element of one head's K or V inside its page, in elements.

INTERIOR is "rows" (each slot a dense row of dims, STRIDE_UNIT * stride_slot apart), "x_packed" or "shuffled". In the latter two
a page is dense: K is [D/x, BS, x] in both, V is [D, BS] or [BS/x, D, x], with X = x elements in 16 bytes.
"""

import triton
import triton.language as tl


@triton.jit
def key_offset(slot, dim, block_size, stride_slot, STRIDE_UNIT: tl.constexpr, X: tl.constexpr, INTERIOR: tl.constexpr):
    """The offset of K's element (slot, dim) in its page; slot and dim broadcast."""
    packed_dim = dim.to(tl.int64) // X * block_size
    return slot * stride_slot * STRIDE_UNIT + dim if INTERIOR == "rows" else (packed_dim + slot) * X + dim % X


@triton.jit
def value_offset(
    slot,
    dim,
    block_size,
    stride_slot,
    STRIDE_UNIT: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    X: tl.constexpr,
    INTERIOR: tl.constexpr,
):
    """The offset of V's element (slot, dim) in its page; slot and dim broadcast."""
    if INTERIOR == "rows":
        offset = slot * stride_slot * STRIDE_UNIT + dim
    elif INTERIOR == "x_packed":
        offset = dim.to(tl.int64) * block_size + slot
    else:
        offset = (slot // X * HEAD_SIZE + dim) * X + slot % X
    return offset


@triton.jit
def load_packed_keys(
    head_ptr,
    page,
    slot,
    in_tile,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    X: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys [N, D] from pages [D/x, BS, x], in the order of memory: page, slot and in_tile are [N]."""
    # [D/x, N, x]
    packed_dim = tl.arange(0, BLOCK_D // X)[:, None, None]
    row = (page + slot * X)[None, :, None]
    in_page = packed_dim * (BLOCK_SIZE * X) + tl.arange(0, X)[None, None, :]  # int32: in its page
    pointer = head_ptr + row + in_page
    loaded = packed_dim < HEAD_SIZE // X
    if MASKED:
        k = tl.load(pointer, mask=loaded & in_tile[None, :, None], other=0.0)
    elif HEAD_SIZE < BLOCK_D:
        k = tl.load(pointer, mask=loaded, other=0.0)
    else:
        k = tl.load(pointer)
    return tl.reshape(tl.permute(k, (1, 0, 2)), [slot.shape[0], BLOCK_D])


@triton.constexpr_function
def slots_side_by_side(BLOCK_SIZE, BLOCK_N, X, INTERIOR, MASKED):
    """The number of slots of a dim of V that a tile loads together, a power of two: they are contiguous.

    With a mask, they are those of 16 bytes.
    """
    return X if MASKED or INTERIOR == "shuffled" else min(BLOCK_SIZE & -BLOCK_SIZE, BLOCK_N)


@triton.jit
def load_packed_values(
    head_ptr,
    table_ptr,
    stride_block,
    first_key,
    key,
    in_tile,
    STRIDE_UNIT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    X: tl.constexpr,
    INTERIOR: tl.constexpr,
    MASKED: tl.constexpr,
    SELECTION_UNIT: tl.constexpr,
):
    """Values [N, D] from pages [D, BS] or [BS/x, D, x], in the order of memory; key and in_tile are [N].

    A mask of single slots would make each element a load and a register of its own. So the slots of 16 bytes are loaded if one
    of them is in the tile, and the others are set to 0: they are in the same page, and may hold anything.
    """
    S: tl.constexpr = slots_side_by_side(BLOCK_SIZE, BLOCK_N, X, INTERIOR, MASKED)
    # [N/S]; blocks are looked up anew, once for S slots: so the compiler sees that they are in one block
    if SELECTION_UNIT > 0:
        # a multiple of S, so that S slots are in one unit
        key = tl.max(tl.reshape(key, [BLOCK_N // S, S]), 1) - (S - 1)
    else:
        key = first_key + tl.arange(0, BLOCK_N // S) * S  # int32: a key of its request
    unsigned_key = key.to(tl.uint32, bitcast=True)
    in_tile = tl.reshape(in_tile, [BLOCK_N // S, S])
    if MASKED:
        there = tl.max(in_tile.to(tl.int32), 1) > 0
        block = tl.load(table_ptr + unsigned_key // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
    else:
        block = tl.load(table_ptr + unsigned_key // BLOCK_SIZE).to(tl.int64)
    # [N/S, D, S]
    first_slot = (unsigned_key % BLOCK_SIZE).to(tl.int64)[:, None, None]
    dim = tl.arange(0, BLOCK_D)[None, :, None]
    in_page = dim * (X if INTERIOR == "shuffled" else BLOCK_SIZE) + tl.arange(0, S)[None, None, :]  # int32: in its page
    row = (block * stride_block * STRIDE_UNIT)[:, None, None] + first_slot * (HEAD_SIZE if INTERIOR == "shuffled" else 1)
    pointer = head_ptr + row + in_page
    in_head = dim < HEAD_SIZE
    if MASKED:
        v = tl.load(pointer, mask=there[:, None, None] & in_head, other=0.0)
        v = tl.where(in_tile[:, None, :], v, tl.zeros_like(v))
    elif HEAD_SIZE < BLOCK_D:
        v = tl.load(pointer, mask=in_head, other=0.0)
    else:
        v = tl.load(pointer)
    return tl.reshape(tl.permute(v, (0, 2, 1)), [BLOCK_N, BLOCK_D])
