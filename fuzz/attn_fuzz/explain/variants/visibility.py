"""Mistakes in which keys a query sees: causality, windows, chunks, ranges."""

from typing import Any

import torch
from attn_fuzz.explain.part import Part
from attn_fuzz.explain.variants.variant import Change, Variant


def _edges(change: Any) -> Change:
    """A window whose edges `change(left, right)` gives."""

    def changed(part: Part) -> Part | None:
        edges = change(*part.layer.window)
        return None if edges == part.layer.window else part.ruled(layer={"window": edges})

    return changed


def _shorter_left(part: Part) -> Part | None:
    left = part.layer.window[0]
    return None if left < 0 else part.hiding((part.p - part.j > left - 1) & (part.j >= part.layer.sink_tokens))


def _shorter_right(part: Part) -> Part | None:
    right = part.layer.window[1]
    return None if right < 0 else part.hiding(part.j - part.p > right - 1)


def _from_query(place: Any) -> Change:
    """The window's left edge is that of the query at `place(part)`, for all queries."""

    def changed(part: Part) -> Part | None:
        left, right = part.layer.window
        if left < 0:
            return None
        free = part.ruled(layer={"window": (-1, right)})
        return free.hiding((part.j < place(part) - left) & (part.j >= part.layer.sink_tokens))

    return changed


def _minus_one_is_a_distance(side: int) -> Change:
    def changed(part: Part) -> Part | None:
        if part.layer.window[side] >= 0:
            return None
        return part.hiding((part.p - part.j if side == 0 else part.j - part.p) > -1)

    return changed


def _is_causal(part: Part) -> bool:
    causal = part.batch.causal
    return causal if isinstance(causal, bool) else bool(causal[part.index])


def _causal(edge: Any) -> Change:
    """A causal request whose query sees the keys up to `edge(part)`, [q, 1]."""

    def changed(part: Part) -> Part | None:
        if not _is_causal(part):
            return None
        return part.ruled(batch={"causal": False}).hiding(part.j > edge(part))

    return changed


def _made_causal(edge: Any) -> Change:
    def changed(part: Part) -> Part | None:
        return None if _is_causal(part) else part.hiding(part.j > edge(part))

    return changed


def _causal_lost(part: Part) -> Part | None:
    return part.ruled(batch={"causal": False}) if _is_causal(part) else None


def _causal_as_first(part: Part) -> Part | None:
    if isinstance(part.batch.causal, bool):
        return None
    return part.ruled(batch={"causal": bool(part.batch.causal[0])})


def _sink_tokens(change: Any) -> Change:
    def changed(part: Part) -> Part | None:
        count = part.layer.sink_tokens
        return part.ruled(layer={"sink_tokens": max(change(count), 0)}) if count else None

    return changed


def _placed(positions: Any) -> Change:
    """Queries at other positions, which `positions(part)` gives, [q]."""

    def changed(part: Part) -> Part | None:
        return part.having(query_positions=positions(part)).ruled()

    return changed


def _chunk_truncated(part: Part) -> Part | None:
    size = part.layer.chunked_local
    if size is None:
        return None
    same = torch.div(part.p, size, rounding_mode="trunc") == torch.div(part.j, size, rounding_mode="trunc")
    return part.ruled(layer={"chunked_local": None}).hiding(~same)


def _chunk(change: Any) -> Change:
    def changed(part: Part) -> Part | None:
        size = part.layer.chunked_local
        return part.ruled(layer={"chunked_local": change(size)}) if size is not None else None

    return changed


def _chunk_of(place: Any) -> Change:
    """All queries see the chunk of the query at `place(part)`."""

    def changed(part: Part) -> Part | None:
        size = part.layer.chunked_local
        if size is None:
            return None
        return part.ruled(layer={"chunked_local": None}).hiding(part.j // size != place(part) // size)

    return changed


def _ranges(change: Any) -> Change:
    """Other bidirectional ranges [R, n, 2]."""

    def changed(part: Part) -> Part | None:
        ranges = part.batch.bidirectional_ranges
        return None if ranges is None else part.ruled(batch={"bidirectional_ranges": change(ranges.clone())})

    return changed


def _ranges_end_early(ranges: torch.Tensor) -> torch.Tensor:
    ranges[..., 1] -= 1
    return ranges


def _ranges_end_late(ranges: torch.Tensor) -> torch.Tensor:
    ranges[..., 1] += 1
    return ranges


def _clamp(part: Part) -> Part | None:
    if part.batch.bidirectional_ranges is None or part.layer.window[0] < 0:
        return None
    return part.ruled(layer={"ranges_clamped": not part.layer.ranges_clamped})


def _last(part: Part) -> int:
    return part.seq_len - 1


VARIANTS = (
    Variant.of("window-lost", "the window is lost", _edges(lambda left, right: (-1, -1))),
    Variant.of(
        "window-left-1-more",
        "the window has one key more on the left than was asked",
        _edges(lambda left, right: (left + 1 if left >= 0 else left, right)),
    ),
    Variant.of("window-left-1-less", "the window has one key less on the left than was asked", _shorter_left),
    Variant.of(
        "window-right-1-more",
        "the window has one key more on the right than was asked",
        _edges(lambda left, right: (left, right + 1 if right >= 0 else right)),
    ),
    Variant.of("window-right-1-less", "the window has one key less on the right than was asked", _shorter_right),
    Variant.of("window-left-lost", "the window's left edge is lost", _edges(lambda left, right: (-1, right))),
    Variant.of("window-right-lost", "the window's right edge is lost", _edges(lambda left, right: (left, -1))),
    Variant.of("window-exchanged", "the window's edges are exchanged", _edges(lambda left, right: (right, left))),
    Variant.of("window-of-last-query", "every query's window begins where the last query's does", _from_query(_last)),
    Variant.of(
        "window-of-first-query",
        "every query's window begins where the first query's does",
        _from_query(lambda part: part.context_len),
    ),
    Variant.of("causal-lost", "the causal mask is lost", _causal_lost),
    Variant.of("causal-made", "a request that is not causal gets a causal mask", _made_causal(lambda part: part.p)),
    Variant.of(
        "causal-made-top-left",
        "a request that is not causal gets a causal mask, aligned with the first key",
        _made_causal(lambda part: part.p - part.context_len),
    ),
    Variant.of(
        "causal-top-left",
        "the causal mask is aligned with the first key (top left) and not with the last (bottom right)",
        _causal(lambda part: part.p - part.context_len),
    ),
    Variant.of("causal-1-less", "the causal mask hides the key of the query's own token", _causal(lambda part: part.p - 1)),
    Variant.of("causal-1-more", "the causal mask shows one key too many", _causal(lambda part: part.p + 1)),
    Variant.of("causal-of-first-request", "every request gets the causal flag of the first one", _causal_as_first),
    Variant.of("sink-tokens-lost", "the window hides the sink tokens", _sink_tokens(lambda count: 0)),
    Variant.of("sink-tokens-1-less", "one sink token is missing", _sink_tokens(lambda count: count - 1)),
    Variant.of("sink-tokens-1-more", "there is one sink token too many", _sink_tokens(lambda count: count + 1)),
    Variant.of("chunk-lost", "the chunks of positions (chunked_local) are lost", _chunk(lambda size: None)),
    Variant.of(
        "chunk-truncated",
        "the division that finds a chunk truncates toward 0, where positions below 0 need a floor",
        _chunk_truncated,
    ),
    Variant.of("chunk-1-more", "chunks are one position longer", _chunk(lambda size: size + 1)),
    Variant.of("chunk-of-first-query", "all queries see the first query's chunk", _chunk_of(lambda part: part.context_len)),
    Variant.of("chunk-of-last-query", "all queries see the last query's chunk", _chunk_of(_last)),
    Variant.of(
        "ranges-lost",
        "the bidirectional ranges are lost",
        _ranges(lambda ranges: torch.tensor([1, 0]).to(ranges).expand_as(ranges).contiguous()),
    ),
    Variant.of(
        "ranges-clamp", "the window clamps the bidirectional ranges where it must not, or does not where it must", _clamp
    ),
    Variant.of("ranges-end-early", "the last position of a bidirectional range is left out", _ranges(_ranges_end_early)),
    Variant.of("ranges-end-late", "a bidirectional range has one position more", _ranges(_ranges_end_late)),
    Variant.of(
        "ranges-of-another",
        "a request has the bidirectional ranges of the request before it",
        _ranges(lambda ranges: ranges.roll(1, 0).contiguous()),
    ),
    Variant.of(
        "window-left-unlimited", "a left edge of -1, which is none, is taken for a distance", _minus_one_is_a_distance(0)
    ),
    Variant.of(
        "positions-in-step",
        "a query's place in the step is taken for its position",
        _placed(lambda part: part.request.query_positions - part.context_len),
    ),
    Variant.of(
        "positions-behind-sequence",
        "queries are placed behind the sequence: its length is taken for that of the context",
        _placed(lambda part: part.request.query_positions + part.seq_len - part.context_len),
    ),
    Variant.of(
        "positions-1-more", "queries stand one position too far", _placed(lambda part: part.request.query_positions + 1)
    ),
    Variant.of(
        "positions-1-less", "queries stand one position before theirs", _placed(lambda part: part.request.query_positions - 1)
    ),
    Variant.of("nothing-seen", "no key is seen", lambda part: part.hiding(torch.ones_like(part.request.visible))),
    Variant.of(
        "window-right-unlimited", "a right edge of -1, which is none, is taken for a distance", _minus_one_is_a_distance(1)
    ),
)
