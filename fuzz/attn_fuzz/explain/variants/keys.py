"""Mistakes in which keys take part: keys lost, counted twice, or read past the end of the sequence."""

import math
from typing import Any

import torch
from attn_fuzz.explain.part import Part
from attn_fuzz.explain.variants.variant import Change, Variant

TILES = (16, 32, 64, 128)


def _lost(which: Any) -> Change:
    """Without the keys [1, k] or [q, k] that `which(part)` names."""

    def changed(part: Part) -> Part | None:
        keys = which(part)
        return None if keys is None or not (keys & part.request.visible).any() else part.hiding(keys)

    return changed


def _doubled(which: Any, times: int = 2) -> Change:
    """With the keys that `which(part)` names counted twice."""

    def changed(part: Part) -> Part | None:
        keys = which(part)
        if keys is None or not (keys & part.request.visible).any():
            return None
        return part.adding(torch.where(keys, math.log(times), 0.0))

    return changed


def _first_block(number: int) -> Any:
    """The keys of the number-th block, from the end if it is negative."""

    def keys(part: Part) -> torch.Tensor | None:
        if part.view is None or part.seq_len == 0:
            return None
        size = part.view.block_size
        last = (part.seq_len - 1) // size
        block = number if number >= 0 else last + 1 + number
        return part.j // size == block if 0 <= block <= last and last > 0 else None

    return keys


def _tail(size: int) -> Any:
    """The keys of the last tile of this size, if it is not full."""
    return lambda part: part.j >= part.seq_len // size * size if part.seq_len % size else None


def _last_tile(size: int) -> Any:
    return lambda part: part.j >= (part.seq_len - 1) // size * size if part.seq_len > size else None


def _past_end_zero(size: int) -> Change:
    """Keys and values of 0 up to the next multiple of a size, which the mask leaves visible."""

    def changed(part: Part) -> Part | None:
        more = -part.seq_len % size
        if not more or part.seq_len != len(part.request.key):
            return None
        key, value = (torch.cat([x, x.new_zeros(more, *x.shape[1:])]) for x in (part.request.key, part.request.value))
        return part.longer(key, value)

    return changed


def _past_end(count: Any) -> Change:
    """As many keys as `count(part)` says are read from the cache, past the end of the sequence."""

    def changed(part: Part) -> Part | None:
        if part.view is None or part.seq_len != len(part.request.key):
            return None
        keys = count(part)
        return part.longer(*part.gathered(num_keys=keys)) if keys > part.seq_len else None

    return changed


def _to_block_end(part: Part) -> int:
    assert part.view is not None
    return len(part.blocks) * part.view.block_size


NUMBERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
VARIANTS = (
    Variant.of("last-key-lost", "the last key is lost", _lost(lambda part: part.j == part.seq_len - 1)),
    *(
        Variant.of(f"key-{n}-lost", f"the {word} key is lost", _lost(lambda part, n=n: part.j == n))
        for n, word in enumerate(NUMBERS[:4])
    ),
    Variant.of("last-key-twice", "the last key is counted twice", _doubled(lambda part: part.j == part.seq_len - 1)),
    Variant.of("first-key-twice", "the first key is counted twice", _doubled(lambda part: part.j == 0)),
    Variant.of("own-key-twice", "the key of the query's own token is counted twice", _doubled(lambda part: part.j == part.p)),
    Variant.of(
        "context-lost",
        "the keys before this step's own tokens (the context) are lost",
        _lost(lambda part: part.j < part.context_len),
    ),
    Variant.of(
        "own-tokens-lost", "the keys of this step's own tokens are lost", _lost(lambda part: part.j >= part.context_len)
    ),
    Variant.of(
        "own-tokens-twice",
        "the keys of this step's own tokens are counted twice",
        _doubled(lambda part: part.j >= part.context_len),
    ),
    Variant.of("context-twice", "the keys of the context are counted twice", _doubled(lambda part: part.j < part.context_len)),
    Variant.of(
        "keys-of-queries",
        "a request has as many keys as queries: its length is taken from them",
        _lost(lambda part: part.j >= part.seq_len - part.context_len),
    ),
    Variant.of("keys-of-context", "a request has as many keys as its context", _lost(lambda part: part.j >= part.context_len)),
    Variant.of("last-block-lost", "the keys of the last block are lost", _lost(_first_block(-1))),
    *(
        Variant.of(f"block-{n}-lost", f"the keys of the {word} block are lost", _lost(_first_block(n)))
        for n, word in enumerate(NUMBERS)
    ),
    Variant.of("last-block-twice", "the keys of the last block are counted twice", _doubled(_first_block(-1))),
    *(
        Variant.of(f"block-{n}-twice", f"the keys of the {word} block are counted twice", _doubled(_first_block(n)))
        for n, word in enumerate(NUMBERS)
    ),
    Variant.of(
        "tail-lost",
        "the keys behind the last whole tile are lost",
        *(_lost(_tail(t)) for t in TILES),
    ),
    Variant.of("last-tile-lost", "the last tile of keys is lost", *(_lost(_last_tile(t)) for t in TILES)),
    Variant.of(
        "context-tiles-lost",
        "the whole tiles of keys before this step's own tokens are lost",
        *(_lost(lambda part, t=t: part.j < part.context_len // t * t) for t in TILES),
    ),
    Variant.of("first-tile-lost", "the first tile of keys is lost", *(_lost(lambda part, t=t: part.j < t) for t in TILES)),
    Variant.of("last-tile-twice", "the last tile of keys is counted twice", *(_doubled(_last_tile(t)) for t in TILES)),
    Variant.of("block-past-end", "the slots of the last block past the end of the sequence are seen", _past_end(_to_block_end)),
    Variant.of(
        "keys-of-longest",
        "a request has as many keys as the longest request",
        _past_end(lambda part: int(part.call.batch.seq_lens.max())),
    ),
    Variant.of("one-key-past-end", "one key past the end of the sequence is seen", _past_end(lambda part: part.seq_len + 1)),
    Variant.of(
        "zeros-past-end",
        "keys of 0 past the end of the sequence, up to the end of the tile, take part",
        *(_past_end_zero(t) for t in TILES),
    ),
)
