"""The keys that a query selects: units of tokens, in any order, which its row of `selected` names.

With a selection, a tile of queries is one query, and its tiles of keys are tiles of places in the selection. Place n holds
token `n % selection_unit` of the unit in entry `n // selection_unit`. A negative entry names no unit: its places hold key -1.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Selection(NamedTuple):
    """The entries of a query: a pointer to the first one, and how many there are."""

    ptr: tl.tensor
    count: tl.tensor


@triton.jit
def selection_of(tile, args, KIND: tl.constexpr):
    """The entries of the tile's query for its KV head; the number 0 for each field if the kernel has no selection."""
    ptr, count = 0, 0
    if KIND.selection_unit > 0:
        row = tile.first_row + tile.first_query
        ptr = args.tensors.selected_ptr + tile.kv_head * args.strides.selected_head + row * args.strides.selected_row
        # if values are not checked, a length may reach beyond the rows
        count = tl.where((row >= 0) & (row < args.sizes.num_tokens), args.sizes.num_selected, 0)
    return Selection(ptr, count)


@triton.jit
def keys_at(place, selection, KIND: tl.constexpr):
    """[N]: the key at each place of the selection, -1 if there is none."""
    entry = place // KIND.selection_unit
    unit = tl.load(selection.ptr + entry, mask=(place >= 0) & (entry < selection.count), other=-1)
    key = unit * KIND.selection_unit + place % KIND.selection_unit  # int32: a key of its request
    return tl.where(unit < 0, -1, key)
