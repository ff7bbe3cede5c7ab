"""Dealing tokens to ranks: literal tables, dealing card by card, and attention over ranks against attention over all keys."""

import itertools

import pytest
import torch
from attn_contract import Batch, ContractError, Layer, Layout
from attn_reference import Request, attend, context_parallel, merge_attn_parts, visible
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = {"num_ranks": st.integers(1, 5), "interleave": st.integers(1, 5)}


def dealt(length, num_ranks, interleave):
    """The tokens of each rank, dealt one by one."""
    hands, rank, taken = [[] for _ in range(num_ranks)], 0, 0
    for token in range(length):
        if taken == interleave:
            rank, taken = (rank + 1) % num_ranks, 0
        hands[rank].append(token)
        taken += 1
    return hands


def test_nine_tokens_two_at_a_time_to_two_ranks():
    i = torch.arange(9)
    assert context_parallel.rank_of(i, 2, 2).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert context_parallel.local_index(i, 2, 2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4]
    assert context_parallel.tokens_of_rank(9, 0, 2, 2).tolist() == [0, 1, 4, 5, 8]
    assert context_parallel.tokens_of_rank(9, 1, 2, 2).tolist() == [2, 3, 6, 7]


def test_slots_of_a_rank():
    """Blocks of 2: the rank's tokens 0, 1, 4, 5 and 8 are in its blocks 7, 3 and 5; one entry stands for 4 tokens."""
    block_table = torch.tensor([7, 3, 5], dtype=torch.int32)
    slots = context_parallel.local_slots(torch.arange(9), block_table, 2, 0, 2, 2)
    assert slots.tolist() == [14, 15, -1, -1, 6, 7, -1, -1, 10]


@pytest.mark.parametrize(
    ("positions", "block_table", "wrong"),
    [
        ([3, -1], [7, 3], "positions: got -1, expected positions in a request, from 0"),
        ([3, 8], [7, 3], "block_table: got 2 blocks of 2 slots, expected room for the rank's token 4"),
        ([3.0], [7, 3], "positions: got torch.float32"),
        ([3], [[7, 3]], r"block_table: got shape \(1, 2\)"),
    ],
)
def test_a_token_without_a_slot_is_refused(positions, block_table, wrong):
    with pytest.raises(ContractError, match=wrong):
        context_parallel.local_slots(torch.tensor(positions), torch.tensor(block_table, dtype=torch.int32), 2, 0, 2, 2)


@settings(deadline=None, max_examples=200)
@given(length=st.integers(0, 60), **sizes)
def test_formulas_deal_as_a_dealer_does(length, num_ranks, interleave):
    dealing = (num_ranks, interleave)
    for rank, hand in enumerate(dealt(length, *dealing)):
        assert context_parallel.local_length(length, rank, *dealing) == len(hand)
        assert context_parallel.tokens_of_rank(length, rank, *dealing).tolist() == hand
        assert [context_parallel.rank_of(i, *dealing) for i in hand] == [rank] * len(hand)
        assert [context_parallel.local_index(i, *dealing) for i in hand] == list(range(len(hand)))
        for p in range(length):
            assert context_parallel.local_length(p + 1, rank, *dealing) == sum(i <= p for i in hand)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 60), blocks=st.integers(1, 4), **sizes)
def test_one_block_table_serves_all_ranks(length, blocks, num_ranks, interleave):
    block_size = blocks * interleave
    tables = torch.randperm(64).int()
    for rank in range(num_ranks):
        slots = context_parallel.local_slots(torch.arange(length), tables, block_size, rank, num_ranks, interleave)
        for i in context_parallel.tokens_of_rank(length, rank, num_ranks, interleave).tolist():
            assert slots[i] // block_size == tables[i // (block_size * num_ranks)]
        own = slots[slots >= 0]
        assert len(own.unique()) == len(own) == context_parallel.local_length(length, rank, num_ranks, interleave)


@settings(deadline=None, max_examples=40)
@given(
    query_len=st.integers(1, 4),
    context_len=st.integers(0, 9),
    window=st.sampled_from([(-1, -1), (3, 0), (0, 2)]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 99),
    **sizes,
)
def test_attention_over_ranks_is_attention_over_all_keys(
    query_len, context_len, window, with_sinks, seed, num_ranks, interleave
):
    generator, seq_len = torch.Generator().manual_seed(seed), query_len + context_len
    query, key, value = (torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) for n in (query_len, seq_len, seq_len))
    sinks = torch.tensor([0.5, -1.0]) if with_sinks else None
    sizes = {"num_heads": 2, "num_kv_heads": 2, "head_size": 3, "layout": Layout.KV_FIRST_NHD}
    layer = Layer(**sizes, scale=1.0, window=window, sinks=sinks)
    positions = torch.arange(context_len, seq_len)
    batch = Batch(
        query_start_loc=torch.tensor([0, query_len], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=seq_len,
        num_actual_tokens=query_len,
        causal=True,
    )
    seen = visible(positions, torch.arange(seq_len), layer, batch, 0)
    request = Request(0, slice(0, query_len), query, key, value, seen, positions, bias=None)
    whole = attend(request, layer)
    parts = [
        attend(context_parallel.local_request(request, rank, num_ranks, interleave), context_parallel.local_layer(layer, rank))
        for rank in range(num_ranks)
    ]
    for order in itertools.islice(itertools.permutations(parts), 3):
        lse = torch.empty(2, query_len)
        outs, lses = torch.stack([part.out.float() for part in order]), torch.stack([part.lse.float() for part in order])
        out = merge_attn_parts(outs, lses, lse=lse)
        torch.testing.assert_close(out.double(), whole.out, rtol=0, atol=2**-24 * 64)
        torch.testing.assert_close(lse.double(), whole.lse, rtol=0, atol=2**-24 * 64)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("rank_of", (0, 0), "num_ranks: got 0, expected an int, at least 1"),
        ("local_index", (0, 2, 0), "interleave: got 0, expected an int, at least 1"),
        ("local_length", (4, 2, 2), "rank: got 2, expected one of 2 ranks, from 0"),
        ("local_length", (-1, 0, 2), "length: got -1, expected an int, at least 0"),
        ("tokens_of_rank", (4, -1, 2), "rank: got -1, expected an int, at least 0"),
        ("local_request", (None, 0, 2), "request: got None, expected a Request"),
        ("local_layer", (None, 0), "layer: got None, expected a Layer"),
    ],
)
def test_bad_dealings_are_refused(function, arguments, message):
    with pytest.raises(ContractError) as caught:
        getattr(context_parallel, function)(*arguments)
    assert str(caught.value).startswith(message)
