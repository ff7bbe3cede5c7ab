"""Soft cap, ALiBi, qq_bias and sinks: logits that are known in closed form, and the order in which the rules apply."""

import dataclasses
import math

import pytest
import torch
from attn_reference import attend, paged_attention, paged_requests, varlen_requests

ONE_HEAD = torch.ones(1)


def only_request(call):
    (request,) = paged_requests(*call, torch.float64)
    return request, attend(request, call.layer)


def scores_as(values):
    """A request with one query, whose product with key j is values[j]. Each key has another value."""
    key = torch.tensor(values).view(-1, 1, 1)
    return torch.ones(1, 1, 1), key, torch.arange(1.0, len(values) + 1).view(-1, 1, 1)


def softmax(logits, sink=-math.inf):
    exponentials = [math.exp(logit) for logit in logits]
    total = sum(exponentials) + math.exp(sink)
    return [x / total for x in exponentials], math.log(total)


def assert_logits(result, expected, sink=-math.inf):
    weights, lse = softmax(expected, sink)
    assert result.logits.flatten().tolist() == pytest.approx(expected, rel=1e-13)
    assert result.weights.flatten().tolist() == pytest.approx(weights, rel=1e-13)
    assert result.lse.item() == pytest.approx(lse, rel=1e-13)


def test_the_cap_applies_after_the_scale(paged_call):
    """The cap applies after the scale: 2 * 3 = 6 is capped at 5."""
    _, result = only_request(paged_call([scores_as([3.0, -0.5, 0.0])], scale=2.0, logits_soft_cap=5.0))
    assert result.scores.flatten().tolist() == [6, -1, 0]
    assert_logits(result, [5 * math.tanh(6 / 5), 5 * math.tanh(-1 / 5), 0])


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_a_float8_query_is_its_number_times_the_scale_of_its_kv_head(float8, paged_call, randn):
    """Every finite code once, in four heads; torch's own conversion says what number it is."""
    codes = torch.arange(256, dtype=torch.uint8).view(float8)
    numbers = codes[codes.float().isfinite()][:252].float().view(1, 4, 63)
    scales = {"k_scale": torch.ones(1), "v_scale": torch.ones(1), "q_scale": torch.tensor([0.375, 5.0])}
    call = paged_call([(numbers, randn(3, 2, 63), randn(3, 2, 63))], kv_cache_dtype=float8, **scales)
    assert call.q.dtype == float8
    request, result = only_request(call)
    query = numbers.double() * torch.tensor([0.375, 0.375, 5.0, 5.0]).double()[:, None]
    assert torch.equal(request.query, query)
    assert torch.equal(result.out, attend(dataclasses.replace(request, query=query), call.layer).out)


def test_a_soft_cap_of_zero_is_none(paged_call):
    _, result = only_request(paged_call([scores_as([3.0, -0.5])], scale=2.0, logits_soft_cap=0.0))
    assert_logits(result, [6, -1])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("cap", [torch.finfo(torch.float32).tiny, 0.01, 50.0])
def test_a_saturated_soft_cap(cap, precision, paged_call):
    """A quotient of exponentials is inf / inf from abs(score / cap) = 88 on in float32 (vLLM #56578)."""
    call = paged_call([scores_as([3e4, -3e4, 0.0])], scale=1.0, logits_soft_cap=cap)
    (request,) = paged_requests(*call, precision)
    result = attend(request, call.layer)
    expected = torch.tensor([cap, -cap, 0.0], dtype=precision)
    torch.testing.assert_close(result.logits.flatten(), expected, rtol=torch.finfo(precision).eps, atol=0)


def test_a_hidden_key_is_not_capped(paged_call):
    """Capping after masking would turn -inf into the logit -c. Here half of the weight would then go to the hidden key."""
    call = paged_call([scores_as([0.0, 9.0])], scale=1.0, logits_soft_cap=1e-3, window=(1, 0), qq_bias=None)
    hidden = torch.zeros(8, 8)
    hidden[0, 0] = -torch.inf
    by_window = paged_call([scores_as([9.0, 0.0])], scale=1.0, logits_soft_cap=1e-3, window=(0, 0))
    by_bias = paged_call([scores_as([0.0])], scale=1.0, logits_soft_cap=1e-3, qq_bias=hidden)
    assert only_request(call)[1].weights.min() > 0.49
    assert only_request(by_window)[1].weights.flatten().tolist() == [0, 1]
    _, result = only_request(by_bias)
    assert (result.out.item(), result.lse.item()) == (0, -math.inf)


def test_alibi_is_a_distance_from_the_query(paged_call):
    """Two queries at positions 2 and 3 of four keys. The two heads have different slopes, one of them negative."""
    zeros = torch.zeros(2, 2, 1), torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    slopes = torch.tensor([0.5, -2.0])
    request, result = only_request(paged_call([zeros], causal=False, alibi_slopes=slopes))
    distances = torch.tensor([[2, 1, 0, 1], [3, 2, 1, 0]], dtype=torch.float64)
    assert torch.equal(result.logits, torch.stack([-0.5 * distances, 2 * distances]))
    assert torch.equal(request.bias, result.bias)
    assert request.query_positions.tolist() == [2, 3]


def test_alibi_before_the_sequence(paged_call):
    """With more queries than keys, the first query stands at -1: one position from key 0 and two from key 1."""
    zeros = torch.zeros(3, 1, 1), torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    _, result = only_request(paged_call([zeros], causal=False, alibi_slopes=ONE_HEAD))
    assert result.logits[0].tolist() == [[-1, -2], [0, -1], [-1, 0]]


def test_alibi_in_an_encoder(varlen_call):
    zeros = torch.zeros(3, 1, 1), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    call = varlen_call([zeros], alibi_slopes=ONE_HEAD)
    (request,) = varlen_requests(*call, torch.float64)
    assert attend(request, call.layer).logits[0].tolist() == [[0, -1, -2], [-1, 0, -1], [-2, -1, 0]]


def test_alibi_is_neither_scaled_nor_capped(paged_call):
    call = paged_call([scores_as([1.0, 1.0, 1.0])], scale=3.0, logits_soft_cap=2.0, alibi_slopes=10 * ONE_HEAD)
    capped = 2 * math.tanh(3 / 2)
    assert_logits(only_request(call)[1], [capped - 20, capped - 10, capped])


def test_qq_bias_applies_to_the_tokens_of_the_step(paged_call):
    """Two queries follow three keys of context. The bias starts at key 3; its further rows and columns belong to no token."""
    bias = torch.arange(64.0).view(8, 8)
    zeros = torch.zeros(2, 1, 1), torch.zeros(5, 1, 1), torch.ones(5, 1, 1)
    _, result = only_request(paged_call([zeros], causal=False, qq_bias=bias, logits_soft_cap=1.0))
    assert result.logits[0].tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 8, 9]]


def test_qq_bias_of_more_queries_than_keys(paged_call):
    """The two keys are the last two of the step's three tokens: columns 1 and 2."""
    zeros = torch.zeros(3, 1, 1), torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    _, result = only_request(paged_call([zeros], causal=False, qq_bias=torch.arange(64.0).view(8, 8)))
    assert result.logits[0].tolist() == [[1, 2], [9, 10], [17, 18]]


def test_a_tree_of_drafts(paged_call, randn):
    """Tokens 1 and 2 continue token 0, and token 3 continues token 1. Each attends as if its branch were the whole sequence."""
    query, key, value = randn(4, 2, 4), randn(7, 1, 4), randn(7, 1, 4)
    branches = {0: [0], 1: [0, 1], 2: [0, 2], 3: [0, 1, 3]}
    tree = torch.full((8, 8), -torch.inf)
    for i, ancestors in branches.items():
        tree[i, ancestors] = 0
    together = paged_attention(*paged_call([(query, key, value)], qq_bias=tree), precision=torch.float64)
    for i, ancestors in branches.items():
        keys = torch.tensor([0, 1, 2, *(3 + a for a in ancestors)])
        alone = paged_call([(query[i : i + 1], key[keys], value[keys])])
        torch.testing.assert_close(together[i], paged_attention(*alone, precision=torch.float64)[0], rtol=2**-23, atol=1e-9)


def test_a_key_that_qq_bias_hides_from_all_queries_may_hold_anything(paged_call):
    bias = torch.zeros(8, 8)
    bias[:, 1] = -torch.inf
    query, key, value = torch.zeros(2, 1, 1), torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    key[3], value[3] = torch.inf, torch.nan
    out = paged_attention(*paged_call([(query, key, value)], causal=False, qq_bias=bias))
    assert out[:2].flatten().tolist() == [1, 1]


def test_alibi_and_qq_bias_add_up(paged_call):
    zeros = torch.zeros(2, 1, 1), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    _, result = only_request(paged_call([zeros], alibi_slopes=ONE_HEAD, qq_bias=torch.full((8, 8), 5.0)))
    assert result.logits[0].tolist() == [[-1, 5, -math.inf], [-2, 4, 5]]


@pytest.mark.parametrize("sink", [-math.inf, -1.0, 4.0])
def test_a_sink_is_neither_capped_nor_biased(sink, paged_call):
    layer = {"scale": 2.0, "logits_soft_cap": 1.5, "alibi_slopes": 3 * ONE_HEAD, "sinks": torch.tensor([sink])}
    _, result = only_request(paged_call([scores_as([2.0, 1.0])], qq_bias=torch.full((8, 8), 0.25), **layer))
    logits = [1.5 * math.tanh(4 / 1.5) - 3, 1.5 * math.tanh(2 / 1.5) + 0.25]
    assert_logits(result, logits, sink)


def test_without_a_rule_there_is_no_bias(paged_call, randn):
    request, result = only_request(paged_call([(randn(2, 2, 4), randn(3, 1, 4), randn(3, 1, 4))]))
    assert request.bias is None
    assert result.bias is None
    assert torch.equal(result.scores[:, 1], result.logits[:, 1])
