"""The visibility formula against a truth table in plain Python integers: every rule, alone and with the others."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import attn_reference
import pytest
import torch
from attn_contract import Batch, ContractError, Layer, Layout
from attn_contract.rules import held_rules
from attn_reference import attend, paged_requests, varlen_requests, visible
from attn_reference.masks import in_range

LENGTHS = list(itertools.product(range(1, 5), range(8)))
"""(query_len, seq_len). With more queries than keys, the first queries stand before the sequence."""

WINDOWS = list(itertools.product((-1, 0, 1, 3), repeat=2))
RANGES = [[1, 4], [6, 6], [4, 2], [-2, 0]]
"""A range of several positions, one of a single position, an empty one, and one that begins before the sequence."""
SOME_HIDDEN = [[0, -math.inf, 0.5, 0], [1, 0, 0, -math.inf], [-math.inf, 0, -1, 0], [0, 0, -math.inf, -math.inf]]


SELECTED = [[2, -1, 0], [-1, 1, 3], [-2, -1, -1], [3, 0, 2]]
"""The units of each query. One selects nothing, and one a unit that causality hides in part."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    sink_tokens: int = 0
    chunked_local: int | None = None
    bidirectional_ranges: bool = False
    ranges_clamped: bool = False
    selection_unit: int | None = None
    qq_bias: bool = False


def sees(i: int, j: int, query_len: int, seq_len: int, rules: Rules) -> bool:
    """True if query i sees key j: the formula, term by term."""
    context_len = seq_len - query_len
    p = context_len + i
    left, right = rules.window
    in_window = (left < 0 or p - j <= left) and (right < 0 or j - p <= right)
    in_chunk = rules.chunked_local is None or p // rules.chunked_local == j // rules.chunked_local
    base = (not rules.causal or j <= p) and (in_window or j < rules.sink_tokens) and in_chunk
    together = rules.bidirectional_ranges and any(first <= p <= last and first <= j <= last for first, last in RANGES)
    in_range = together and (not rules.ranges_clamped or left < 0 or p - j <= left)
    hidden = rules.qq_bias and j >= context_len and SOME_HIDDEN[i][j - context_len] == -math.inf
    selected = rules.selection_unit is None or j // rules.selection_unit in SELECTED[i]
    return 0 <= j < seq_len and (base or in_range) and selected and not hidden


def truth_table(query_len: int, seq_len: int, rules: Rules) -> torch.Tensor:
    rows = [[sees(i, j, query_len, seq_len, rules) for j in range(seq_len)] for i in range(query_len)]
    return torch.tensor(rows, dtype=torch.bool).reshape(query_len, seq_len)


def layer_of(rules: Rules) -> Layer:
    return Layer(
        num_heads=1,
        num_kv_heads=1,
        head_size=4,
        scale=0.5,
        layout=Layout.KV_FIRST_NHD,
        **of_the_layer(rules),
    )


def of_the_layer(rules: Rules) -> dict[str, Any]:
    return {name: value for name, value in vars(rules).items() if name in held_rules(Layer)}


def seen_keys(query_len: int, seq_len: int, keys: range, rules: Rules) -> torch.Tensor:
    """`visible` for a batch of one request. The keys may lie outside the request."""
    batch = Batch(
        query_start_loc=torch.tensor([0, query_len], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=seq_len,
        num_actual_tokens=query_len,
        causal=rules.causal,
    )
    positions, key_positions = torch.arange(seq_len - query_len, seq_len), torch.tensor(keys, dtype=torch.int64)
    return visible(positions, key_positions, layer_of(rules), batch, 0)


OPTIONS = {
    "window": [(-1, -1), (0, 0), (2, -1), (-1, 1), (1, 2)],
    "sink_tokens": [0, 2],
    "chunked_local": [None, 3],
    "bidirectional_ranges": [False, True],
    "ranges_clamped": [False, True],
    "selection_unit": [None, 2],
    "qq_bias": [False, True],
}
ALONE = "key_unit"
"""It excludes other rules, and has a test of its own."""
ALL = [Rules(causal=True, **dict(zip(OPTIONS, values, strict=True))) for values in itertools.product(*OPTIONS.values())]


def test_the_truth_table_itself():
    """Typed by hand: two queries at positions 2 and 3 of four keys, or at 4 and 5 of six."""
    assert truth_table(2, 4, Rules(causal=True, window=(1, 0))).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert truth_table(2, 4, Rules(window=(1, -1))).int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert truth_table(3, 2, Rules(causal=True)).int().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert truth_table(2, 6, Rules(causal=True, window=(1, 0), sink_tokens=1)).int().tolist() == [
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]
    assert truth_table(2, 4, Rules(causal=True, chunked_local=3)).int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert truth_table(2, 4, Rules(causal=True, chunked_local=3, sink_tokens=1)).int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert truth_table(3, 2, Rules(chunked_local=3)).int().tolist() == [[0, 0], [1, 1], [1, 1]]
    assert truth_table(2, 5, Rules(causal=True, selection_unit=2)).int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    in_range = Rules(causal=True, window=(0, 0), bidirectional_ranges=True)
    assert truth_table(2, 5, in_range).int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert truth_table(2, 5, replace(in_range, ranges_clamped=True)).int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert truth_table(2, 3, Rules(causal=True, qq_bias=True)).int().tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_shows_the_keys_of_its_definition(window, causal):
    """Positions before 0 and from seq_len on hold no key, and are never visible."""
    rules = Rules(causal=causal, window=window)
    for query_len, seq_len in LENGTHS:
        keys = range(-2, seq_len + 3)
        seen = seen_keys(query_len, seq_len, keys, rules)
        expected = [[sees(i, j, query_len, seq_len, rules) for j in keys] for i in range(query_len)]
        assert seen.tolist() == expected, (query_len, seq_len)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunked_local", [1, 2, 3, 100])
@pytest.mark.parametrize("sink_tokens", [0, 1, 3, 100])
def test_chunks_and_sink_tokens(sink_tokens, chunked_local, causal):
    rules = Rules(causal=causal, window=(1, 0), sink_tokens=sink_tokens, chunked_local=chunked_local)
    for query_len, seq_len in LENGTHS:
        seen = seen_keys(query_len, seq_len, range(seq_len), rules)
        assert torch.equal(seen, truth_table(query_len, seq_len, rules)), (query_len, seq_len)


@pytest.mark.parametrize("causal", [False, True])
def test_all_rules_together_are_the_truth_table(causal, paged_call, randn):
    """Every combination of the rules, over every length, as a call applies them."""
    tokens = [(randn(query_len, 1, 4), randn(seq_len, 1, 4), randn(seq_len, 1, 4)) for query_len, seq_len in LENGTHS]
    for rules in (replace(rules, causal=causal) for rules in ALL):
        for request, (query_len, seq_len) in zip(requests_of(paged_call, tokens, rules), LENGTHS, strict=True):
            assert torch.equal(request.visible, truth_table(query_len, seq_len, rules)), (rules, query_len, seq_len)


@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_zero_exactly_where_a_key_is_not_seen(causal, paged_call, randn):
    lengths = [(1, 7), (3, 6), (4, 4), (4, 2)]
    tokens = [(randn(query_len, 2, 4), randn(seq_len, 1, 4), randn(seq_len, 1, 4)) for query_len, seq_len in lengths]
    for rules in (replace(rules, causal=causal) for rules in ALL):
        for request, (query_len, seq_len) in zip(requests_of(paged_call, tokens, rules), lengths, strict=True):
            expected = truth_table(query_len, seq_len, rules)
            attention = attend(request, replace(layer_of(rules), num_heads=2))
            assert torch.equal(attention.weights != 0, expected.expand(2, -1, -1)), rules
            assert torch.equal(attention.logits != -torch.inf, expected.expand(2, -1, -1)), rules
            assert torch.equal(attention.lse == -torch.inf, ~expected.any(-1).expand(2, -1)), rules
            assert not attention.out[~expected.any(-1)].any()


def requests_of(paged_call, tokens, rules):
    call = paged_call(
        tokens,
        causal=rules.causal,
        scale=0.5,
        **of_the_layer(rules),
        bidirectional_ranges=torch.tensor(RANGES, dtype=torch.int32).repeat(len(tokens), 1, 1)
        if rules.bidirectional_ranges
        else None,
        qq_bias=larger(torch.tensor(SOME_HIDDEN)) if rules.qq_bias else None,
        selected=selected_of([(len(query), len(key)) for query, key, _ in tokens], rules.selection_unit),
    )
    requests = list(paged_requests(*call, torch.float64))
    assert [request.index for request in requests] == list(range(len(tokens)))
    return requests


def selected_of(lengths, selection_unit):
    """The units that have a key of the request. Rows that no request owns select unit 0, which each of them has."""
    if selection_unit is None:
        return None
    rows = [
        [unit if unit * selection_unit < seq_len else -1 for unit in SELECTED[i]]
        for query_len, seq_len in lengths
        for i in range(query_len)
    ]
    return torch.nn.functional.pad(torch.tensor([rows], dtype=torch.int32), (0, 0, 0, 8))


def sharing(paged_call, tokens, seq_lens, **fields):
    """A call over keys of several tokens: those of `tokens`, of requests that have so many tokens."""
    q, kv_cache, layer, batch = paged_call(tokens, **fields)
    lengths = torch.tensor(seq_lens, dtype=torch.int32)
    return q, kv_cache, layer, replace(batch, seq_lens=lengths, max_seq_len=max(seq_lens))


def test_keys_of_four_tokens_by_hand(paged_call):
    """Nine tokens are two keys, of the tokens 0 to 3 and 4 to 7. The queries stand at positions 2 to 8. All logits are 0."""
    query, key, value = torch.zeros(7, 1, 4), torch.ones(2, 1, 4), torch.tensor([1.0, 3.0])[:, None, None].expand(2, 1, 4)
    call = sharing(paged_call, [(query, key, value)], [9], key_unit=4)
    (request,) = paged_requests(*call, torch.float64)
    assert request.visible.int().tolist() == [[0, 0], [1, 0], [1, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    attention = attend(request, call[2])
    assert attention.out[:, 0, 0].tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert attention.lse[0].exp().tolist() == pytest.approx([0, 1, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("key_unit", [2, 3, 4, 128])
def test_keys_of_several_tokens(key_unit, paged_call, randn):
    """A key is seen once the query stands at its last token or after it. A selection of units of two keys hides others."""
    sizes = sorted({*range(7), key_unit - 1, key_unit, key_unit + 1, 4 * key_unit - 1, 4 * key_unit, 4 * key_unit + 1, 12})
    lengths = [(query_len, seq_len) for query_len in (1, 3, 5) for seq_len in sizes]
    tokens = [(randn(query_len, 1, 4), *randn(2, seq_len // key_unit, 1, 4)) for query_len, seq_len in lengths]
    rows = [[0 if seq_len >= key_unit else -1] for query_len, seq_len in lengths for _ in range(query_len)]
    selected = torch.nn.functional.pad(torch.tensor([rows], dtype=torch.int32), (0, 0, 0, 8))
    for of_selection in ({}, {"selection_unit": 2, "selected": selected}):
        call = sharing(paged_call, tokens, [seq_len for _, seq_len in lengths], key_unit=key_unit, **of_selection)
        for request, (query_len, seq_len) in zip(paged_requests(*call, torch.float64), lengths, strict=True):
            seen = [
                [
                    all(token <= seq_len - query_len + i for token in range(key * key_unit, (key + 1) * key_unit))
                    and (not of_selection or key in (0, 1))
                    for key in range(seq_len // key_unit)
                ]
                for i in range(query_len)
            ]
            assert request.visible.tolist() == seen, (query_len, seq_len)


def test_two_sources_are_one_softmax_over_both(paged_call, randn):
    """The tokens of a window and keys of four tokens, merged, are attention over all these keys with one sink."""
    tokens, shared = randn(2, 9, 1, 4), randn(2, 2, 1, 4)
    q, sinks = randn(3, 2, 4), torch.tensor([0.5, -1.0])
    in_window = paged_call([(q, *tokens)], window=(2, -1), sinks=sinks, scale=0.5)
    in_keys = sharing(paged_call, [(q, *shared)], [9], key_unit=4, scale=0.5)
    states = []
    for call in (in_window, in_keys):
        out, lse = torch.zeros(len(call[0]), 2, 4), torch.zeros(2, len(call[0]))
        attn_reference.paged_attention(*call, out=out, lse=lse)
        states += [out, lse]
    merged = attn_reference.merge_attn_states(*states)
    for i, p in enumerate((6, 7, 8)):
        key, value = (torch.cat([x[p - 2 : p + 1, 0], y[: (p + 1) // 4, 0]]) for x, y in zip(tokens, shared, strict=True))
        for h in range(2):
            weights = torch.softmax(torch.cat([0.5 * key @ q[i, h], sinks[h : h + 1]]), 0)
            torch.testing.assert_close(merged[i, h], weights[:-1] @ value)


@pytest.mark.parametrize("selection_unit", [1, 2, 3, 5])
def test_each_kv_head_has_its_own_selection(selection_unit, paged_call, randn):
    """Two heads of a KV head share its selection. Each query sees the keys of its units, up to its own position."""
    units = torch.tensor([[[0, -1], [-1, 1]], [[1, 0], [-7, -1]]]).int()
    tokens = [(randn(2, 4, 4), randn(7, 2, 4), randn(7, 2, 4))]
    selected = torch.nn.functional.pad(units, (0, 0, 0, 8))
    (request,) = paged_requests(*paged_call(tokens, selection_unit=selection_unit, selected=selected), torch.float64)
    for head, query, key in itertools.product(range(4), range(2), range(7)):
        sees_it = key <= 5 + query and key // selection_unit in units[head // 2, query].tolist()
        assert bool(request.visible[head, query, key]) == sees_it, (head, query, key)
    for kv_head in range(2):
        assert torch.equal(request.seen[:, kv_head], request.visible[2 * kv_head].any(0))


def test_a_position_without_a_query_selects_nothing_that_is_known(paged_call, randn):
    tokens = [(randn(2, 1, 4), randn(7, 1, 4), randn(7, 1, 4))]
    selected = torch.zeros(1, 10, 1, dtype=torch.int32)
    _, _, layer, batch = paged_call(tokens, selection_unit=2, selected=selected)
    with pytest.raises(ContractError, match=r"^query_positions\[1\]: got 4, expected the position of one of the 2 queries"):
        visible(torch.tensor([5, 4]), torch.arange(7), layer, batch, 0)


def larger(qq_bias):
    """qq_bias in the corner of a larger [Q, Q]. The rest belongs to no query, and its numbers would show in a result."""
    bias = torch.full((8, 8), -1e30)
    bias[:4, :4] = qq_bias
    return bias


def test_ranges_belong_to_a_request(paged_call, randn):
    tokens = [(randn(3, 1, 4), randn(3, 1, 4), randn(3, 1, 4)) for _ in range(2)]
    ranges = torch.tensor([[[0, 1]], [[1, 2]]], dtype=torch.int32)
    first, second = paged_requests(*paged_call(tokens, bidirectional_ranges=ranges), torch.float64)
    assert first.visible.int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert second.visible.int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_no_ranges_at_all(paged_call, randn):
    tokens = [(randn(3, 1, 4), randn(3, 1, 4), randn(3, 1, 4))]
    (request,) = paged_requests(
        *paged_call(tokens, bidirectional_ranges=torch.zeros(1, 0, 2, dtype=torch.int32)), torch.float64
    )
    assert torch.equal(request.visible, torch.ones(3, 3).tril().bool())


@pytest.mark.parametrize("sink_tokens", [0, 2])
@pytest.mark.parametrize("chunked_local", [None, 2])
@pytest.mark.parametrize("window", WINDOWS)
def test_encoders_look_both_ways(window, chunked_local, sink_tokens, varlen_call, randn):
    tokens = [(randn(n, 1, 4), randn(n, 1, 4), randn(n, 1, 4)) for n in range(6)]
    rules = Rules(window=window, chunked_local=chunked_local, sink_tokens=sink_tokens)
    call = varlen_call(tokens, window=window, chunked_local=chunked_local, sink_tokens=sink_tokens)
    requests = list(varlen_requests(*call, torch.float64))
    assert [request.index for request in requests] == [1, 2, 3, 4, 5]
    for request in requests:
        assert torch.equal(request.visible, truth_table(request.index, request.index, rules))


def test_thousands_of_ranges_fit_in_memory():
    """Ranges are laid over the mask one by one: all at once they would be a tensor of billions of elements."""
    p = torch.arange(1000)
    seen = in_range(p[:, None], p[None], torch.arange(1000).repeat(2, 2).T, -1)
    assert torch.equal(seen, torch.eye(1000, dtype=torch.bool))
