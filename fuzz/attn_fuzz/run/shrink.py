"""Shrinks a failing case to a small one that fails in the same way: a greedy search that lowers one field after the other.

Hypothesis does not shrink: it would shrink the choices behind a case, which needs ten times as many calls of the target, and
most of these choices are entangled. The search ends at a case of which `lowered` offers no smaller one that fails in the same
way.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import EnumType
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.strategies.cases import VALUES
from attn_fuzz.targets.support import LatentSizes, Support

replace = msgspec.structs.replace
Struct = TypeVar("Struct", Case, Cache)
EARLIER = "earlier call"
"""The name of the part of a case that consists of its earlier calls."""


def shrink(case: Case, support: Support, fails: Callable[[Case], bool], may_go_on: Callable[[], bool]) -> tuple[Case, bool]:
    """The smallest case found that fails in the same way.

    A part that the given case needs stays: a smaller case that fails without this rule, or without earlier calls, fails for
    another reason.

    Args:
        support: the target's. Only cases within the support are tried.
        fails: True if a case fails in the same way as the given one.
        may_go_on: asked before each call of `fails`.

    Returns:
        The case, and whether it is minimal. It is not if `may_go_on` has ended the search.
    """
    case, needed = without_spare_parts(case, support, lambda candidate: may_go_on() and fails(candidate))
    if not may_go_on():
        return case, False
    known: set[Case] = {case}
    at = 0
    while True:
        for index, candidate in enumerate(lowered(case, support)):
            if index < at or candidate in known or not needed.issubset(_parts(candidate)):
                continue
            if not may_go_on():
                return case, False
            known.add(candidate)
            if fails(candidate):
                case, at = candidate, index
                break
        else:
            if at == 0:
                return case, True
            at = 0


def without_spare_parts(case: Case, support: Support, fails: Callable[[Case], bool]) -> tuple[Case, frozenset[str]]:
    """The case without the parts that it does not need in order to fail, and the parts that it needs.

    Parts are the earlier calls together, and each rule. They are taken away one after the other. A part whose removal makes the
    case invalid stays, and is not counted as needed.

    Args:
        support, fails: as `shrink`.
    """
    needed: set[str] = set()
    for part in _parts(case):
        candidate = replace(case, earlier=()) if part == EARLIER else _without_rule(case, part)
        if candidate == case or not is_valid(candidate, support):
            continue
        if fails(candidate):
            case = candidate
        else:
            needed.add(part)
    return case, frozenset(needed)


def _parts(case: Case) -> tuple[str, ...]:
    return (*((EARLIER,) if case.earlier else ()), *case.rules)


def lowered(case: Case, support: Support) -> Iterator[Case]:
    """Valid cases that are `case` with one field lowered, the largest steps first. A captured call has none: its tensors are
    given."""
    return (candidate for candidate in _candidates(case, support) if candidate != case and is_valid(candidate, support))


def is_valid(case: Case, support: Support) -> bool:
    """True if a case is a valid call, and within a support."""
    return contradiction(case) is None and support.not_drawn(case) is None and support.beyond(case) is None


# fields that say what a case is about, and fields that have steps of their own below
_KEPT = {"target", "attn_type", "num_kv_heads", "group_size", "head_size", "requests", "cache", "writes", "earlier", "values"}
SIMPLEST: dict[str, Any] = {
    field.name: field.default for field in reversed(msgspec.structs.fields(Case)) if field.name not in _KEPT
}
"""The default of each field of a case, which asks for nothing."""
TYPES = {struct: get_type_hints(struct, include_extras=True) for struct in (Case, Cache)}
"""The declared type of each field. It says which values are lower than another."""


def _candidates(case: Case, support: Support) -> Iterator[Case]:
    if case.values.kind == "captured":
        return
    yield replace(case, earlier=())
    for i in range(len(case.earlier)):
        yield replace(case, earlier=case.earlier[:i] + case.earlier[i + 1 :])
    for r in range(len(case.requests)):
        yield with_requests(case, case.requests[:r] + case.requests[r + 1 :])
    for name in ("bidirectional_ranges", "key_unit"):
        yield _without_rule(case, name)
    for name, value in SIMPLEST.items():
        yield replace(case, **{name: value})
    for kind in VALUES[: VALUES.index(case.values.kind)]:
        yield replace(case, values=Values(kind, case.values.seed))
    for seed in range(min(case.values.seed, 8)):  # a smaller seed is no simpler case: a few are enough
        yield replace(case, values=Values(case.values.kind, seed))
    for num_kv_heads in _smaller(case.num_kv_heads, 1):
        yield replace(case, num_kv_heads=num_kv_heads)
    sizes = {"group_size": support.group_sizes, "head_size": support.head_sizes}
    if case.has_latent_cache:
        sizes = {"group_size": support.latent.group_sizes}
        for latent, rotated in sorted(support.latent.widths):
            if latent <= case.v_head_size and latent + rotated <= case.head_size:
                yield replace(case, head_size=latent + rotated, head_size_v=latent)
    for name, values in sizes.items():
        for value in sorted(value for value in values if value < getattr(case, name)):
            yield replace(case, **{name: value})
    if case.cache is not None:
        for cache in _smaller_caches(case.cache, support.latent if case.has_latent_cache else support):
            yield with_requests(replace(case, cache=cache), case.requests)
    for r, request in enumerate(case.requests):
        for smaller in _smaller_requests(request, case.attn_type):
            yield with_requests(case, (*case.requests[:r], smaller, *case.requests[r + 1 :]))
    yield from _with_lower_values(case, *SIMPLEST)
    if case.rope is not None:
        for rope in _smaller_ropes(case.rope):
            yield replace(case, rope=rope)
    for row in case.unwritten:
        yield replace(case, unwritten=tuple(other for other in case.unwritten if other != row))
    yield from _canonical_blocks(case)


def _without_rule(case: Case, name: str) -> Case:
    """The case with a rule off. A rule without a field that turns it off stays. Without head_size_v a cache stores V apart."""
    if name == "head_size_v" and case.cache is not None and case.has_latent_cache:
        scales = "token" if case.cache.layout.has_inline_scales else case.cache.scales
        no_writers = {"slot_padding": 0, "writer": None, "neighbour": None}
        rows = replace(case.cache, layout=Layout.BLOCKS_FIRST_NHD, scales=scales, **no_writers)
        return replace(case, head_size_v=None, cache=rows)
    if name == "bidirectional_ranges":
        return replace(case, requests=tuple(replace(request, bidirectional_ranges=()) for request in case.requests))
    if name == "key_unit" and case.key_unit is not None:  # as many tokens as there were keys, for which there are blocks
        tokens = [max(r.query_len if r.context_len >= 0 else 0, case.num_keys(r)) for r in case.requests]
        requests = [replace(r, seq_len=count) for r, count in zip(case.requests, tokens, strict=True)]
        return with_requests(replace(case, key_unit=None), requests)
    return replace(case, **{name: SIMPLEST[name]}) if name in SIMPLEST else case


def _with_lower_values(struct: Struct, *names: str) -> Iterator[Struct]:
    for name in names:
        for value in lower_values(getattr(struct, name), TYPES[type(struct)][name]):
            yield replace(struct, **{name: value})


def lower_values(value: Any, declared: Any) -> Iterator[Any]:
    """Values of a field that are lower than its value.

    The field's declared type says what is lower: an integer that is closer to the least one, 1.0 for a float, an earlier word
    of a Literal or member of an Enum, and a tuple in which one element is lower. None and flags have no lower values: the
    default of every field is tried anyway.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        for one in arguments:
            yield from lower_values(value, one)
    elif origin is Annotated and isinstance(value, int):
        yield from _smaller(value, next(each.ge for each in arguments[1:] if each.ge is not None))
    elif origin is Literal and value in arguments:
        yield from arguments[: arguments.index(value)]
    elif origin is tuple and Ellipsis not in arguments:
        for i, (element, of_element) in enumerate(zip(value, arguments, strict=True)):
            for lower in lower_values(element, of_element):
                yield (*value[:i], lower, *value[i + 1 :])
    elif declared is float and value not in (None, 1.0):
        yield 1.0
    elif isinstance(declared, EnumType) and value is not None:
        yield from itertools.takewhile(lambda member: member is not value, declared)


def _smaller(value: int, least: int) -> Iterator[int]:
    """The least integer, and then integers ever closer below the value."""
    step = value - least
    while step > 0:
        yield value - step
        step //= 2


def _smaller_caches(cache: Cache, sizes: Support | LatentSizes) -> Iterator[Cache]:
    yield replace(cache, neighbour=None)
    yield replace(cache, writer=None)
    unscaled = Layout.LATENT if cache.layout.latent_format is not None else cache.layout
    unscaled = Layout.CONTENT_PACKED if cache.layout is Layout.CONTENT_PACKED_SCALED else unscaled
    yield replace(cache, layout=unscaled, dtype=None, scales=None)
    for layout in lower_values(cache.layout, Layout):
        apart = "tensor" if layout.has_latent_value else "token"
        yield replace(cache, layout=layout, scales=apart if cache.layout.has_inline_scales else cache.scales)
    yield from _with_lower_values(cache, "dtype", "scales")
    yield replace(cache, planes=False)
    yield replace(cache, num_layers=1, layer=0)
    yield from _with_lower_values(cache, "layer", "num_layers", "order", "padding", "slot_padding")
    for block_size in sorted(size for size in sizes.block_sizes if size < cache.block_size):
        yield replace(cache, block_size=block_size)
    yield from _with_lower_values(cache, "num_blocks")


def _smaller_ropes(rope: Rope) -> Iterator[Rope]:
    for name, value in {"all_rows": False, "narrow_cache": False, "neox": True}.items():
        yield replace(rope, **{name: value})
    for pairs in _smaller(rope.rotary_dim // 2, 1):
        yield replace(rope, rotary_dim=2 * pairs)


def _smaller_ranges(request: Request) -> Iterator[Request]:
    def with_ranges(*ranges: tuple[int, int]) -> Request:
        return replace(request, bidirectional_ranges=ranges)

    for i, (first, last) in enumerate(request.bidirectional_ranges):
        before, after = request.bidirectional_ranges[:i], request.bidirectional_ranges[i + 1 :]
        yield with_ranges(*before, *after)
        for lower in _smaller(first, 0) if first >= 0 else (0,):
            yield with_ranges(*before, (lower, last), *after)
        for lower in _smaller(last, first):
            yield with_ranges(*before, (first, lower), *after)


def _smaller_requests(request: Request, attn_type: AttentionType) -> Iterator[Request]:
    dense = attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
    for query_len in _smaller(request.query_len, 0):
        fewer = request.query_len - query_len
        if dense or attn_type is AttentionType.DECODER:
            yield replace(request, query_len=query_len, seq_len=max(0, request.seq_len - fewer))
        if not dense:
            yield replace(request, query_len=query_len)
    if not dense:
        for seq_len in _smaller(request.seq_len, 0):
            fewer = request.seq_len - seq_len
            # without the first keys: ranges keep their distances from the queries
            moved = tuple((first - fewer, last - fewer) for first, last in request.bidirectional_ranges)
            yield replace(request, seq_len=seq_len, bidirectional_ranges=moved)
            yield replace(request, seq_len=seq_len)
    yield from _smaller_ranges(request)
    if request.causal:
        yield replace(request, causal=False)


def with_requests(case: Case, requests: Sequence[Request]) -> Case:
    """The case with these requests. Their blocks, and the rows that they do not write, are fitted to their lengths."""
    if case.cache is not None:
        taken = {block for request in requests for block in request.blocks}
        free = iter([block for block in range(case.cache.num_blocks) if block not in taken])
        fitted = []
        for request in requests:
            used = -(-case.num_keys(request) // case.cache.block_size)
            blocks = list(request.blocks[:used])
            while len(blocks) < used:
                blocks.append(next(free, case.cache.num_blocks))
            fitted.append(replace(request, blocks=tuple(blocks)))
        requests = fitted
    tokens = sum(request.query_len for request in requests)
    flags = {request.causal for request in requests}
    return replace(
        case,
        requests=tuple(requests),
        unwritten=tuple(row for row in case.unwritten if row < tokens),
        per_request_causal=case.per_request_causal or len(flags) > 1,
    )


def _canonical_blocks(case: Case) -> Iterator[Case]:
    """Cases whose block tables count up from 0, and then cases in which a single block has a lower number."""
    if case.cache is None:
        return
    order = {block: i for i, block in enumerate(dict.fromkeys(block for r in case.requests for block in r.blocks))}
    renamed = tuple(replace(r, blocks=tuple(order[block] for block in r.blocks)) for r in case.requests)
    yield replace(case, requests=renamed, cache=replace(case.cache, num_blocks=max(1, len(order))))
    yield replace(case, requests=renamed)
    for r, request in enumerate(case.requests):
        for i, block in enumerate(request.blocks):
            for lower in _smaller(block, 0):
                blocks = (*request.blocks[:i], lower, *request.blocks[i + 1 :])
                changed = (*case.requests[:r], replace(request, blocks=blocks), *case.requests[r + 1 :])
                yield replace(case, requests=changed)
