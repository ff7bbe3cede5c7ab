"""Lists of rows to read, as prefills of DeepSeek-V4 have them: the chosen entries of a query, then the keys of its window.

A prefill gathers two caches into one workspace: the compressed entries of each request, and the keys that its queries' windows
see. A function of a package gives each query the list of its rows there, and attention is one softmax over them. An entry and
the tokens that it stands for are keys of two caches. So a token of the window is listed, whether or not its entry is.

The step's lengths are the case's, its selection_unit is how many tokens an entry stands for, and the width of `selected` is how
many entries a query may choose. A case's lengths draw the rest. A list is right if it has the rows that it should have, in any
order, as many times -1 as the query chose no entry, and -1 after its length.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from attn_contract import Batch
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.targets.indexer import guarded, index_engine, judged_target
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.target import AttentionFunction, Target

UNREAD = 1 << 30
WINDOWS = (8, 1, 16, 128)
ALIGNMENT = 128
"""Lists are as wide as their rows need at most, and then a multiple of this (FlashMLA asks for it)."""


class ListInputs(NamedTuple):
    """The inputs that a function supports in addition to those of all.

    Attributes:
        holes: -1 among the chosen entries of a query.
        short: fewer gathered keys than windows have, as where a request is replayed.
        ragged: requests whose rows begin anywhere in the workspace; else all have as many.
        unowned: queries of no request, after the others.
    """

    holes: bool = False
    short: bool = False
    ragged: bool = False
    unowned: tuple[int, ...] = (0,)


NO_MORE_INPUTS = ListInputs()


class Prefill(NamedTuple):
    """A prefill, or a part of one. All tensors are int32.

    Attributes:
        query_start_loc: [R + 1]; its first number is not 0 in a part.
        seq_lens, gather_lens: [R]: the keys of a request, and how many of its last ones are gathered.
        positions: [T], of the queries.
        first_entries, first_keys: [R]: the rows of the workspace where each request's entries begin, and its keys.
        window, ratio, top_k: the keys that a query sees, the tokens of an entry, and how many entries a query chooses at most.
        chosen: [T, at least top_k]: of a request's own entries, those that a query has chosen, of which it sees
            `(p + 1) // ratio`; anything after them.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    gather_lens: torch.Tensor
    positions: torch.Tensor
    first_entries: torch.Tensor
    first_keys: torch.Tensor
    window: int
    ratio: int
    top_k: int
    chosen: torch.Tensor

    @property
    def rows_of_a_request(self) -> int:
        """M, of a workspace that is not ragged."""
        return int(self.first_entries[1]) if len(self.seq_lens) > 1 else UNREAD

    @property
    def entries_of_a_request(self) -> int:
        """N, of a workspace that is not ragged."""
        return int(self.first_keys[0])

    @property
    def is_short(self) -> bool:
        """True if a query's window begins in front of the gathered keys."""
        firsts = (self.seq_lens - self.query_start_loc.diff() - self.window + 1).clamp(min=0)
        return bool((self.seq_lens - self.gather_lens > firsts).any())

    def lists(self) -> Iterator[list[int]]:
        """The right list of each query, of no request, too."""
        starts = (self.query_start_loc - self.query_start_loc[0]).tolist()
        for request, (seq_len, gathered) in enumerate(zip(self.seq_lens.tolist(), self.gather_lens.tolist(), strict=True)):
            entries, keys = int(self.first_entries[request]), int(self.first_keys[request]) - (seq_len - gathered)
            for row in range(*starts[request : request + 2]):
                p = int(self.positions[row])
                own = self.chosen[row, : min((p + 1) // self.ratio, self.top_k)].tolist()
                window = range(max(p - self.window + 1, seq_len - gathered), p + 1)
                yield [*(-1 if c < 0 else entries + c for c in own), *(keys + j for j in window)]
        yield from ([] for _ in range(len(self.positions) - starts[-1]))


Combine = Callable[[Prefill, torch.Tensor, torch.Tensor], object]
"""Writes lists [T, W] and lengths [T], int32, into tensors that hold -2."""


def check(right: Iterable[list[int]], lists: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor) -> None:
    """Compare lists [T, W] of queries at positions [T] with the right ones, in any order.

    Raises:
        FailedCheckError: a length, a list or what is after it is wrong.
    """
    given = zip(lists.tolist(), lengths.tolist(), positions.tolist(), right, strict=True)
    for row, (found, length, p, expected) in enumerate(given):
        if length != len(expected):
            message = f"query {row} at position {p} has a list of {length}, expected {len(expected)}"
            raise FailedCheckError("value", "lengths", message)
        if sorted(found[:length]) != sorted(expected) or any(each != -1 for each in found[length:]):
            message = f"query {row} at position {p}: got {found}, expected {expected} and then -1"
            raise FailedCheckError("value", "lists", message)


def _drawn(batch: Batch, ratio: int, top_k: int, inputs: ListInputs, rng: random.Random) -> Prefill:
    starts, seq_lens = batch.query_start_loc.cpu(), batch.seq_lens.cpu()
    lengths, window = starts.diff(), rng.choice(WINDOWS)
    top_k = rng.choice((top_k, top_k, top_k, 0))
    gathered = torch.minimum(seq_lens, lengths + window - 1)
    if inputs.short and rng.random() < 0.3:
        gathered = torch.maximum(lengths, gathered - rng.randint(1, window))
    entries = int(seq_lens.amax()) // ratio + rng.choice((0, 1, 7))
    size = entries + int(gathered.amax()) + rng.choice((0, 1, 7))
    order = torch.tensor(rng.sample(range(len(lengths)), len(lengths)) if inputs.ragged else range(len(lengths)))
    unowned = rng.choice(inputs.unowned)
    positions = [p for n, length in zip(lengths, seq_lens, strict=True) for p in range(int(length - n), int(length))]
    positions += [0] * unowned
    width = top_k + rng.choice((0, 1, 7)) or 1
    chosen = [_chosen(min((p + 1) // ratio, top_k), (p + 1) // ratio, width, inputs, rng) for p in positions]
    return Prefill(
        query_start_loc=(starts + rng.choice((0, 5))).int(),
        seq_lens=seq_lens.int(),
        gather_lens=gathered.int(),
        positions=torch.tensor(positions, dtype=torch.int32),
        first_entries=(order * size).int(),
        first_keys=(order * size + entries).int(),
        window=window,
        ratio=ratio,
        top_k=top_k,
        chosen=torch.tensor(chosen, dtype=torch.int32)[:, :width],
    )


def _chosen(count: int, seen: int, width: int, inputs: ListInputs, rng: random.Random) -> list[int]:
    """Entries of [0, seen), followed by what lies past the row in memory."""
    own = rng.sample(range(seen), count)
    if inputs.holes and rng.random() < 0.3:
        own = [-1 if rng.random() < 0.4 else c for c in own]
    return own + [rng.choice((-1, UNREAD)) for _ in range(width + 3 - count)]


def lists_target(name: str, combine: Combine, inputs: ListInputs = NO_MORE_INPUTS, **fields: Any) -> Target:
    """A target of a function that makes the lists; `fields` are for `judged_target`."""
    sizes = {"selection_units": (4, 128, 1, 2), "selected_per_head": (False,)}
    engine = index_engine(more_queries_than_keys=False, **sizes)
    return judged_target(name, _attention_by(combine, inputs), engine=engine, group_sizes=(1,), **fields)


def _attention_by(combine: Combine, inputs: ListInputs) -> AttentionFunction:
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        rows = int(batch.query_start_loc[-1])
        if rows:
            step = _drawn(batch, layer.selection_unit, batch.selected.shape[2], inputs, rng_of_lengths(batch))
            shape = (len(step.positions), -(-(step.top_k + step.window) // ALIGNMENT) * ALIGNMENT)
            lengths = torch.full(shape[:1], -2, dtype=torch.int32)
            with guarded(shape, torch.int32, "lists") as lists:
                combine(step, lists, lengths)
            check(step.lists(), lists, lengths, step.positions)
        rows_of(out, layer, rows).zero_()

    return attention
