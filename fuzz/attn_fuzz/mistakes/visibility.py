"""Mistakes in which keys a query sees: causality, windows, chunks, ranges, positions."""

from collections.abc import Callable
from typing import Any

import torch
from attn_fuzz.mistakes.keys import TILES
from attn_fuzz.mistakes.mistake import Change, about, lost, mistake, rule, without
from attn_fuzz.mistakes.part import Part


def _window(change: Callable[[int, int], tuple[int, int]]) -> Change:
    return rule("window", lambda edges, part: change(*edges))


def _one_less(side: int) -> Change:
    """The window's left (0) or right (1) edge hides its last key."""

    def keys(part: Part) -> torch.Tensor | None:
        edge, distance = part.layer.window[side], (part.p - part.j) * (1 - 2 * side)
        return None if edge < 0 else (distance == edge) & (part.j >= part.layer.sink_tokens)

    return without(keys)


def _left_edge_of(place: Callable[[Part], int]) -> Change:
    """All queries have the left edge of the window that the query at `place(part)` has."""

    def changed(part: Part) -> Part | None:
        left, right = part.layer.window
        free = part.ruled(layer={"window": (-1, right)})
        keys = (part.j < place(part) - left) & (part.j >= part.layer.sink_tokens)
        return None if left < 0 else without(lambda part: keys)(free)

    return changed


def _minus_one_is_a_distance(side: int) -> Change:
    def keys(part: Part) -> torch.Tensor | None:
        return None if part.layer.window[side] >= 0 else (part.p - part.j) * (1 - 2 * side) > -1

    return without(keys)


def _is_causal(part: Part) -> bool:
    causal = part.batch.causal
    return causal if isinstance(causal, bool) else bool(causal[part.index])


def _causal(last: Callable[[Part], Any]) -> Change:
    """A causal request whose queries see the keys up to `last(part)`, [q, 1]."""

    def changed(part: Part) -> Part | None:
        if not _is_causal(part):
            return None
        free = part.ruled(batch={"causal": False})
        return free.having(visible=free.request.visible & (part.j <= last(part)))

    return changed


def _end_of_tile(size: int) -> Change:
    """All queries of a tile see the keys up to the tile's last query."""

    def changed(part: Part) -> Part | None:
        first = part.context_len
        other = _causal(lambda part: first + (part.p - first) // size * size + size - 1)(part)
        return None if other is None or torch.equal(other.request.visible, part.request.visible) else other

    return changed


def _chunks(of_query: Callable[[Part, int], Any], of_key: Callable[[Part, int], Any]) -> Change:
    """Queries see the keys of the same chunk, which `of_query(part, size)` and `of_key(part, size)` find."""

    def changed(part: Part) -> Part | None:
        size = part.layer.chunked_local
        if size is None:
            return None
        free = part.ruled(layer={"chunked_local": None})
        return free.having(visible=free.request.visible & (of_query(part, size) == of_key(part, size)))

    return changed


def _truncated(positions: torch.Tensor, size: int) -> torch.Tensor:
    return torch.div(positions, size, rounding_mode="trunc")


def _chunk_of(place: Callable[[Part], int]) -> Change:
    return _chunks(lambda part, size: place(part) // size, lambda part, size: part.j // size)


def _one_position_shorter(ranges: torch.Tensor, part: Part) -> torch.Tensor:
    return ranges - torch.tensor([0, 1]).to(ranges)


def _clamp(part: Part) -> Part | None:
    has_both = part.batch.bidirectional_ranges is not None and part.layer.window[0] >= 0
    return part.ruled(layer={"ranges_clamped": not part.layer.ranges_clamped}) if has_both else None


def _placed(distance: Callable[[Part], int]) -> Change:
    """Queries stand further on, by `distance(part)`."""
    return lambda part: part.having(query_positions=part.request.query_positions + distance(part)).ruled()


def _incomplete(part: Part) -> Part | None:
    """A key that several tokens share is seen from the first of them on."""
    if part.layer.key_unit is None:
        return None
    more = part.longer(*part.gathered(num_keys=-(-part.seq_len // part.layer.key_unit)))
    return _placed(lambda part: part.layer.tokens_per_key - 1)(more)


def _first(part: Part) -> int:
    return part.context_len


def _last(part: Part) -> int:
    return part.seq_len - 1


MISTAKES = (
    *about(
        "window",
        mistake("the window is lost", lost("window")),
        mistake(
            "the window has one key more on the left than was asked", _window(lambda left, right: (left + (left >= 0), right))
        ),
        mistake("the window has one key less on the left than was asked", _one_less(0)),
        mistake(
            "the window has one key more on the right than was asked", _window(lambda left, right: (left, right + (right >= 0)))
        ),
        mistake("the window has one key less on the right than was asked", _one_less(1)),
        mistake("the window's left edge is lost", _window(lambda left, right: (-1, right))),
        mistake("the window's right edge is lost", _window(lambda left, right: (left, -1))),
        mistake("the window's edges are exchanged", _window(lambda left, right: (right, left))),
        mistake("every query's window begins where the last query's does", _left_edge_of(_last)),
        mistake("every query's window begins where the first query's does", _left_edge_of(_first)),
    ),
    *about(
        "window",
        mistake("a left edge of -1, which is none, is taken for a distance", _minus_one_is_a_distance(0)),
        mistake("a right edge of -1, which is none, is taken for a distance", _minus_one_is_a_distance(1)),
    ),
    *about(
        "causal",
        mistake("the causal mask is lost", _causal(lambda part: len(part.request.key))),
        mistake(
            "a request that is not causal gets a causal mask",
            lambda part: None if _is_causal(part) else without(lambda part: part.j > part.p)(part),
        ),
        mistake(
            "the causal mask is aligned with the first key (top left) and not with the last (bottom right)",
            _causal(lambda part: part.p - part.context_len),
        ),
        mistake("every query's causal mask ends where the first query's does", _causal(_first)),
        mistake("the causal mask hides the key of the query's own token", _causal(lambda part: part.p - 1)),
        mistake("the causal mask shows one key too many", _causal(lambda part: part.p + 1)),
        mistake("the causal mask of a tile of queries is that of its last query", *(_end_of_tile(size) for size in TILES)),
    ),
    *about(
        "sink_tokens",
        mistake("the window hides the sink tokens", lost("sink_tokens")),
        mistake("one sink token is missing", rule("sink_tokens", lambda count, part: count - 1)),
        mistake("there is one sink token too many", rule("sink_tokens", lambda count, part: count + 1)),
    ),
    *about(
        "chunked_local",
        mistake("the chunks of positions (chunked_local) are lost", lost("chunked_local")),
        mistake(
            "the division that finds a chunk truncates toward 0, where positions below 0 need a floor",
            _chunks(lambda part, size: _truncated(part.p, size), lambda part, size: _truncated(part.j, size)),
        ),
        mistake("all queries see the first query's chunk", _chunk_of(_first)),
        mistake("all queries see the last query's chunk", _chunk_of(_last)),
    ),
    *about(
        "key_unit",
        mistake("keys that several tokens share (key_unit) are taken for keys of one token each", lost("key_unit")),
        mistake("a key that several tokens share is seen before all of them are there", _incomplete),
    ),
    *about(
        "bidirectional_ranges",
        mistake("the bidirectional ranges are lost", lost("bidirectional_ranges")),
        mistake("the window clamps bidirectional ranges where it must not, or the other way round", _clamp),
        mistake("the last position of a bidirectional range is left out", rule("bidirectional_ranges", _one_position_shorter)),
        mistake(
            "a request has the bidirectional ranges of the request before it",
            rule("bidirectional_ranges", lambda ranges, part: ranges.roll(1, 0)),
        ),
    ),
    *about(
        "positions",
        mistake("a query's place in the step is taken for its position", _placed(lambda part: -part.context_len)),
        mistake(
            "queries are placed after the sequence: its length is taken for that of the context",
            _placed(lambda part: part.seq_len - part.context_len),
        ),
        mistake("queries stand one position too far", _placed(lambda part: 1)),
        mistake("queries stand one position before theirs", _placed(lambda part: -1)),
    ),
    *about(
        "keys",
        mistake("no key is seen", without(lambda part: torch.ones_like(part.request.visible))),
    ),
)
