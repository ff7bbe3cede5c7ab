"""The aspects that a failing case needs in order to fail: each is taken away, and the case is run again.

Shrinking lowers fields, so a smallest case still has what is lowest: a dtype, a layout, a length. Other values of these fields
say whether the failure needs them.
"""

import itertools
from collections.abc import Callable, Iterator
from enum import EnumType
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from attn_contract import AttentionType
from attn_fuzz.cases.case import Cache, Case, Quantized, Request, Values
from attn_fuzz.cases.dimensions import fields_of_layers
from attn_fuzz.findings.aspects import OF_ATTENTION, aspects
from attn_fuzz.run.shrink import SIMPLEST, TYPES, Struct, is_valid, lowered, replace, with_requests
from attn_fuzz.strategies.cases import VALUES
from attn_fuzz.targets.engine import window_by_causality
from attn_fuzz.targets.support import Support

_KEPT = ("dtype", "lse", "values", *fields_of_layers())
"""Fields that cases of all kinds of attention have."""
LENGTHS = ((1, 0), (1, 1), (2, 0), (2, 2), (9, 9))
"""Other lengths of a request: its queries, and how many keys are added to its own. They make a decode a prefill, and so on."""


def needed(
    case: Case, support: Support, fails: Callable[[Case], bool], may_go_on: Callable[[], bool], *, is_minimal: bool
) -> frozenset[str]:
    """The aspects that a case needs in order to fail.

    An aspect is needed if changes take it away, and the case then passes or fails in another way. An aspect that no change
    takes away within the support says nothing, because nearly all cases have it. The kind of attention stays nevertheless,
    unless another kind fails in the same way: such a change takes too much away to show that anything is needed.

    Args:
        support: the target's. Only cases within the support are tried.
        fails: True if a case fails in the same way as the given one.
        may_go_on: asked before each call of `fails`. What is undecided when it ends the search is taken to be needed.
        is_minimal: True if no case of `shrink.lowered` fails in the same way.
    """
    undecided = aspects(case)
    shown: set[str] = set()

    def away(other: Case) -> frozenset[str]:
        return undecided - aspects(other)

    for other in _of_other_attention(case, support):
        if OF_ATTENTION & undecided and may_go_on() and fails(other):
            undecided -= away(other)
    for other in _others(case, support):
        if not away(other):
            continue
        if not may_go_on():
            return undecided
        if fails(other):
            undecided -= away(other)
        else:
            shown |= away(other)
    for lower in lowered(case, support):
        if not away(lower):
            continue
        if not is_minimal and not may_go_on():
            return undecided
        if not is_minimal and fails(lower):
            undecided -= away(lower)
        else:
            shown |= away(lower)
    return undecided & (shown | OF_ATTENTION)


def _of_other_attention(case: Case, support: Support) -> Iterator[Case]:
    """Valid cases of other kinds of attention that have the case's rules, and as many queries or keys."""
    rules = {name for name in case.rules if name != "non_causal"}
    queries, keys = [request.query_len for request in case.requests], [request.seq_len for request in case.requests]
    for attn_type, lengths in itertools.product(support.attn_types, (queries, keys)):
        if attn_type is case.attn_type or case.values.kind == "captured":
            continue
        other = _fitted(_with_attention(case, attn_type, lengths, support), support)
        if other is not None and rules <= other.rules.keys():
            yield other


def _with_attention(case: Case, attn_type: AttentionType, lengths: list[int], support: Support) -> Case:
    """A prefill of another kind of attention."""
    is_causal = support.causal and attn_type is AttentionType.DECODER
    requests = tuple(Request(query_len=length, seq_len=length, causal=is_causal) for length in lengths)
    kept = {name: getattr(case, name) for name in _KEPT}
    other = Case(target=case.target, attn_type=attn_type, requests=requests, **kept)
    if not attn_type.reads_cache:
        return other
    cache = case.cache or Cache(layout=support.layouts[0], block_size=support.block_sizes[0], num_blocks=1)
    return with_requests(replace(other, cache=_with_room(cache, other)), requests)


def _others(case: Case, support: Support) -> Iterator[Case]:
    """Valid cases that are the case with another value of one field, or with other lengths."""
    if case.values.kind == "captured":
        return
    found = (_fitted(other, support) for other in _changed(case, support))
    rules = {*case.rules, "non_causal"}  # another rule may bring another failure
    yield from dict.fromkeys(other for other in found if other is not None and other != case and other.rules.keys() <= rules)


def _fitted(case: Case, support: Support) -> Case | None:
    """The case, or the case with the window that an engine passes for its causality; None if neither is valid."""
    fitting = replace(case, window=window_by_causality(case.window[0], case)) if "window" in case.rules else case
    return next((each for each in (case, fitting) if is_valid(each, support)), None)


def _changed(case: Case, support: Support) -> Iterator[Case]:
    for kind in VALUES:
        yield replace(case, values=Values(kind, case.values.seed))
    if case.cache is not None:
        for cache in _other_caches(case.cache, support):
            yield with_requests(replace(case, cache=_with_room(cache, case)), case.requests)
    yield from _with_other_values(case, *SIMPLEST)
    if case.rope is not None:
        yield replace(case, rope=replace(case.rope, neox=not case.rope.neox))
    for size in support.head_sizes:
        yield replace(case, head_size=size)
    if case.attn_type is AttentionType.DECODER:
        yield with_requests(case, [replace(request, causal=not request.causal) for request in case.requests])
    with_room = case if case.cache is None else replace(case, cache=_with_room(case.cache, case))
    for (query_len, more), least in itertools.product(LENGTHS, (0, 1)):  # with the requests that have no query, or without
        grown = [_with_lengths(case, r, query_len, r.seq_len + more) if r.query_len >= least else r for r in case.requests]
        fresh = [_with_lengths(case, r, query_len, query_len) if r.query_len >= least else r for r in case.requests]
        yield with_requests(with_room, grown)
        yield with_requests(with_room, fresh)


def _with_lengths(case: Case, request: Request, query_len: int, seq_len: int) -> Request:
    return replace(request, query_len=query_len, seq_len=query_len if case.cache is None else seq_len)


def _with_room(cache: Cache, case: Case) -> Cache:
    """The cache with blocks for a few tokens more of each request."""
    tokens = sum(request.seq_len + max(more for _, more in LENGTHS) for request in case.requests)
    return replace(cache, num_blocks=cache.num_blocks + -(-tokens // cache.block_size) + len(case.requests))


def _with_other_values(struct: Struct, *names: str) -> Iterator[Struct]:
    for name in names:
        for value in _other_values(getattr(struct, name), TYPES[type(struct)][name]):
            yield replace(struct, **{name: value})


def _other_values(value: Any, declared: Any) -> Iterator[Any]:
    """Other values of a field, by its declared type: the opposite flag, other words of a Literal and members of an Enum."""
    if get_origin(declared) in (Union, UnionType):
        for one in get_args(declared):
            yield from _other_values(value, one)
    elif get_origin(declared) is Literal and value is not None:
        yield from (word for word in get_args(declared) if word != value)
    elif isinstance(declared, EnumType):
        yield from declared
    elif declared is bool:
        yield not value


def _other_caches(cache: Cache, support: Support) -> Iterator[Cache]:
    def scaled(dtype: str | None, scales: str | None, **fields: Any) -> Cache:
        holds_own = fields.get("layout", cache.layout).has_inline_scales
        return replace(cache, dtype=dtype, scales=None if dtype is None or holds_own else scales, **fields)

    for layout in support.layouts:
        for dtype in (cache.dtype, *support.cache_dtypes):
            yield scaled(dtype, cache.scales or "token", layout=layout)
    for dtype in get_args(Quantized):
        for scales in support.scales:
            yield scaled(dtype, scales)
    yield from _with_other_values(cache, "order", "planes")
    for block_size in support.block_sizes:
        yield replace(cache, block_size=block_size)
