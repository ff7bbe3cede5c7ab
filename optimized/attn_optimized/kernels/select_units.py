"""Selecting the units of the greatest logits, exactly: a radix select, by one program for each row.

Float32 numbers become integers of the same order. Eight rounds find the code of the last unit that is selected, 4 bits each,
from the highest: a round counts, by digit, the units whose code begins with the digits found so far. No unit is moved and no
number is rounded, so the result depends only on the logits. If units tie for the last places, the first ones are selected.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import compiled_once

_DIGITS = tl.constexpr(16)
_BITS = tl.constexpr(4)
_TOGETHER = tl.constexpr(4)
"""The units that a thread handles in one iteration. It counts them in one number, 4 bits for each digit."""


@dataclass(frozen=True, kw_only=True)
class SelectKind:
    """The constants that the kernel is compiled for: its one `tl.constexpr`."""

    selection_unit: int
    key_unit: int
    """The number of tokens in a unit, and of those that share an index key."""
    block: int
    """The number of units in one iteration, less than 2^15."""
    block_requests: int
    """The number of requests in one iteration of the search for a row's request."""


@compiled_once(aligned=())
def select_units_kernel(
    # written: [HS, T, top_k], and one more entry for the open unit if there is one
    selected_ptr,
    # read: [HS, T, units], [R + 1], [R]
    logits_ptr, query_start_loc_ptr, seq_lens_ptr,
    num_requests, num_units, top_k, first_units, last_units,
    # in elements
    stride_selected_selection, stride_selected_row, stride_logits_selection, stride_logits_row,
    KIND: tl.constexpr,
):  # fmt: skip
    """Make one row of one selection. Grid: (T, HS). A row that belongs to no request is not written."""
    # int64 from here on: rows get multiplied by strides
    row, selection = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    position, is_owned = position_of_row(row, query_start_loc_ptr, seq_lens_ptr, num_requests, KIND)
    if is_owned == 0:
        return
    seen_tokens = (position + 1) // KIND.key_unit * KIND.key_unit  # int32: at most position + 1
    # if values are not checked, a length may reach beyond the logits
    n = tl.minimum((seen_tokens + KIND.selection_unit - 1) // KIND.selection_unit, num_units)
    row_ptr = logits_ptr + selection * stride_logits_selection + row * stride_logits_row
    threshold, ties = tl.full((), 0, tl.uint32), top_k
    if n > top_k:
        threshold, ties = last_selected(row_ptr, n, top_k, first_units, last_units, KIND)
    to_ptr = selected_ptr + selection * stride_selected_selection + row * stride_selected_row
    # among the units of earlier iterations: the number above the threshold, and the number that ties with it
    num_above, num_ties = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for first in range(0, n, KIND.block):
        unit = first + tl.arange(0, KIND.block)
        code = codes_of(row_ptr, unit, n, first_units, last_units)
        is_above, is_tie = (unit < n) & (code > threshold), (unit < n) & (code == threshold)
        # one sum holds both counts, because an iteration has less than 2^15 units
        own = is_above.to(tl.int32) + (is_tie.to(tl.int32) << 16)
        before = tl.cumsum(own, 0) - own
        above_before, ties_before = num_above + (before & 0xFFFF), num_ties + (before >> 16)
        chosen = is_above | (is_tie & (ties_before < ties))
        tl.store(to_ptr + above_before + tl.minimum(ties_before, ties), unit, mask=chosen)
        found = tl.sum(own, 0)
        num_above += found & 0xFFFF
        num_ties += found >> 16
    count = num_above + tl.minimum(num_ties, ties)
    for first in range(count, top_k, KIND.block):
        entry = first + tl.arange(0, KIND.block)
        tl.store(to_ptr + entry, tl.full([KIND.block], -1, tl.int32), mask=entry < top_k)
    if KIND.key_unit > 1:
        is_open = (position >= 0) & ((position + 1) % KIND.selection_unit != 0)
        tl.store(to_ptr + top_k, tl.where(is_open, position // KIND.selection_unit, -1).to(tl.int32))


@triton.jit
def position_of_row(row, query_start_loc_ptr, seq_lens_ptr, num_requests, KIND: tl.constexpr):
    """The position of a row's query, int32, -1 if it stands before the sequence; and whether the row belongs to a request."""
    request = tl.full((), 0, tl.int32)
    for first in range(0, num_requests, KIND.block_requests):
        candidate = first + tl.arange(0, KIND.block_requests)
        end = tl.load(query_start_loc_ptr + 1 + candidate, mask=candidate < num_requests, other=2**31 - 1)
        request += tl.sum((end <= row).to(tl.int32), 0)
    is_owned = request < num_requests
    end_row = tl.load(query_start_loc_ptr + 1 + request, mask=is_owned, other=0)
    position = tl.load(seq_lens_ptr + request, mask=is_owned, other=0) - (end_row - row.to(tl.int32))
    return tl.maximum(position, -1), is_owned


@triton.jit
def last_selected(row_ptr, n, top_k, first_units, last_units, KIND: tl.constexpr):
    """The code of the top_k-th greatest of n units, more than top_k, and how many units of that code are selected."""
    digit = tl.arange(0, _DIGITS)
    known, mask = tl.full((), 0, tl.uint32), tl.full((), 0, tl.uint32)
    missing = top_k
    # at least once: there are 32 bits
    for bits in range(0, 32, _BITS):
        shift = 32 - _BITS - bits
        # [digits, threads], so that no number leaves its thread in the loop
        found = tl.full([_DIGITS, KIND.block // _TOGETHER], 0, tl.int32)
        # at least once: there are more than top_k units
        for first in range(0, n, KIND.block):
            unit = first + tl.arange(0, KIND.block)
            code = codes_of(row_ptr, unit, n, first_units, last_units)
            candidate = (unit < n) & ((code & mask) == known)
            own_digit = (code >> shift) & (_DIGITS - 1)
            of_digits = candidate.to(tl.int64) << (own_digit * _BITS).to(tl.int64)  # int32: bits of a number
            together = tl.sum(tl.reshape(of_digits, [_TOGETHER, KIND.block // _TOGETHER]), 0)
            first_bit = (digit * _BITS).to(tl.int64)[:, None]  # int32: bits of a number
            found += ((together[None, :] >> first_bit) & (_DIGITS - 1)).to(tl.int32)
        counts = tl.sum(found, 1)
        # the number of units with each digit or a greater one: the wanted digit is the greatest with at least `missing` units
        at_least = tl.sum(tl.where(digit[None, :] >= digit[:, None], counts[None, :], 0), 1)
        chosen = tl.sum((at_least >= missing).to(tl.int32), 0) - 1
        missing -= tl.sum(tl.where(digit > chosen, counts, 0), 0)
        known = known | (chosen.to(tl.uint32) << shift)
        mask = mask | (tl.full((), _DIGITS - 1, tl.uint32) << shift)
    return known, missing


@triton.jit
def codes_of(row_ptr, unit, n, first_units, last_units):
    """The code of each unit's logit, uint32 in the order of the logits. Units that are always selected get the greatest, and
    NaN the least."""
    logit = tl.load(row_ptr + unit, mask=unit < n, other=0.0)
    # -0.0 becomes 0.0, which it ties with
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    # negative numbers get the opposite order, and all of them come before the positive ones
    code = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    code = tl.where(logit == logit, code, 0)
    forced = (unit < first_units) | (unit >= n - last_units)
    return tl.where(forced, 0xFFFFFFFF, code)
