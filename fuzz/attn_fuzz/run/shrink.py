"""From a failing case to one in which no single field can be lowered: greedy, on the case's own data.

Hypothesis shrinks the choices behind a case; this goes on where those are entangled, and guarantees the end: every case that
`lowered` offers passes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case, CaseError, Request, Rope, Values
from attn_fuzz.strategies.cases import VALUES
from attn_fuzz.targets.target import Support

replace = msgspec.structs.replace


def shrink(case: Case, support: Support, fails: Callable[[Case], bool], may_go_on: Callable[[], bool]) -> tuple[Case, bool]:
    """The smallest failing case found, and whether it is minimal or `may_go_on` ended the search."""
    known: set[Case] = {case}
    at = 0
    while True:
        for index, candidate in enumerate(lowered(case, support)):
            if index < at or candidate in known:
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


def lowered(case: Case, support: Support) -> Iterator[Case]:
    """Valid cases that are `case` with one field lowered, the largest steps first; none of a captured call, whose tensors are
    given."""
    if case.values.kind == "captured":
        return
    for candidate in _candidates(case, support):
        try:
            contradictions.check(candidate)
        except CaseError:
            continue
        if candidate != case and support.limit(candidate) is None and support.beyond(candidate) is None:
            yield candidate


# What a case is about, and what is lowered in steps below.
_KEPT = {"target", "attn_type", "num_kv_heads", "group_size", "head_size", "requests", "cache", "writes", "earlier", "values"}
SIMPLEST: dict[str, Any] = {
    field.name: field.default for field in reversed(msgspec.structs.fields(Case)) if field.name not in _KEPT
}
"""The value of each field of a case that asks for nothing: its default."""


LAYOUTS, ORDERS = tuple(Layout), tuple(PhysicalOrder)
CACHE_DTYPES = ("fp8_e4m3fn", "fp8_e4m3fnuz", "int8")
SCALES = ("tensor", "head", "token")


def _candidates(case: Case, support: Support) -> Iterator[Case]:
    yield replace(case, earlier=())
    for i in range(len(case.earlier)):
        yield replace(case, earlier=case.earlier[:i] + case.earlier[i + 1 :])
    for r in range(len(case.requests)):
        yield _with_requests(case, case.requests[:r] + case.requests[r + 1 :])
    yield replace(case, requests=tuple(replace(request, bidirectional_ranges=()) for request in case.requests))
    for name, value in SIMPLEST.items():
        yield replace(case, **{name: value})
    for kind in VALUES[: VALUES.index(case.values.kind)]:
        yield replace(case, values=Values(kind, case.values.seed))
    for seed in range(min(case.values.seed, 8)):  # a smaller seed is no simpler case: a few are enough
        yield replace(case, values=Values(case.values.kind, seed))
    for num_kv_heads in _smaller(case.num_kv_heads, 1):
        yield replace(case, num_kv_heads=num_kv_heads)
    for name, values in {"group_size": support.group_sizes, "head_size": support.head_sizes}.items():
        for value in sorted(value for value in values if value < getattr(case, name)):
            yield replace(case, **{name: value})
    if case.cache is not None:
        for cache in _smaller_caches(case.cache, support):
            yield _with_requests(replace(case, cache=cache), case.requests)
    for r, request in enumerate(case.requests):
        for smaller in _smaller_requests(request, case.attn_type):
            yield _with_requests(case, (*case.requests[:r], smaller, *case.requests[r + 1 :]))
    for side in (0, 1):
        for value in (-1, *_smaller(case.window[side], 0)):
            yield replace(case, window=(value, case.window[1]) if side == 0 else (case.window[0], value))
    for name in ("sink_tokens", "unowned_rows", "rows_past", "kv_rows_past", "table_padding", "slack"):
        for value in _smaller(getattr(case, name), 0):
            yield replace(case, **{name: value})
    for value in _smaller(case.chunked_local or 1, 1):
        yield replace(case, chunked_local=value)
    for name, simple in {"logits_soft_cap": 1.0, "qq_bias": "tree", "output_dtype": "fp8_e4m3fn"}.items():
        if getattr(case, name) is not None:
            yield replace(case, **{name: simple})
    if case.rope is not None:
        for rope in _smaller_ropes(case.rope):
            yield replace(case, rope=rope)
    for row in case.unwritten:
        yield replace(case, unwritten=tuple(other for other in case.unwritten if other != row))
    yield from _canonical_blocks(case)


def _smaller(value: int, least: int) -> Iterator[int]:
    """The least, then ever closer below the value."""
    step = value - least
    while step > 0:
        yield value - step
        step //= 2


def _smaller_caches(cache: Cache, support: Support) -> Iterator[Cache]:
    yield replace(cache, neighbour=None)
    yield replace(cache, writer=None)
    unquantized = Layout.CONTENT_PACKED if cache.layout.has_inline_scales else cache.layout
    yield replace(cache, layout=unquantized, dtype=None, scales=None)
    for layout in LAYOUTS[: LAYOUTS.index(cache.layout)]:
        yield replace(cache, layout=layout, scales="token" if cache.layout.has_inline_scales else cache.scales)
    for dtype in CACHE_DTYPES[: CACHE_DTYPES.index(cache.dtype)] if cache.dtype else ():
        yield replace(cache, dtype=dtype)
    for scales in SCALES[: SCALES.index(cache.scales)] if cache.scales else ():
        yield replace(cache, scales=scales)
    yield replace(cache, planes=False)
    yield replace(cache, num_layers=1, layer=0)
    for layer in _smaller(cache.layer, 0):
        yield replace(cache, layer=layer)
    for num_layers in _smaller(cache.num_layers, 1):
        yield replace(cache, num_layers=num_layers)
    for order in ORDERS[: ORDERS.index(cache.order)]:
        yield replace(cache, order=order)
    for padding in _smaller(cache.padding, 0):
        yield replace(cache, padding=padding)
    for block_size in sorted(size for size in support.block_sizes if size < cache.block_size):
        yield replace(cache, block_size=block_size)
    for num_blocks in _smaller(cache.num_blocks, 1):
        yield replace(cache, num_blocks=num_blocks)


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
            yield replace(request, seq_len=seq_len)
    yield from _smaller_ranges(request)
    if request.causal:
        yield replace(request, causal=False)


def _with_requests(case: Case, requests: tuple[Request, ...]) -> Case:
    """The case with these requests; their blocks and the rows that they do not write refitted."""
    if case.cache is not None:
        taken = {block for request in requests for block in request.blocks}
        free = iter([block for block in range(case.cache.num_blocks) if block not in taken])
        fitted = []
        for request in requests:
            used = -(-request.seq_len // case.cache.block_size)
            blocks = list(request.blocks[:used])
            while len(blocks) < used:
                blocks.append(next(free, case.cache.num_blocks))
            fitted.append(replace(request, blocks=tuple(blocks)))
        requests = tuple(fitted)
    tokens = sum(request.query_len for request in requests)
    flags = {request.causal for request in requests}
    return replace(
        case,
        requests=requests,
        unwritten=tuple(row for row in case.unwritten if row < tokens),
        per_request_causal=case.per_request_causal or len(flags) > 1,
    )


def _canonical_blocks(case: Case) -> Iterator[Case]:
    """Block tables that count up from 0, for all requests and then for each block."""
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
