"""The reference against torch.nn.functional.scaled_dot_product_attention, which has no sinks and no empty rows."""

import pytest
import torch
from attn_reference import attend, paged_attention, paged_requests, varlen_attention
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [(1, 1, 1), (4, 2, 8), (6, 1, 80)]
"""H, HK, D"""


def sdpa(query, key, value, **options):
    """[query_len, H, D]: torch's attention of one request, in float64."""
    heads_first = (x.double().transpose(0, 1) for x in (query, key, value))
    return scaled_dot_product_attention(*heads_first, enable_gqa=True, **options).transpose(0, 1)


def assert_agrees(call, requests, expected):
    exact = [attend(request, call.layer).out for request in requests]
    for ours, theirs in zip(exact, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("H", "HK", "D"), SHAPES)
def test_causal_prefills_agree(H, HK, D, paged_call, randn):
    """torch's is_causal aligns to the top left corner, which is the same as ours only where query_len is seq_len."""
    tokens = [(randn(n, H, D), randn(n, HK, D), randn(n, HK, D)) for n in (1, 5, 13)]
    call = paged_call(tokens, scale=0.3)
    assert_agrees(call, paged_requests(*call, torch.float64), [sdpa(*request, is_causal=True, scale=0.3) for request in tokens])


@pytest.mark.parametrize(("H", "HK", "D"), SHAPES)
def test_one_query_over_all_keys(H, HK, D, paged_call, randn):
    tokens = [(randn(1, H, D), randn(n, HK, D), randn(n, HK, D)) for n in (1, 5, 13)]
    call = paged_call(tokens)
    assert_agrees(call, paged_requests(*call, torch.float64), [sdpa(*request) for request in tokens])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (3, 3), (0, 2)])
def test_extend_with_an_explicit_mask(causal, window, paged_call, randn):
    lengths = ((4, 9), (1, 6), (5, 5))
    tokens = [(randn(q, 4, 8), randn(s, 2, 8), randn(s, 2, 8)) for q, s in lengths]
    expected = []
    for request, (query_len, seq_len) in zip(tokens, lengths, strict=True):
        mask = torch.ones(query_len, seq_len, dtype=torch.bool)
        if causal:
            mask = mask.tril(seq_len - query_len)
        if window[0] >= 0:
            mask = mask.triu(seq_len - query_len - window[0])
        if window[1] >= 0:
            mask = mask.tril(seq_len - query_len + window[1])
        expected.append(sdpa(*request, attn_mask=mask))
    call = paged_call(tokens, causal=causal, window=window)
    assert_agrees(call, paged_requests(*call, torch.float64), expected)
    written = paged_attention(*call, precision=torch.float64)[: sum(q for q, _ in lengths)]
    torch.testing.assert_close(written, torch.cat(expected).float(), rtol=2**-23, atol=1e-13)


def test_encoders_agree(varlen_call, randn):
    tokens = [(randn(n, 4, 8), randn(n, 2, 8), randn(n, 2, 8)) for n in (3, 1, 7)]
    written = varlen_attention(*varlen_call(tokens), precision=torch.float64)[:11]
    expected = torch.cat([sdpa(*request) for request in tokens]).float()
    torch.testing.assert_close(written, expected, rtol=2**-23, atol=1e-13)
