"""A mask of transformers, read as requests and rules of the contract, and the proof of the reading.

transformers says which keys a query sees by a mask [B, Q, K], whatever the model's rule was: causality, windows, chunks, images,
padding, static caches, packed sequences. `read` proposes readings of a mask, from the most telling one to one request per query,
and takes the first one whose visibility by the reference (`attn_reference.visible`) is the mask, element by element. So no reading
can be wrong, and none is needed for the right output: a reading only says by which rules the output is computed.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer, Layout

LAYOUT = Layout.BLOCKS_FIRST_NHD
"""Of the caches that calls are made with. Each block has one slot, so that any keys in any order are a request's."""


@dataclass(frozen=True)
class Request:
    """Queries of one row of transformers' batch, and the keys that they see."""

    row: int
    """of transformers' batch"""
    queries: list[int]
    """q_len indices of the mask's queries"""
    keys: list[int]
    """indices of the mask's keys; with `lead` in front, the keys of the request in their order"""
    causal: bool = False
    lead: int = 0
    """how many keys that nobody sees stand in front, to put the others at their places in their chunks"""
    ranges: tuple[tuple[int, int], ...] = ()
    """bidirectional ranges of positions"""

    @property
    def seq_len(self) -> int:
        return self.lead + len(self.keys)

    @property
    def positions(self) -> range:
        """Of the queries: the last ones of the sequence."""
        return range(self.seq_len - len(self.queries), self.seq_len)


@dataclass(frozen=True)
class Reading:
    """A mask as requests with the rules of their layer.

    Args:
        rules: fields of Layer.
    """

    requests: list[Request]
    rules: dict[str, Any] = field(default_factory=dict)

    @property
    def attn_type(self) -> AttentionType:
        """DECODER if a request is causal; else ENCODER_ONLY if the queries are the keys; else ENCODER_DECODER, which has no rules."""
        if any(request.causal for request in self.requests):
            return AttentionType.DECODER
        if all(request.queries == request.keys for request in self.requests):
            return AttentionType.ENCODER_ONLY
        return AttentionType.DECODER if self.rules else AttentionType.ENCODER_DECODER

    def batch(self, num_keys: int, num_rows: int, device: torch.device | str = "cpu") -> Batch:
        """The contract's Batch. Key k of row b is block `b * num_keys + k`, and block `num_rows * num_keys` is nobody's."""
        q_lens = [len(request.queries) for request in self.requests]
        seq_lens = [request.seq_len for request in self.requests]
        flags = {request.causal for request in self.requests}
        table = torch.zeros(len(self.requests), max(seq_lens, default=0), dtype=torch.int32)
        for entries, request in zip(table, self.requests, strict=True):
            first = request.row * num_keys
            blocks = [num_rows * num_keys] * request.lead + [first + key for key in request.keys]
            entries[: len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        return Batch(
            query_start_loc=torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            max_query_len=max(q_lens, default=0),
            max_seq_len=max(seq_lens, default=0),
            num_actual_tokens=sum(q_lens),
            causal=flags == {True}
            if len(flags) < 2
            else torch.tensor([request.causal for request in self.requests], device=device),
            block_table=table.to(device) if self.attn_type.reads_cache else None,
            bidirectional_ranges=self._ranges(device),
        )

    def _ranges(self, device: torch.device | str) -> torch.Tensor | None:
        most = max((len(request.ranges) for request in self.requests), default=0)
        if most == 0:
            return None
        filled = [[*request.ranges, *[(0, -1)] * (most - len(request.ranges))] for request in self.requests]
        return torch.tensor(filled, dtype=torch.int32, device=device)

    def shows(self, seen: torch.Tensor) -> bool:
        """Whether the reference sees by this reading what the mask [B, Q, K] says, and nothing else."""
        layer = Layer(
            num_heads=1,
            num_kv_heads=1,
            head_size=1,
            scale=1.0,
            attn_type=self.attn_type,
            layout=LAYOUT if self.attn_type.reads_cache else None,
            **self.rules,
        )
        num_rows, _, num_keys = seen.shape
        batch, shown = self.batch(num_keys, num_rows), torch.zeros_like(seen)
        for r, request in enumerate(self.requests):
            p, j = torch.tensor(request.positions), torch.arange(request.seq_len)
            visible = attn_reference.visible(p, j, layer, batch, r)
            if visible[:, : request.lead].any():
                return False
            at = torch.tensor(request.queries)[:, None], torch.tensor(request.keys)[None, :]
            shown[request.row][at] = visible[:, request.lead :]
        return torch.equal(shown, seen)


def read(seen: torch.Tensor, *, is_causal: bool, sliding_window: int | None = None) -> Reading:
    """The first reading that shows the mask. A query that sees no key belongs to no request.

    Args:
        seen: [B, Q, K] bool, on the CPU.
        is_causal: whether the layer calls itself causal: which of two readings that show the same comes first.
        sliding_window: W of the layer. The window (W - 1, W - 1) comes first where it shows the mask.
    """
    for reading in _readings(seen, is_causal, sliding_window):
        if reading.shows(seen):
            return reading
    raise AssertionError("a request for each query shows any mask")


def _readings(seen: torch.Tensor, is_causal: bool, sliding_window: int | None) -> Iterator[Reading]:
    """Proposals, right or wrong; the last one is right for any mask."""
    declared = {"window": (sliding_window - 1, sliding_window - 1)} if sliding_window is not None and sliding_window > 0 else None
    if declared and is_causal:
        yield Reading(_whole(seen, causal=True, from_start=True), declared)
    for causal in (is_causal, not is_causal):
        requests = _whole(seen, causal=causal)
        if declared and causal:
            yield Reading(requests, declared)
        yield Reading(requests)
        yield from _with_rules(requests, seen)
    requests = _in_runs(seen, is_causal=is_causal)
    if declared and is_causal:
        yield Reading(requests, declared)
    yield Reading(requests)
    yield from _with_rules(requests, seen)
    yield Reading([Request(b, [i], _indices(seen[b, i])) for b, i in seen.any(2).nonzero().tolist()])


def _whole(seen: torch.Tensor, *, causal: bool, from_start: bool = False) -> list[Request]:
    """One request for each row, of the queries that see a key and of the keys that a query sees.

    Args:
        from_start: whether the keys before the first one that is seen are kept: a window may be what hides them.
    """
    requests = []
    for b, rows in enumerate(seen):
        queries, keys = _indices(rows.any(1)), _indices(rows.any(0))
        if queries:
            requests.append(Request(b, queries, [*range(keys[0]), *keys] if from_start else keys, causal))
    return requests


def _in_runs(seen: torch.Tensor, *, is_causal: bool) -> list[Request]:
    """Requests of queries that continue each other: the last key of each is the next one after that of the query before.

    So a packed sequence is a request, and so is each query of the padding behind a sequence. In a layer that is not causal,
    queries that see the same keys are a request.
    """
    requests = []
    for b, rows in enumerate(seen):
        place = rows.any(0).cumsum(0) - 1  # among the keys that are seen
        run, previous = [], range(0)
        for i in _indices(rows.any(1)):
            keys = place[rows[i]]
            first, last = int(keys[0]), int(keys[-1])
            goes_on = first < previous.stop == last if is_causal else torch.equal(rows[i], rows[i - 1])
            if run and not goes_on:
                requests.append(_run(b, rows, run, is_causal))
                run = []
            run.append(i)
            previous = range(first, last + 1)
        if run:
            requests.append(_run(b, rows, run, is_causal))
    return requests


def _run(b: int, rows: torch.Tensor, run: list[int], is_causal: bool) -> Request:
    return Request(b, run, _indices(rows[run].any(0)), is_causal)


def _with_rules(requests: list[Request], seen: torch.Tensor) -> Iterator[Reading]:
    """The requests under the rules that the edges of the mask suggest."""
    edges = [_edges(request, seen) for request in requests]
    causal = all(request.causal for request in requests)
    left = max((p - first for found in edges for p, first, _ in found), default=-1)
    right = max((last - p for found in edges for p, _, last in found), default=-1)
    if left >= 0 and (causal or right >= 0):
        yield Reading(requests, {"window": (left, left if causal else right)})
    if not causal:
        return
    chunk = max((_chunk(found) for found in edges), default=0)
    if chunk > 0:
        leads = [(chunk - _first_chunk(found)) % chunk for found in edges]
        placed = [_moved(request, lead) for request, lead in zip(requests, leads, strict=True)]
        yield Reading(placed, {"chunked_local": chunk})
    if right > 0 and all(request.positions.start >= 0 for request in requests):
        imaged = [_with_ranges(request, found) for request, found in zip(requests, edges, strict=True)]
        yield Reading(imaged)
        yield Reading(imaged, {"window": (left, left), "ranges_clamped": True})
        outside = [p - first for request, found in zip(imaged, edges, strict=True) for p, first, _ in _outside(request, found)]
        yield Reading(imaged, {"window": (max(outside, default=0),) * 2})


Edge = tuple[int, int, int]
"""The position of a query, and those of the first and the last key that it sees."""


def _edges(request: Request, seen: torch.Tensor) -> list[Edge]:
    rows = seen[request.row][request.queries][:, request.keys]
    last = rows.shape[1] - 1 - rows.flip(1).int().argmax(1)
    return list(zip(request.positions, rows.int().argmax(1).tolist(), last.tolist(), strict=True))


def _chunk(edges: Sequence[Edge]) -> int:
    """The length of the longest stretch of positions whose queries begin with the same key."""
    starts = sorted({first for _, first, _ in edges})
    return max(end - start for start, end in itertools.pairwise([*starts, edges[-1][0] + 1]))


def _first_chunk(edges: Sequence[Edge]) -> int:
    """The length of the first stretch if another one follows, of which a sliding cache may have lost the beginning; else 0."""
    starts = sorted({first for _, first, _ in edges})
    return starts[1] - starts[0] if len(starts) > 1 else 0


def _moved(request: Request, lead: int) -> Request:
    return Request(request.row, request.queries, request.keys, request.causal, lead)


def _with_ranges(request: Request, edges: Sequence[Edge]) -> Request:
    """The request with a range for each stretch of queries that see the same last key, beyond their own."""
    ranges = []
    for last, stretch in itertools.groupby(edges, key=lambda edge: edge[2]):
        first, *_ = next(stretch)
        if first < last:
            ranges.append((first, last))
    return Request(request.row, request.queries, request.keys, request.causal, ranges=tuple(ranges))


def _outside(request: Request, edges: Sequence[Edge]) -> list[Edge]:
    return [edge for edge in edges if not any(first <= edge[0] <= last for first, last in request.ranges)]


def _indices(flags: torch.Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()
