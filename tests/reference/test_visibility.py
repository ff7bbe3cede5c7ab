"""The visibility formula against a truth table in plain Python integers."""

import itertools

import pytest
import torch
from attn_reference import attend, paged_requests, varlen_requests, visible

WINDOWS = list(itertools.product((-1, 0, 1, 3), repeat=2))
LENGTHS = list(itertools.product(range(1, 5), range(6)))


def sees(i: int, j: int, q_len: int, seq_len: int, causal: bool, window: tuple[int, int]) -> bool:
    """Whether query i sees key j, one rule after another."""
    p = (seq_len - q_len) + i
    left, right = window
    return 0 <= j < seq_len and (not causal or j <= p) and (left == -1 or j >= p - left) and (right == -1 or j <= p + right)


def truth_table(q_len: int, seq_len: int, causal: bool, window: tuple[int, int]) -> torch.Tensor:
    rows = [[sees(i, j, q_len, seq_len, causal, window) for j in range(seq_len)] for i in range(q_len)]
    return torch.tensor(rows, dtype=torch.bool).reshape(q_len, seq_len)


def test_the_truth_table_itself():
    """Typed by hand: two queries at positions 2 and 3 of four keys, each with one key to its left."""
    assert truth_table(2, 4, True, (1, 0)).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert truth_table(2, 4, False, (1, -1)).int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
    assert truth_table(3, 2, True, (-1, -1)).int().tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_visible_is_the_formula(causal, window):
    for q_len, seq_len in LENGTHS:
        key_positions = torch.arange(-2, seq_len + 3)
        seen = visible(torch.arange(seq_len - q_len, seq_len), key_positions, seq_len, causal=causal, window=window)
        expected = [[sees(i, j, q_len, seq_len, causal, window) for j in key_positions.tolist()] for i in range(q_len)]
        assert seen.tolist() == expected, (q_len, seq_len)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_zero_exactly_where_a_key_is_not_seen(causal, window, paged_call, randn):
    tokens = [(randn(q_len, 2, 4), randn(seq_len, 1, 4), randn(seq_len, 1, 4)) for q_len, seq_len in LENGTHS]
    requests = list(paged_requests(*paged_call(tokens, causal=causal, window=window), torch.float64))
    assert [request.index for request in requests] == list(range(len(LENGTHS)))
    for request, (q_len, seq_len) in zip(requests, LENGTHS, strict=True):
        expected = truth_table(q_len, seq_len, causal, window)
        attention = attend(request.query, request.key, request.value, request.visible, 0.5)
        assert torch.equal(request.visible, expected)
        assert torch.equal(attention.weights != 0, expected.expand(2, -1, -1))
        assert torch.equal(attention.logits != -torch.inf, expected.expand(2, -1, -1))
        assert torch.equal(attention.lse == -torch.inf, ~expected.any(-1).expand(2, -1))
        assert not attention.out[~expected.any(-1)].any()


@pytest.mark.parametrize("window", WINDOWS)
def test_encoder_windows_look_both_ways(window, varlen_call, randn):
    tokens = [(randn(n, 1, 4), randn(n, 1, 4), randn(n, 1, 4)) for n in range(6)]
    requests = list(varlen_requests(*varlen_call(tokens, window=window), torch.float64))
    assert [request.index for request in requests] == [1, 2, 3, 4, 5]
    for request in requests:
        assert torch.equal(request.visible, truth_table(request.index, request.index, False, window))
