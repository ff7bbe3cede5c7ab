"""Allocations and block tables: permuted, with shared prefixes and unused blocks, seen by one layer or two."""

import random
from typing import Any

import msgspec
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.contradictions import neighbours, writers
from attn_fuzz.strategies.choices import pick
from attn_fuzz.strategies.tally import SMALL_PAGE
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st

replace = msgspec.structs.replace
# ids beyond 16 bits, if this many blocks need little memory
HIGH_ID = 1 << 15


@st.composite
def caches(draw: st.DrawFn, support: Support, case: Case, layer_cache: dict[str, Any]) -> tuple[Cache, tuple[Request, ...]]:
    """A cache that holds a case's requests, and the requests with their blocks.

    Args:
        case: a case without a cache.
        layer_cache: the fields of the cache that were drawn with the layer.
    """
    requests, block_size = case.requests, layer_cache["block_size"]
    needed = [-(-case.num_keys(request) // block_size) for request in requests]
    few = [0, 1, 2, 5] if block_size <= 128 else [0, 1]
    is_small = block_size * case.num_kv_heads * case.head_size <= SMALL_PAGE
    high = [HIGH_ID, HIGH_ID] if is_small else []
    # 2 is often drawn: a kernel may take a dimension of 2 for the dimension of K and V
    two = [2 - sum(needed)] * len(few) if sum(needed) <= 2 else []
    unused = pick(draw, few + two + high)
    num_blocks = max(1, sum(needed) + unused)
    ids = list(range(HIGH_ID if unused == HIGH_ID else 0, num_blocks))
    if pick(draw, (False, True)):
        random.Random(draw(st.integers(0, 2**16))).shuffle(ids)
    else:
        ids.reverse()
    shares = [0] * len(requests)
    if len(requests) > 1 and support.engine.shared_blocks and pick(draw, (False, True)):
        shares = [_shareable(requests[0], request, block_size, case) for request in requests]
    owned: list[Request] = []
    for r, request in enumerate(requests):
        shared = list(owned[0].blocks[: shares[r]]) if r else []
        own = [ids.pop() for _ in range(needed[r] - len(shared))]
        owned.append(replace(request, blocks=tuple(shared + own)))
    cache = Cache(**layer_cache, num_blocks=num_blocks)
    case = replace(case, cache=cache)
    if case.writes:
        cache = replace(cache, writer=_among(draw, support, cache, writers(case, cache)))
    if cache.holds_content_rows:
        num_layers = pick(draw, support.engine.num_layers)
        order = pick(draw, support.engine.orders)
        cache = replace(cache, order=order, num_layers=num_layers, layer=pick(draw, range(num_layers)))
    return replace(cache, neighbour=_among(draw, support, cache, neighbours(case, cache))), tuple(owned)


def _among(draw: st.DrawFn, support: Support, cache: Cache, layouts: tuple[Layout, ...]) -> Layout | None:
    """None, or one of the layouts that the support has."""
    allowed = support.layouts if support.engine.other_views else (cache.layout,)
    return pick(draw, (None, pick(draw, [layout for layout in layouts if layout in allowed] or [None])))


def _shareable(first: Request, request: Request, block_size: int, case: Case) -> int:
    """Leading blocks of `first` that both requests can share: they hold context of both, so neither request writes them."""
    if case.attn_type is AttentionType.ENCODER_DECODER:
        return 0 if case.writes else min(first.seq_len, request.seq_len) // block_size
    contexts = (max(0, r.seq_len - r.query_len) for r in (first, request))
    return min(contexts) // (case.key_unit or 1) // block_size
