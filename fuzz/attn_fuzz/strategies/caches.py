"""Allocations and block tables: permuted, with shared prefixes and unused blocks, seen by one layer or two."""

import random
from typing import Any

import msgspec
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.contradictions import neighbours, writers
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st

replace = msgspec.structs.replace
# ids beyond 16 bits, if this many blocks need little memory
HIGH_ID, SMALL_PAGE = 1 << 15, 64


@st.composite
def caches(draw: st.DrawFn, support: Support, case: Case, layer_cache: dict[str, Any]) -> tuple[Cache, tuple[Request, ...]]:
    """A cache that holds a case's requests, and the requests with their blocks.

    Args:
        case: a case without a cache.
        layer_cache: the fields of the cache that were drawn with the layer.
    """
    requests, block_size = case.requests, layer_cache["block_size"]
    needed = [-(-request.seq_len // block_size) for request in requests]
    few = [0, 1, 2, 5] if block_size <= 128 else [0, 1]
    is_small = block_size * case.num_kv_heads * case.head_size <= SMALL_PAGE
    high = [HIGH_ID, HIGH_ID] if is_small else []
    # 2 is often drawn: a kernel may take a dimension of 2 for the dimension of K and V
    two = [2 - sum(needed)] * len(few) if sum(needed) <= 2 else []
    unused = draw(st.sampled_from(few + two + high))
    num_blocks = max(1, sum(needed) + unused)
    ids = list(range(HIGH_ID if unused == HIGH_ID else 0, num_blocks))
    if draw(st.booleans()):
        random.Random(draw(st.integers(0, 2**16))).shuffle(ids)
    else:
        ids.reverse()
    shares = [0] * len(requests)
    if len(requests) > 1 and draw(st.booleans()):
        shares = [_shareable(requests[0], request, block_size, case.attn_type, case.writes) for request in requests]
    owned: list[Request] = []
    for r, request in enumerate(requests):
        shared = list(owned[0].blocks[: shares[r]]) if r else []
        own = [ids.pop() for _ in range(needed[r] - len(shared))]
        owned.append(replace(request, blocks=tuple(shared + own)))
    cache = Cache(
        **layer_cache,
        num_blocks=num_blocks,
        planes="content" not in layer_cache["layout"].dims and draw(st.booleans()),
        padding=draw(st.sampled_from([0, 0, 8, 24])),
    )
    case = replace(case, cache=cache)
    if case.writes:
        cache = replace(cache, writer=draw(st.none() | _among(support, writers(case, cache))))
    if cache.holds_content_rows:
        num_layers = draw(st.sampled_from([1, 2, 3]))
        order = draw(st.sampled_from(PhysicalOrder))
        cache = replace(cache, order=order, num_layers=num_layers, layer=draw(st.integers(0, num_layers - 1)))
    return replace(cache, neighbour=draw(st.none() | _among(support, neighbours(case, cache)))), tuple(owned)


def _among(support: Support, layouts: tuple[Layout, ...]) -> st.SearchStrategy[Layout | None]:
    return st.sampled_from([layout for layout in layouts if layout in support.layouts] or [None])


def _shareable(first: Request, request: Request, block_size: int, attn_type: AttentionType, writes: bool) -> int:
    """Leading blocks of `first` that both requests can share: they hold context of both, so neither request writes them."""
    if attn_type is AttentionType.ENCODER_DECODER:
        return 0 if writes else min(first.seq_len, request.seq_len) // block_size
    contexts = (max(0, r.seq_len - r.query_len) for r in (first, request))
    return min(contexts) // block_size
