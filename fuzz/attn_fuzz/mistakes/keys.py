"""Mistakes in which keys take part: keys lost, counted twice, or read past the end of the sequence."""

from collections.abc import Callable

import torch
from attn_fuzz.mistakes.mistake import Change, about, mistake, twice, without
from attn_fuzz.mistakes.part import Part

TILES = (16, 32, 64, 128)
_NUMBERS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_Keys = Callable[[Part], torch.Tensor | None]


def _block(number: int) -> _Keys:
    """The keys of the number-th of several blocks, from the end if it is negative."""

    def keys(part: Part) -> torch.Tensor | None:
        if part.view is None or part.num_keys <= part.view.block_size:
            return None
        return part.c // part.view.block_size == (number if number >= 0 else len(part.blocks) + number)

    return keys


def _past_end(count: Callable[[Part], int]) -> Change:
    """Read `count(part)` more keys from the cache, past the end of the sequence."""

    def changed(part: Part) -> Part | None:
        if part.view is None or count(part) <= part.num_keys:
            return None
        return part.longer(*part.gathered(num_keys=count(part)))

    return changed


def _length_of(request: Callable[[Part], int]) -> Change:
    """A request has as many keys as the request `request(part)`, counted around."""

    def changed(part: Part) -> Part | None:
        seq_lens = part.call.batch.seq_lens
        count = part.call.layer.num_keys(int(seq_lens[request(part) % len(seq_lens)]))
        fewer = without(lambda part: part.c >= count)
        return fewer(part) if count < part.num_keys else _past_end(lambda part: count)(part)

    return changed


def _to_block_end(part: Part) -> int:
    return len(part.blocks) * part.view.block_size if part.view is not None else 0


def _zeros(size: int) -> Change:
    return lambda part: part.with_zeros(-part.num_keys % size) if part.num_keys % size else None


def _at(key: int) -> _Keys:
    return lambda part: part.c == key if part.num_keys > key else None


def _own(part: Part) -> torch.Tensor:
    return part.j >= part.context_len


def _last_tile(size: int) -> _Keys:
    return lambda part: part.c >= (part.num_keys - 1) // size * size if part.num_keys > size else None


_SOME: dict[str, _Keys] = {
    "the last key is": lambda part: part.c == part.num_keys - 1,
    **{f"the {word} key is": lambda part, n=n: part.c == n for n, word in enumerate(_NUMBERS[:3])},
    "the key of the query's own token is": lambda part: part.j == part.p,
    "the keys of this step's own tokens are": _own,
    "the keys before this step's own tokens (the context) are": lambda part: ~_own(part),
    "the keys of the last block are": _block(-1),
    **{f"the keys of the {word} block are": _block(n) for n, word in enumerate(_NUMBERS)},
}

_AT_EDGES = [_at(edge - before) for edge in range(TILES[0], 12 * TILES[0], TILES[0]) for before in (0, 1)]

MISTAKES = (
    *about(
        "keys",
        *(mistake(f"{words} lost", without(keys)) for words, keys in _SOME.items()),
        *(mistake(f"{words} counted twice", twice(keys)) for words, keys in _SOME.items()),
        mistake("a key where two tiles or splits meet is lost", *(without(keys) for keys in _AT_EDGES)),
        mistake("a key where two tiles or splits meet is counted twice", *(twice(keys) for keys in _AT_EDGES)),
        mistake(
            "a request has as many keys as queries: its length is taken from them",
            without(lambda part: part.j >= part.seq_len - part.context_len),
        ),
        mistake(
            "the keys after the last whole tile are lost",
            *(without(lambda part, size=size: part.c >= part.num_keys // size * size) for size in TILES),
        ),
        mistake("the last tile of keys is lost", *(without(_last_tile(size)) for size in TILES)),
        mistake(
            "the whole tiles of keys before this step's own tokens are lost",
            *(without(lambda part, size=size: part.j < part.context_len // size * size) for size in TILES),
        ),
        mistake("the first tile of keys is lost", *(without(lambda part, size=size: part.c < size) for size in TILES)),
        mistake("the last tile of keys is counted twice", *(twice(_last_tile(size)) for size in TILES)),
    ),
    *about(
        "keys past the end",
        mistake("the slots of the last block past the end of the sequence are seen", _past_end(_to_block_end)),
        mistake(
            "a request has as many keys as the longest request",
            _past_end(lambda part: part.call.layer.num_keys(int(part.call.batch.seq_lens.max()))),
        ),
        mistake("a request has as many keys as the request before it", _length_of(lambda part: part.index - 1)),
        mistake("one key past the end of the sequence is seen", _past_end(lambda part: part.num_keys + 1)),
        mistake(
            "keys of 0 past the end of the sequence, up to the end of the tile, take part", *(_zeros(size) for size in TILES)
        ),
    ),
)
