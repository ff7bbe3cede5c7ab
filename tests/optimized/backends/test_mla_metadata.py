"""The metadata of steps of many requests is what a plain computation makes of their lengths, on one rank and over several."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, UnsupportedError
from attn_optimized.backends import BACKENDS, CommonAttentionMetadata
from attn_optimized.context_parallel import Dealing
from attn_reference import context_parallel
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

BLOCK_SIZE = 16
FULL_REQUESTS = 9
"""A chunk of contexts has fewer rows than so many requests with full chunks."""


class Request(NamedTuple):
    query_len: int
    context: int
    """Keys before the queries' own; negative: there are fewer keys than queries."""

    @property
    def seq_len(self) -> int:
        return self.query_len + self.context


def common_of(requests: list[Request], **changed: Any) -> CommonAttentionMetadata:
    query_lens = torch.tensor([request.query_len for request in requests])
    starts = torch.nn.functional.pad(query_lens.cumsum(0), (1, 0)).int()
    seq_lens = torch.tensor([request.seq_len for request in requests], dtype=torch.int32)
    num_blocks = -(-int(seq_lens.max()) // BLOCK_SIZE) + 1
    fields = {
        "query_start_loc": starts,
        "query_start_loc_cpu": starts,
        "seq_lens": seq_lens,
        "seq_lens_cpu": seq_lens,
        "num_actual_tokens": int(starts[-1]),
        "max_query_len": int(query_lens.max()),
        "max_seq_len": int(seq_lens.max()),
        "block_table_tensor": torch.arange(len(requests) * num_blocks, dtype=torch.int32).view(-1, num_blocks),
        "slot_mapping": None,
    }
    return CommonAttentionMetadata(**{**fields, **changed})


def requests(chunk: int) -> st.SearchStrategy[list[Request]]:
    """Requests of any lengths; or about as many with contexts of whole chunks as are gathered at once, and others without."""
    contexts = st.sampled_from((0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk + 3))
    any_lengths = st.lists(st.builds(Request, st.integers(0, 5), contexts), min_size=1, max_size=20)
    full = st.builds(Request, st.integers(1, 4), st.just(3 * chunk))
    about_a_group = st.sampled_from((1, 7, 8, 9, 16, 17)).flatmap(lambda n: st.lists(full, min_size=n, max_size=n))
    without = st.lists(st.builds(Request, st.integers(0, 4), st.just(0)), max_size=9)
    return any_lengths | st.builds(lambda first, rest: [*first, *rest], about_a_group, without)


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, list[Request]]:
    """The keys of a request in a chunk, the speculated tokens, and the requests. Decodes may have fewer keys than queries."""
    chunk, speculated = draw(st.sampled_from((1, 2, 5))), draw(st.integers(0, 1))
    drawn = draw(requests(chunk))
    if draw(st.booleans()):
        drawn = [request._replace(context=-1) if 0 < request.query_len <= 1 + speculated else request for request in drawn]
    return chunk, speculated, drawn


@settings(max_examples=150)
@given(step=steps())
def test_a_step_is_split_into_decodes_and_prefills(step):
    chunk, speculated, all_requests = step
    common = common_of(all_requests)
    assert common.num_reqs == len(all_requests)
    metadata = builder(chunk, speculated).build(common)
    prefills = [r for r, request in enumerate(all_requests) if request.query_len > 1 + speculated]
    decodes = [r for r, request in enumerate(all_requests) if 0 < request.query_len <= 1 + speculated]
    assert (metadata.prefill is not None) == bool(prefills)
    if not prefills:
        assert metadata.decode.rows == slice(0, common.num_actual_tokens)
        return
    assert (metadata.decode is not None) == bool(decodes)
    if decodes:
        check_phase(metadata.decode, common, all_requests, decodes)
    check_phase(metadata.prefill, common, all_requests, prefills)
    check_chunks(metadata.prefill, [all_requests[r] for r in prefills], chunk)


def builder(chunk: int, speculated: int, **dealing: Any) -> Any:
    backend: Any = BACKENDS["TRITON_MLA"]
    backend = backend.over_ranks() if dealing else backend
    return backend.builder(AttentionType.DECODER, num_speculative_tokens=speculated, context_chunk_keys=chunk, **dealing)


def check_phase(phase: Any, common: CommonAttentionMetadata, all_requests: list[Request], chosen: list[int]) -> None:
    """A phase has these requests, and their rows."""
    starts = common.query_start_loc.tolist()
    rows = torch.arange(common.num_actual_tokens)[phase.rows].tolist()
    assert rows == [row for r in chosen for row in range(starts[r], starts[r + 1])]
    assert phase.batch.query_start_loc.diff().tolist() == [all_requests[r].query_len for r in chosen]
    assert phase.batch.seq_lens.tolist() == [all_requests[r].seq_len for r in chosen]
    assert torch.equal(phase.batch.block_table, common.block_table_tensor[chosen])
    check_bounds(phase.batch)


def check_bounds(batch: Batch) -> None:
    """Each bound of a batch is the largest length."""
    query_lens = batch.query_start_loc.diff()
    longest = int(query_lens.max()), int(batch.seq_lens.max()), int(query_lens.sum())
    assert (batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens) == longest


def keys_of(chunk: Any) -> list[tuple[int, int]]:
    """The request of each row, and the position in the request."""
    return list(zip(chunk.request.tolist(), chunk.position.tolist(), strict=True))


def check_chunks(prefill: Any, of_prefill: list[Request], most: int) -> None:
    """The chunks of contexts hold each key once, in order, and in each at most so many keys of a request."""
    query_lens = [request.query_len for request in of_prefill]
    assert prefill.own.seq_lens.tolist() == query_lens
    check_bounds(prefill.own)
    assert prefill.max_seq_len == max(request.seq_len for request in of_prefill)
    chunks = [keys_of(chunk) for chunk in prefill.context_chunks]
    for r, request in enumerate(of_prefill):
        assert [position for keys in chunks for of, position in keys if of == r] == list(range(request.context))
    for chunk, keys in zip(prefill.context_chunks, chunks, strict=True):
        assert 0 < len(keys) < FULL_REQUESTS * most
        rows = [[row for row, (of, _) in enumerate(keys) if of == r] for r in range(max(keys)[0] + 1)]
        assert max(map(len, rows)) <= most
        assert chunk.batch.causal is False
        assert chunk.batch.query_start_loc.diff().tolist() == query_lens[: len(rows)]
        assert chunk.batch.seq_lens.tolist() == [len(own) for own in rows]
        for table, own in zip(chunk.batch.block_table.tolist(), rows, strict=True):
            assert table[: len(own)] == own
        check_bounds(chunk.batch)


@settings(max_examples=60)
@given(step=steps(), num_ranks=st.integers(1, 3), interleave=st.sampled_from((1, 2, 7)))
def test_the_ranks_send_the_keys_that_one_rank_gathers(step, num_ranks, interleave):
    chunk, speculated, all_requests = step
    common, prefills = common_of(all_requests), [one for one in all_requests if one.query_len > 1 + speculated]
    assume(prefills)
    whole = builder(chunk, speculated).build(common).prefill
    of_ranks = []
    for rank in range(num_ranks):
        dealing = Dealing(rank=rank, num_ranks=num_ranks, interleave=interleave)
        prefill = builder(chunk, speculated, dealing=dealing).build(common).prefill
        held = [context_parallel.tokens_of_rank(one.seq_len, rank, num_ranks, interleave).tolist() for one in prefills]
        assert prefill.batch.seq_lens.tolist() == [len(own) for own in held]
        assert prefill.max_seq_len == max(map(len, held))
        assert prefill.own.seq_lens.tolist() == [one.query_len for one in prefills]
        of_ranks.append((held, prefill.context_chunks))
    for n, gathered in enumerate(whole.context_chunks):
        chunks = [(held, of_rank[n]) for held, of_rank in of_ranks]
        own = [[(r, held[r][at]) for r, at in keys_of(one)] for held, one in chunks]
        assert {one.rows_sent for _, one in chunks} == {max(map(len, own))}
        sent = [key for rows in own for key in [*rows, *[None] * (max(map(len, own)) - len(rows))]]
        for _, one in chunks:
            assert [sent[at] for at in one.order.tolist()] == keys_of(gathered)
            assert torch.equal(one.batch.seq_lens, gathered.batch.seq_lens)
    assert all(len(of_rank) == len(whole.context_chunks) for _, of_rank in of_ranks)


@settings(max_examples=50)
@given(step=steps(), fewer=st.integers(1, 5), place=st.integers(0, 99))
@example(step=(1, 0, [Request(2, 0)]), fewer=2, place=0)
def test_a_prefill_with_fewer_keys_than_queries_is_refused(step, fewer, place):
    chunk, speculated, all_requests = step
    prefills = [r for r, request in enumerate(all_requests) if request.query_len > 1 + speculated]
    assume(prefills)
    r = prefills[place % len(prefills)]
    all_requests[r] = all_requests[r]._replace(context=-min(fewer, all_requests[r].query_len))
    with pytest.raises(UnsupportedError, match="more queries than keys"):
        builder(chunk, speculated).build(common_of(all_requests))


WRONG = {
    "of another device": lambda lengths: lengths.to("meta"),
    "of another dtype": lambda lengths: lengths.long(),
    "one more": lambda lengths: torch.cat([lengths, lengths[-1:]]),
    "one less": lambda lengths: lengths[:-1],
    "below 0": lambda lengths: torch.cat([lengths[:-1], lengths[-1:] * 0 - 1]),
    "beyond the bound": lambda lengths: torch.cat([lengths[:-1], lengths[-1:] + 1]),
    "a text": lambda lengths: "no such thing",
}
STARTS = {
    "from 1 on": lambda starts: starts + torch.tensor([1, 0, 0], dtype=torch.int32),
    "falling": lambda starts: torch.cat([starts[:1], starts[-1:], starts[1:-1]]),
    "longer than the longest": lambda starts: torch.cat([starts[:1], starts[-1:], starts[-1:]]),
}
"""Changes after which starts are no prefix sums of the lengths of queries."""


WRONG_LENGTHS = [(name, one) for name in ("query_start_loc_cpu", "seq_lens_cpu") for one in WRONG]
WRONG_LENGTHS += [("query_start_loc_cpu", one) for one in STARTS]


@pytest.mark.parametrize("backend", ["TRITON_MLA", "ROCM_AITER_FA"])
@pytest.mark.parametrize(("name", "wrong"), WRONG_LENGTHS)
@pytest.mark.parametrize("all_requests", [[Request(1, 4), Request(3, 2)], [Request(1, 4), Request(1, 6)]], ids=["prefill", ""])
def test_wrong_lengths_of_the_host_are_refused(all_requests, name, wrong, backend):
    common = common_of(all_requests)
    changed = dataclasses.replace(common, **{name: (WRONG | STARTS)[wrong](getattr(common, name))})
    with pytest.raises(ContractError, match=f"^{name}|^max_seq_len|^max_query_len"):
        BACKENDS[backend].builder(AttentionType.DECODER).build(changed)


def test_the_host_need_not_know_the_lengths_of_decodes_alone():
    assert builder(2, 0).build(common_of([Request(1, 4)], seq_lens_cpu=None)).prefill is None
