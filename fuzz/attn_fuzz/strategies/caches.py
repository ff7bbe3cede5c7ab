"""Allocations and block tables: permuted, with shared prefixes and unused blocks, seen by one layer or two."""

import random

import msgspec
from attn_contract import AttentionType
from attn_fuzz.case import Cache, Request
from attn_fuzz.targets import Support
from hypothesis import strategies as st


@st.composite
def caches(
    draw: st.DrawFn, support: Support, attn_type: AttentionType, requests: tuple[Request, ...], block_size: int, writes: bool
) -> tuple[Cache, tuple[Request, ...]]:
    """A cache that holds the requests, and the requests with their blocks."""
    layouts = st.sampled_from(support.layouts)
    needed = [-(-request.seq_len // block_size) for request in requests]
    unused = draw(st.sampled_from([0, 1, 2, 5]))
    num_blocks = max(1, sum(needed) + unused)
    ids = list(range(num_blocks))
    if draw(st.booleans()):
        random.Random(draw(st.integers(0, 2**16))).shuffle(ids)
    else:
        ids.reverse()
    shares = [0] * len(requests)
    if len(requests) > 1 and draw(st.booleans()):
        shares = [_shareable(requests[0], request, block_size, attn_type, writes) for request in requests]
    owned: list[Request] = []
    for r, request in enumerate(requests):
        shared = list(owned[0].blocks[: shares[r]]) if r else []
        own = [ids.pop() for _ in range(needed[r] - len(shared))]
        owned.append(msgspec.structs.replace(request, blocks=tuple(shared + own)))
    cache = Cache(
        layout=draw(layouts),
        block_size=block_size,
        num_blocks=num_blocks,
        planes=draw(st.booleans()),
        padding=draw(st.sampled_from([0, 0, 8, 24])),
        writer=draw(st.none() | layouts) if writes else None,
        neighbour=draw(st.none() | layouts),
    )
    return cache, tuple(owned)


def _shareable(first: Request, request: Request, block_size: int, attn_type: AttentionType, writes: bool) -> int:
    """Leading blocks of `first` that hold context of both, so that neither writes them in this step."""
    if attn_type is AttentionType.ENCODER_DECODER:
        return 0 if writes else min(first.seq_len, request.seq_len) // block_size
    contexts = (max(0, r.seq_len - r.query_len) for r in (first, request))
    return min(contexts) // block_size
