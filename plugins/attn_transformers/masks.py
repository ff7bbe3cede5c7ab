"""Reads requests and rules from a mask of transformers.

The mask [B, Q, K] says which keys a query sees, for any rule of the model: causality, windows, chunks, images, padding, static
caches, packed sequences. `read` proposes readings of a mask, from the one with most rules to one request per query, and takes
the first that shows the mask. So no wrong reading is used, and the choice of a reading only decides which rules kernels get.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from attn_contract import ContractError

from attn_transformers.reading import Reading, Request

Edge = tuple[int, int, int]
"""The position of a query, and those of the first and the last key that it sees."""


def read(
    seen: torch.Tensor, *, is_causal: bool, sliding_window: int | None = None, packed: tuple[list[int], list[int]] | None = None
) -> Reading:
    """The first reading that shows the mask. A query that sees no key belongs to no request.

    Args:
        seen: [B, Q, K] bool, on the CPU.
        is_causal: True if the layer calls itself causal. It decides which of two readings with the same mask comes first.
        sliding_window: W of the layer. The window (W - 1, W - 1) comes first where it shows the mask.
        packed: the first query and the first key of each request in a batch of one row, and the ends of the last request.

    Raises:
        ContractError: the mask does not show the requests of `packed`.
    """
    proposals = _readings(seen, is_causal, sliding_window) if packed is None else _packed(seen, packed, sliding_window)
    for reading in proposals:
        if reading.shows(seen):
            return reading
    assert packed is not None, "a request for each query shows any mask"
    raise ContractError("cu_seq_lens_q", str(packed[0]), "the requests that the attention mask shows")


def _readings(seen: torch.Tensor, is_causal: bool, sliding_window: int | None) -> Iterator[Reading]:
    """Proposals, which may be wrong; the last one is right for any mask."""
    if is_causal:
        yield from _in_window(_whole(seen, from_start=True), sliding_window)
    whole = _whole(seen)
    for causal in (is_causal, not is_causal):
        yield from _under_rules(whole, causal, seen, sliding_window)
    yield from _under_rules(_in_runs(seen, is_causal), is_causal, seen, sliding_window)
    yield Reading([Request(b, [i], _indices(seen[b, i])) for b, i in seen.any(2).nonzero().tolist()])


def _packed(seen: torch.Tensor, packed: tuple[list[int], list[int]], sliding_window: int | None) -> Iterator[Reading]:
    """Proposals for requests whose queries and keys are given."""
    (rows, num_queries, num_keys), (query_starts, key_starts) = seen.shape, packed
    if rows != 1 or not len(query_starts) == len(key_starts) > 0:
        return
    if query_starts[-1] > num_queries or key_starts[-1] > num_keys:
        return
    spans = zip(itertools.pairwise(query_starts), itertools.pairwise(key_starts), strict=True)
    given = [(list(range(*queries)), list(range(*keys))) for queries, keys in spans]
    requests = [Request(0, queries, keys) for queries, keys in given if queries and keys]
    for causal in (True, False):
        yield from _under_rules(requests, causal, seen, sliding_window)


def _whole(seen: torch.Tensor, *, from_start: bool = False) -> list[Request]:
    """One request for each row: its queries that see a key, and its keys that a query sees.

    Args:
        from_start: True if the keys before the first seen one are kept, because a window may hide them.
    """
    requests = []
    for b, rows in enumerate(seen):
        queries, keys = _indices(rows.any(1)), _indices(rows.any(0))
        if queries:
            requests.append(Request(b, queries, [*range(keys[0]), *keys] if from_start else keys))
    return requests


def _in_runs(seen: torch.Tensor, is_causal: bool) -> list[Request]:
    """Requests of queries that continue each other: the last key of each is the next one after that of the query before.

    So a packed sequence is a request, and so is each query of the padding after a sequence. In a layer that is not causal,
    queries that see the same keys are a request.
    """
    runs: list[tuple[int, list[int]]] = []
    for b, rows in enumerate(seen):
        place, previous = rows.any(0).cumsum(0) - 1, range(0)  # among the keys that are seen
        for i in _indices(rows.any(1)):
            keys = place[rows[i]]
            first, last = int(keys[0]), int(keys[-1])
            goes_on = first < previous.stop == last if is_causal else torch.equal(rows[i], rows[i - 1])
            if previous and goes_on:
                runs[-1][1].append(i)
            else:
                runs.append((b, [i]))
            previous = range(first, last + 1)
    return [Request(b, run, _indices(seen[b][run].any(0))) for b, run in runs]


def _in_window(requests: list[Request], sliding_window: int | None) -> Iterator[Reading]:
    if sliding_window is not None and sliding_window > 0:
        yield Reading(requests, True, {"window": (sliding_window - 1, sliding_window - 1)})


def _under_rules(requests: list[Request], causal: bool, seen: torch.Tensor, sliding_window: int | None) -> Iterator[Reading]:
    """The requests in the given window, without a rule, and under the rules that the edges of the mask suggest."""
    if causal:
        yield from _in_window(requests, sliding_window)
    yield Reading(requests, causal)
    edges = [_edges(request, seen) for request in requests]
    left = max((p - first for found in edges for p, first, _ in found), default=-1)
    right = max((last - p for found in edges for p, _, last in found), default=-1)
    if left >= 0 and (causal or right >= 0):
        yield Reading(requests, causal, {"window": (left, left if causal else right)})
    if causal:
        yield from _in_chunks(requests, edges)
    if causal and right > 0 and all(request.positions.start >= 0 for request in requests):
        yield from _with_images(requests, edges, left)


def _in_chunks(requests: list[Request], edges: list[list[Edge]]) -> Iterator[Reading]:
    """The requests in chunks as long as the longest stretch of positions whose queries begin with the same key."""
    chunk = 0
    for found in edges:
        starts = sorted({first for _, first, _ in found})
        chunk = max(chunk, *(end - start for start, end in itertools.pairwise([*starts, found[-1][0] + 1])))
    if chunk > 0:
        yield Reading(requests, True, {"chunked_local": chunk})


def _with_images(requests: list[Request], edges: list[list[Edge]], left: int) -> Iterator[Reading]:
    """The requests with bidirectional ranges: in all layers, then where a window clamps them, then where they open a window."""
    imaged = [dataclasses.replace(request, ranges=_ranges(found)) for request, found in zip(requests, edges, strict=True)]
    yield Reading(imaged, True)
    yield Reading(imaged, True, {"window": (left, left), "ranges_clamped": True})
    outside = [
        p - first
        for request, found in zip(imaged, edges, strict=True)
        for p, first, _ in found
        if not any(a <= p <= b for a, b in request.ranges)
    ]
    left = max(outside, default=0)
    yield Reading(imaged, True, {"window": (left, left)})


def _edges(request: Request, seen: torch.Tensor) -> list[Edge]:
    rows = seen[request.row][request.queries][:, request.keys]
    last = rows.shape[1] - 1 - rows.flip(1).int().argmax(1)
    return list(zip(request.positions, rows.int().argmax(1).tolist(), last.tolist(), strict=True))


def _ranges(edges: Sequence[Edge]) -> tuple[tuple[int, int], ...]:
    """A range for each stretch of queries that see the same last key, beyond their own."""
    stretches = [(next(stretch)[0], last) for last, stretch in itertools.groupby(edges, key=lambda edge: edge[2])]
    return tuple((first, last) for first, last in stretches if first < last)


def _indices(flags: torch.Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()
