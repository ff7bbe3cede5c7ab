"""Scoring the units of an index layer: a logit for each query and unit, from products of index queries with cached keys."""

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once
from attn_optimized.kernels.index_cache import index_key_offset, index_scale_ptr
from attn_optimized.kernels.quantization import decode
from attn_optimized.kernels.query_tiles import find_tile


@dataclass(frozen=True, kw_only=True)
class IndexLogitsKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`."""

    q_unit: int
    """Elements that the strides of q count in; see `launch.units`."""
    cache_unit: int
    """Elements that the strides of the cache count in."""
    layout: str
    """The layout of the cache: see index_cache."""
    q_format: str
    cache_format: str
    """The formats of the elements: see quantization."""
    operand: str
    """The type of the operands of dots, by Triton's name; it holds each number of q and of the cache."""
    has_integer_bfloat16: bool
    """True if bfloat16 is made by `exact_bfloat16`."""
    has_weights: bool
    """True if a key's logit is the weighted sum of products above 0; False: it is their maximum."""
    head_size: int
    num_heads: int
    """Index heads of a selection."""
    key_unit: int
    """Tokens of an index key."""
    keys_per_unit: int
    """Index keys of a unit."""
    block_q: int
    """Queries of a tile."""
    block_h: int
    """Heads of an iteration of the loop over heads; each query of a tile has a row for each."""
    block_units: int
    """Units of a tile."""
    block_keys: int
    """Keys of each unit in an iteration of the loop over them."""
    block_d: int
    """The head size padded to a power of two."""


class Keys(NamedTuple):
    """Index keys of an iteration: numbers [N, D] and scales [N], which key of the request each is, and whether it is there."""

    numbers: tl.tensor
    scale: tl.tensor
    index: tl.tensor
    there: tl.tensor


@triton.constexpr_function
def _operand(KIND):
    return getattr(tl, KIND.operand)


@compiled_once(aligned=("q_ptr", "index_cache_ptr"))
def index_logits_kernel(
    # written: [HS, T, units]
    logits_ptr,
    # read: [T, Hi, D], the cache, and [T, Hi] if KIND.has_weights, else None
    q_ptr, index_cache_ptr, weights_ptr,
    # the batch: [R + 1], [R], [R, max_blocks]
    query_start_loc_ptr, seq_lens_ptr, block_table_ptr,
    num_requests, num_tokens, num_units, block_size,
    # in elements
    stride_logits_selection, stride_logits_row, stride_weights_row, stride_block_table,
    # in KIND.q_unit elements
    stride_q_row, stride_q_head,
    # in KIND.cache_unit elements; that of slots is used only by the layout "plain"
    stride_block, stride_slot,
    KIND: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one request, and a tile of units, for the heads of one selection.

    Grid: (tiles of queries, tiles of units, HS). A logit does not depend on the tile that it is in, nor on other requests.
    Units that no query of the tile sees are not written, and so no column past those of the longest request.
    """
    request, first_row, query_len, first_query, end_query = find_tile(
        query_start_loc_ptr, num_requests, KIND.block_q, 0, tl.program_id(0)
    )
    context_len = tl.load(seq_lens_ptr + request).to(tl.int64) - query_len
    first_unit = tl.program_id(1).to(tl.int64) * KIND.block_units
    # keys that the last query sees
    end_key = tl.maximum(context_len + end_query, 0) // KIND.key_unit
    if (first_query >= query_len) | (first_unit * KIND.keys_per_unit >= end_key):
        return
    # int64 from here on: rows and blocks get multiplied by strides
    selection = tl.program_id(2).to(tl.int64)
    query = first_query + tl.arange(0, KIND.block_q)
    row = first_row + query
    # rows are where logits are written: unchecked lengths must not reach beyond them
    owned = (query < end_query) & (row >= 0) & (row < num_tokens)
    seen = tl.maximum(context_len + query + 1, 0) // KIND.key_unit
    table_ptr = block_table_ptr + request * stride_block_table
    best = tl.full([KIND.block_q, KIND.block_units], float("-inf"), tl.float32)
    # at least once: a unit has a key
    for first_in_unit in range(0, KIND.keys_per_unit, KIND.block_keys):
        keys = load_index_keys(
            index_cache_ptr, table_ptr, first_unit, first_in_unit, end_key, block_size, stride_block, stride_slot, KIND
        )
        logits = logits_of_keys(
            q_ptr, weights_ptr, keys, row, owned, selection, stride_q_row, stride_q_head, stride_weights_row, KIND
        )
        logits = tl.where(keys.there[None, :] & (keys.index[None, :] < seen[:, None]), logits, float("-inf"))
        best = tl.maximum(best, tl.max(tl.reshape(logits, [KIND.block_q, KIND.block_units, KIND.block_keys]), 2))
    unit = first_unit + tl.arange(0, KIND.block_units)
    is_scored = (unit < num_units) & (unit * KIND.keys_per_unit < end_key)
    row_ptr = logits_ptr + selection * stride_logits_selection + row * stride_logits_row
    tl.store(row_ptr[:, None] + unit[None, :], best, mask=owned[:, None] & is_scored[None, :])


@triton.jit
def load_index_keys(
    index_cache_ptr, table_ptr, first_unit, first_in_unit, end_key, block_size, stride_block, stride_slot, KIND: tl.constexpr
):
    """Keys of a tile's units, KIND.block_keys of each unit from its key `first_in_unit` on. Those from `end_key` on are not
    read: their slots may hold anything."""
    FORMAT: tl.constexpr = KIND.cache_format
    LAYOUT: tl.constexpr = KIND.layout
    OPERAND: tl.constexpr = _operand(KIND)
    place = tl.arange(0, KIND.block_units * KIND.block_keys)
    in_unit = first_in_unit + place % KIND.block_keys
    index = (first_unit + place // KIND.block_keys) * KIND.keys_per_unit + in_unit
    there = (in_unit < KIND.keys_per_unit) & (index < end_key)
    block = tl.load(table_ptr + index // block_size, mask=there, other=0).to(tl.int64)
    page, slot = block * stride_block * KIND.cache_unit, index % block_size
    dim = tl.arange(0, KIND.block_d)[None, :]
    loaded = there[:, None] & (dim < KIND.head_size)
    offset = index_key_offset(page[:, None], slot[:, None], dim, stride_slot, KIND)
    stored = tl.load(index_cache_ptr + offset, mask=loaded, other=0.0)
    numbers = decode(stored, FORMAT, OPERAND, KIND.has_integer_bfloat16)
    scale = tl.full(place.shape, 1.0, tl.float32)
    if LAYOUT != "plain":
        scale = tl.load(index_scale_ptr(index_cache_ptr, page, slot, block_size, KIND.head_size), mask=there, other=0.0)
    return Keys(numbers=numbers, scale=scale, index=index, there=there)


@triton.jit
def logits_of_keys(
    q_ptr, weights_ptr, keys, row, owned, selection, stride_q_row, stride_q_head, stride_weights_row, KIND: tl.constexpr
):
    """[Q, N]: the logit of each key, whether the query sees it or not."""
    FORMAT: tl.constexpr = KIND.q_format
    OPERAND: tl.constexpr = _operand(KIND)
    ROWS: tl.constexpr = KIND.block_q * KIND.block_h
    N: tl.constexpr = KIND.block_units * KIND.block_keys
    # [Q, H]
    in_turn = tl.arange(0, KIND.block_h)[None, :]
    dim = tl.arange(0, KIND.block_d)[None, None, :]
    logits = tl.full([KIND.block_q, N], 0.0 if KIND.has_weights else float("-inf"), tl.float32)
    # at least once: a selection has a head
    for first_head in range(0, KIND.num_heads, KIND.block_h):
        is_head = first_head + in_turn < KIND.num_heads
        head = selection * KIND.num_heads + first_head + in_turn
        loaded = owned[:, None] & is_head
        offset = (row[:, None] * stride_q_row + head * stride_q_head) * KIND.q_unit
        q = tl.load(q_ptr + offset[:, :, None] + dim, mask=loaded[:, :, None] & (dim < KIND.head_size), other=0.0)
        q = tl.reshape(decode(q, FORMAT, OPERAND, KIND.has_integer_bfloat16), [ROWS, KIND.block_d])
        # ieee: the default is TF32 on NVIDIA and XF32 on gfx942, which is no float32 arithmetic
        products = tl.dot(q, tl.trans(keys.numbers), input_precision="ieee")
        products = tl.reshape(products, [KIND.block_q, KIND.block_h, N])
        if KIND.has_weights:
            weight = tl.load(weights_ptr + row[:, None] * stride_weights_row + head, mask=loaded, other=0.0)
            logits += tl.sum(tl.maximum(products, 0.0) * weight[:, :, None], 1)
        else:
            logits = tl.maximum(logits, tl.max(tl.where(is_head[:, :, None], products, float("-inf")), 1))
    # a scale is positive: it may follow the maximum
    return logits * keys.scale[None, :]
