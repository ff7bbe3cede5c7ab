"""The specification side of the theorems, one function per rule: the formulas of visibility as terms of the solver.

This page is written by hand, once. The readable statement is `attn_reference.masks`; names are those of the contract.

    visible(p, j) = 0 <= j and last(j) < seq_len  and  (base(p, j)  or  in_range(p, j))  and  the bias does not hide j
    last(j)       = (j + 1) * key_unit - 1, the last token of the key; j where each token has its own
    base          = (not causal or last(j) <= p)  and  (in_window or j < sink_tokens)  and  in_chunk
    in_window     = (left < 0 or p - j <= left)  and  (right < 0 or j - p <= right)
    in_chunk      = chunked_local is None  or  p // chunked_local == j // chunked_local
    in_range      = a range holds p and j  and  (not ranges_clamped  or  left < 0  or  p - j <= left)
"""

from dataclasses import dataclass
from typing import Any

import z3
from attn_proofs.products import Products
from attn_proofs.values import memory

Term = Any
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Rules:
    """The rules of a layer and a request, and a query at position p and a key at position j."""

    p: Term
    j: Term
    seq_len: Term
    causal: Term
    left: Term
    right: Term
    sink_tokens: Term
    chunked_local: Term | None
    products: Products
    ranges_clamped: Term
    together: Term
    """whether one of the request's ranges holds both p and j: see `some_range_holds`"""
    hidden: Term
    """whether the bias between query and key is -inf"""
    key_unit: Term | None = None
    """tokens that share a key, if any do"""

    @property
    def last(self) -> Term:
        """The last token of the key."""
        return self.j if self.key_unit is None else self.products.times(self.j + 1, self.key_unit) - 1

    @property
    def is_key(self) -> Term:
        return z3.And(self.j >= 0, self.last < self.seq_len)

    @property
    def is_causal(self) -> Term:
        return z3.Or(z3.Not(self.causal), self.last <= self.p)

    @property
    def in_left(self) -> Term:
        return z3.Or(self.left < 0, self.p - self.j <= self.left)

    @property
    def in_right(self) -> Term:
        return z3.Or(self.right < 0, self.j - self.p <= self.right)

    @property
    def in_window(self) -> Term:
        return z3.And(self.in_left, self.in_right)

    @property
    def is_sink_token(self) -> Term:
        return self.j < self.sink_tokens

    def chunk_of(self, position: Term) -> Term:
        """position // chunked_local, a floor."""
        return self.products.quotient(position, self.chunked_local)

    @property
    def in_chunk(self) -> Term:
        return self.chunk_of(self.p) == self.chunk_of(self.j) if self.chunked_local is not None else z3.BoolVal(True)

    @property
    def in_range(self) -> Term:
        return z3.And(self.together, z3.Or(z3.Not(self.ranges_clamped), self.in_left))

    @property
    def base(self) -> Term:
        return z3.And(self.is_causal, z3.Or(self.in_window, self.is_sink_token), self.in_chunk)

    @property
    def visible(self) -> Term:
        return z3.And(self.is_key, z3.Or(self.base, self.in_range), z3.Not(self.hidden))


def holds_both(first: Term, last: Term, p: Term, j: Term) -> Term:
    """An inclusive range [first, last] holds query and key."""
    return z3.And(first <= p, p <= last, first <= j, j <= last)


def some_range_holds(products: Products, request: Term, num_ranges: Term, p: Term, j: Term, *counts: Term) -> Any:
    """True if one of the first `count` ranges of a request holds p and j, as a function of the count, with its definition.

    The definition is the recursion over `bidirectional_ranges` [R, num_ranges, 2], for the counts that a proof asks for:
    none of 0 ranges; one of `count + 1` if one of the first `count`, or the last of them.
    """
    function = z3.Function("some range holds", z3.IntSort(), z3.BoolSort())
    ranges = memory("bidirectional_ranges_ptr")

    def element(k: Term, end: int) -> Term:
        return ranges(products.times(request, num_ranges) * 2 + k * 2 + end)

    definition: list[Term] = [z3.Not(function(0))]
    for count in counts:
        definition.append(function(count + 1) == z3.Or(function(count), holds_both(element(count, 0), element(count, 1), p, j)))
    return function, definition


DIMS = {
    "BLOCKS_FIRST_NHD": ("block", "kv", "slot", "head", "dim"),
    "BLOCKS_FIRST_HND": ("block", "kv", "head", "slot", "dim"),
    "KV_FIRST_NHD": ("kv", "block", "slot", "head", "dim"),
    "KV_FIRST_HND": ("kv", "block", "head", "slot", "dim"),
    "X_PACKED": ("kv", "block", "page"),
    "SHUFFLED": ("kv", "block", "page"),
    "CONTENT_PACKED": ("block", "head", "slot", "content"),
    "CONTENT_PACKED_SCALED": ("block", "head", "slot", "content"),
}
"""The dimensions of a layout's view, outermost first (contract/attn_contract/layouts.py)."""


def element(
    products: Products, layout: str, strides: dict[str, Term], sizes: dict[str, int], *,
    kv: int, block: Term, slot: Term, head: Term, dim: Term,
) -> Term:  # fmt: skip
    """The index of the element (K or V, block, slot, KV head, dim) of a cache (`KVCacheView.element`, without the view's
    offset).

    Args:
        strides: the strides of the view's dimensions, by name; the last dimension is dense.
        sizes: head_size, block_size and x, the elements in 16 bytes.
    """
    x, head_size, block_size = sizes["x"], sizes["head_size"], sizes["block_size"]
    at = products.times(block, strides["block"])
    if "kv" in strides:
        at = at + kv * strides["kv"]
    if layout in ("X_PACKED", "SHUFFLED"):
        if kv == 0:
            return at + ((head * (head_size // x) + dim / x) * block_size + slot) * x + dim % x
        if layout == "X_PACKED":
            return at + (head * head_size + dim) * block_size + slot
        return at + ((head * (block_size // x) + slot / x) * head_size + dim) * x + slot % x
    at = at + products.times(slot, strides["slot"]) + products.times(head, strides["head"]) + dim
    if layout == "CONTENT_PACKED_SCALED":  # a scale of four bytes stands after each row of bytes
        return at + kv * (head_size + 4)
    return at + kv * head_size if layout == "CONTENT_PACKED" else at
