"""Edges of cases: lengths and windows next to a multiple of a tile or of a block, where kernels count one too many or few."""

import functools
from collections.abc import Iterable

from attn_fuzz.cases.case import Case

TILES = (128, 64, 32, 16)
"""The sizes of tiles of rows and of keys in the launch tables of GPUs. The interpreter's are among them."""
MIN_BLOCK = 4
"""The smallest block with edges: a smaller one has an edge at almost every length."""
BLOCK_EDGES = {more: f"keys at block {more:+d}" for more in (-1, 0, 1)}
"""Names of the edges of the cache's blocks, by the difference of the keys from the edge."""


def edges(case: Case) -> list[str]:
    """The edges of blocks and tiles that a case has: of the lengths of requests that have a query, and of the window."""
    requests = [request for request in case.requests if request.query_len]
    keys = [case.num_keys(request) for request in requests]
    found = at_tiles("queries", (request.query_len for request in requests)) + at_tiles("keys", keys)
    if case.cache is not None and case.cache.block_size >= MIN_BLOCK:
        size = case.cache.block_size
        found += [BLOCK_EDGES[more] for more in dict.fromkeys(_next_to(length, size) for length in keys) if more is not None]
    return found + at_tiles("left edge", case.window[:1]) + at_tiles("right edge", case.window[1:])


def at_tiles(name: str, lengths: Iterable[int]) -> list[str]:
    """The edges of tiles that lengths lie next to, each once, such as "keys at tile 64 +1" of 65 and of 193 keys."""
    return [f"{name} at {edge}" for edge in dict.fromkeys(map(_tile_edge, lengths)) if edge is not None]


@functools.cache
def _tile_edge(length: int) -> str | None:
    """The largest tile that has a multiple next to a length, and the difference; None if no tile has."""
    for tile in TILES:
        more = _next_to(length, tile)
        if more is not None:
            return f"tile {tile} {more:+d}"
    return None


def _next_to(length: int, size: int) -> int | None:
    """-1, 0 or 1: the difference of a length from a multiple of a size other than 0; None if it is next to none."""
    more = (length + 1) % size - 1
    return more if more <= 1 and length + 1 >= size else None
