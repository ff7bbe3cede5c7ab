"""Metadata of steps of many requests, compared with a plain computation.

Builders of metadata group requests and cut their contexts, by lengths that the host knows. A case has few requests and keys,
because attention to them is interpreted. A step that nobody attends to may have many.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Batch
from attn_fuzz.targets.backends import common_metadata, named
from attn_fuzz.targets.wrong_arguments import must_refuse
from attn_reference import context_parallel

_MOST_REQUESTS = 26
_MOST_WITHOUT_CONTEXT = 9
_ABOUT_A_GROUP = (1, 7, 8, 9, 16, 17)
_MOST_RANKS = 3
_BLOCK_SIZE = 16
_FULL_REQUESTS = 9
"""A chunk of contexts has less rows than so many requests with full chunks."""

Key = tuple[int, int]
"""A request, and a position in it."""


class _Lengths(NamedTuple):
    query_lens: list[int]
    seq_lens: list[int]

    def of(self, chosen: Sequence[int]) -> "_Lengths":
        return _Lengths([self.query_lens[r] for r in chosen], [self.seq_lens[r] for r in chosen])


def drawn_step(choose: random.Random, chunk: int) -> Batch:
    """A causal step of decodes and prefills.

    Args:
        chunk: of so many keys contexts are cut. In half of the steps the first requests have contexts of whole chunks, about as
            many requests as are gathered at a time, and the others have none.
    """
    if choose.random() < 0.5:
        context_lens = [3 * chunk] * choose.choice(_ABOUT_A_GROUP) + [0] * choose.randint(1, _MOST_WITHOUT_CONTEXT)
    else:
        lens = (0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk + 3)
        context_lens = [choose.choice(lens) for _ in range(choose.randint(1, _MOST_REQUESTS))]
    lens = choose.choice(((0, 1, 2, 5), (3, 4), (0, 3)))
    query_lens = torch.tensor([choose.choice(lens) for _ in context_lens], dtype=torch.int32)
    seq_lens = query_lens + torch.tensor(context_lens, dtype=torch.int32)
    num_blocks = -(-int(seq_lens.max()) // _BLOCK_SIZE) + 1
    return Batch(
        query_start_loc=torch.nn.functional.pad(query_lens.cumsum(0), (1, 0)).int(),
        seq_lens=seq_lens,
        max_query_len=int(query_lens.max()),
        max_seq_len=int(seq_lens.max()),
        num_actual_tokens=int(query_lens.sum()),
        causal=True,
        block_table=torch.arange(len(context_lens) * num_blocks, dtype=torch.int32).view(-1, num_blocks),
    )


def check_latent(choose: random.Random) -> None:
    """Check what TRITON_MLA makes of a drawn step, on one rank and on each of several.

    Raises:
        AssertionError: it is not what was expected.
    """
    chunk = choose.choice((1, 2, 5))
    step, speculated = drawn_step(choose, chunk), choose.choice((0, 0, 1))
    batch = _with_short_decodes(step, 1 + speculated, choose) if choose.random() < 0.5 else step
    options = {"num_speculative_tokens": speculated, "context_chunk_keys": chunk}
    common = common_metadata(batch, AttentionType.DECODER)
    backend: Any = named("TRITON_MLA")()
    builder = backend.builder(AttentionType.DECODER, **options)
    if (short := _with_a_short_prefill(batch, 1 + speculated, choose)) is not None:
        refused = common_metadata(short, AttentionType.DECODER)
        must_refuse(lambda: builder.build(refused), "a prefill with more queries than keys")
    metadata = builder.build(common)
    lengths = _Lengths(batch.query_start_loc.diff().tolist(), batch.seq_lens.tolist())
    prefills = [r for r, query_len in enumerate(lengths.query_lens) if query_len > 1 + speculated]
    decodes = [r for r, query_len in enumerate(lengths.query_lens) if 0 < query_len <= 1 + speculated]
    _equal("prefills", metadata.prefill is not None, bool(prefills))
    if not prefills:
        _equal("the rows of decodes alone", metadata.decode.rows, slice(0, batch.num_actual_tokens))
        return
    _equal("decodes", metadata.decode is not None, bool(decodes))
    if decodes:
        _check_phase(metadata.decode, batch, lengths, decodes)
    _check_phase(metadata.prefill, batch, lengths, prefills)
    chunks = _check_prefill(metadata.prefill, lengths.of(prefills), chunk)
    if choose.random() < 0.5:
        _check_ranks(common, options, metadata.prefill, lengths.of(prefills), chunks, choose)


def _with_short_decodes(batch: Batch, longest: int, choose: random.Random) -> Batch:
    """The step, some of whose decodes have fewer keys than queries: they read the cache alone, and see what there is.

    Args:
        longest: queries of a decode at most.
    """
    lens = zip(batch.query_start_loc.diff().tolist(), batch.seq_lens.tolist(), strict=True)
    short = [choose.randint(0, query) if query <= longest and choose.random() < 0.5 else seq for query, seq in lens]
    return dataclasses.replace(batch, seq_lens=torch.tensor(short, dtype=torch.int32))


def _with_a_short_prefill(batch: Batch, longest: int, choose: random.Random) -> Batch | None:
    """The step, one of whose prefills has fewer keys than queries; None if the step has no prefill."""
    query_lens = batch.query_start_loc.diff().tolist()
    prefills = [r for r, query_len in enumerate(query_lens) if query_len > longest]
    if not prefills:
        return None
    seq_lens, short = batch.seq_lens.clone(), choose.choice(prefills)
    seq_lens[short] = choose.randrange(query_lens[short])
    return dataclasses.replace(batch, seq_lens=seq_lens)


def _check_phase(phase: Any, batch: Batch, lengths: _Lengths, chosen: list[int]) -> None:
    """Check that a phase has these requests, and their rows."""
    starts = batch.query_start_loc.tolist()
    rows = torch.arange(batch.num_actual_tokens)[phase.rows].tolist()
    _equal("rows", rows, [row for r in chosen for row in range(starts[r], starts[r + 1])])
    query_lens, seq_lens = lengths.of(chosen)
    assert batch.block_table is not None
    _equal("query lengths", phase.batch.query_start_loc.diff().tolist(), query_lens)
    _equal("lengths", phase.batch.seq_lens.tolist(), seq_lens)
    _equal("blocks", phase.batch.block_table.tolist(), batch.block_table[chosen].tolist())
    _check_bounds(phase.batch)


def _check_bounds(batch: Batch) -> None:
    """Check that each bound of a batch is the largest length."""
    got = batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens
    longest = int(batch.query_start_loc.diff().max()), int(batch.seq_lens.max()), int(batch.query_start_loc[-1])
    _equal("bounds", got, longest)


def _check_prefill(prefill: Any, lengths: _Lengths, most: int) -> list[list[Key]]:
    """Check the contexts of prefills, and return the keys of each chunk of them.

    Args:
        most: keys of a request in a chunk.
    """
    _equal("own lengths", prefill.own.seq_lens.tolist(), lengths.query_lens)
    _check_bounds(prefill.own)
    _equal("the longest prefill", prefill.max_seq_len, max(lengths.seq_lens))
    chunks = [list(zip(chunk.request.tolist(), chunk.position.tolist(), strict=True)) for chunk in prefill.context_chunks]
    for keys, chunk in zip(chunks, prefill.context_chunks, strict=True):
        _check_chunk(chunk.batch, keys, lengths, most)
    for r, (query_len, seq_len) in enumerate(zip(*lengths, strict=True)):
        found = [position for keys in chunks for request, position in keys if request == r]
        _equal(f"the context of request {r}", found, list(range(seq_len - query_len)))
    return chunks


def _check_chunk(batch: Batch, keys: list[Key], lengths: _Lengths, most: int) -> None:
    """Check the batch in which the first requests attend to the rows of a chunk, one of which each block is."""
    assert 0 < len(keys) < _FULL_REQUESTS * most, f"{len(keys)} rows in a chunk of {most} keys of a request"
    assert batch.block_table is not None
    assert batch.causal is False
    rows = [[row for row, (request, _) in enumerate(keys) if request == r] for r in range(max(keys)[0] + 1)]
    assert max(map(len, rows)) <= most, f"{[*map(len, rows)]} keys in a chunk, expected at most {most} of a request"
    _equal("query lengths of a chunk", batch.query_start_loc.diff().tolist(), lengths.query_lens[: len(rows)])
    _equal("lengths of a chunk", batch.seq_lens.tolist(), [len(own) for own in rows])
    for table, own in zip(batch.block_table.tolist(), rows, strict=True):
        _equal("blocks of a chunk", table[: len(own)], own)
    _check_bounds(batch)


def _check_ranks(
    common: Any, options: dict[str, int], whole: Any, lengths: _Lengths, chunks: list[list[Key]], choose: random.Random
) -> None:
    """Check the prefills of each rank that has a part of the keys: what the ranks send is what one rank gathers.

    Args:
        whole: the prefills of one rank that has all keys.
        chunks: its keys.
    """
    from attn_optimized.context_parallel import Dealing

    dealt = {"num_ranks": choose.randint(1, _MOST_RANKS), "interleave": choose.choice((1, 2, 7))}
    backend: Any = named("TRITON_MLA")().over_ranks()
    sent: list[list[list[Key | None]]] = [[] for _ in chunks]
    orders: list[list[list[int]]] = [[] for _ in chunks]
    for rank in range(dealt["num_ranks"]):
        dealing = Dealing(rank=rank, **dealt)
        prefill = backend.builder(AttentionType.DECODER, dealing=dealing, **options).build(common).prefill
        tokens = [
            context_parallel.tokens_of_rank(length, rank, dealt["num_ranks"], dealt["interleave"]).tolist()
            for length in lengths.seq_lens
        ]
        held = [len(own) for own in tokens]
        _equal("lengths of a rank", prefill.batch.seq_lens.tolist(), held)
        _equal("the longest prefill of a rank", prefill.max_seq_len, max(held))
        _equal("own lengths of a rank", prefill.own.seq_lens.tolist(), lengths.query_lens)
        _equal("chunks of a rank", len(prefill.context_chunks), len(chunks))
        for place, (chunk, same) in enumerate(zip(prefill.context_chunks, whole.context_chunks, strict=True)):
            own = [(r, tokens[r][at]) for r, at in zip(chunk.request.tolist(), chunk.position.tolist(), strict=True)]
            sent[place].append([*own, *[None] * (chunk.rows_sent - len(own))])
            orders[place].append(chunk.order.tolist())
            _equal("lengths of a chunk", chunk.batch.seq_lens.tolist(), same.batch.seq_lens.tolist())
    for keys, of_ranks, order in zip(chunks, sent, orders, strict=True):
        rows = [row for own in of_ranks for row in own]
        assert all(one == order[0] for one in order), f"orders of the ranks: {order}"
        _equal("rows of all ranks", [rows[at] for at in order[0]], keys)
        _equal(
            "rows that each rank sends", {len(own) for own in of_ranks}, {max(len(own) - own.count(None) for own in of_ranks)}
        )


def _equal(what: str, got: object, expected: object) -> None:
    assert got == expected, f"{what}: got {got}, expected {expected}"
