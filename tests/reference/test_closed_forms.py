"""Calls whose result is known without computing attention, and what a call must leave alone."""

import math

import pytest
import torch
from attn_contract import FLOAT8_DTYPES, AttentionType, Layout
from attn_reference import attend, attention, paged_attention, paged_requests, quantize, varlen_attention

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def attend_exactly(call):
    """Attention of each request of a paged call, in float64."""
    return [attend(request, call.layer) for request in paged_requests(*call, torch.float64)]


def lse_of(call):
    lse = torch.full((call.q.shape[1], len(call.q)), torch.nan)
    paged_attention(*call, lse=lse)
    return lse


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_logits_give_the_mean_of_the_visible_values(dtype, paged_call):
    """The values are small integers: sums are exact, so the last rounding is the only one."""
    value = torch.arange(-8, 8, dtype=dtype).reshape(8, 1, 2)
    query, key = torch.zeros(3, 2, 2, dtype=dtype), torch.ones(8, 1, 2, dtype=dtype)
    out = paged_attention(*paged_call([(query, key, value)]), precision=torch.float64)
    for i, seen in enumerate((6, 7, 8)):
        expected = (value[:seen].double().sum(0) / seen).to(dtype)
        assert torch.equal(out[i], expected.expand(2, 2))


def test_one_hot_values_give_the_weights(paged_call, randn):
    """Channel j of the output is then the weight of key j."""
    query, key, value = randn(3, 2, 8), randn(8, 1, 8), torch.eye(8).unsqueeze(1)
    (result,) = attend_exactly(paged_call([(query, key, value)]))
    torch.testing.assert_close(result.out, result.weights.transpose(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales_that_are_not_positive(scale, paged_call):
    query, key = torch.ones(1, 1, 2), torch.tensor([0.0, 2.0]).view(2, 1, 1).expand(2, 1, 2)
    (result,) = attend_exactly(paged_call([(query, key, key)], scale=scale))
    first = 1 / (1 + math.exp(4 * scale))
    assert result.weights.flatten().tolist() == pytest.approx([first, 1 - first], rel=1e-14)


def test_logits_beyond_the_range_of_exp(paged_call):
    """exp(800) overflows even in float64, unless the maximum is subtracted. -800 alone would underflow to 0 / 0."""
    key = torch.tensor([1.0, -1.0]).view(2, 1, 1)
    for sign in (1, -1):
        (result,) = attend_exactly(paged_call([(sign * torch.ones(1, 1, 1), key, key)], scale=800.0))
        assert result.out.item() == sign
        assert result.lse.item() == 800
    (alone,) = attend_exactly(paged_call([(torch.ones(1, 1, 1), key[1:], key[1:])], scale=800.0))
    assert (alone.out.item(), alone.lse.item()) == (-1, -800)


def test_a_sink_takes_its_share_once_per_row(paged_call):
    """Uniform logits 0 over n keys and a sink of log(2): the values keep n / (n + 2) of the weight."""
    query, key, value = torch.zeros(3, 1, 4), torch.ones(4, 1, 4), torch.ones(4, 1, 4)
    (result,) = attend_exactly(paged_call([(query, key, value)], sinks=torch.tensor([math.log(2)])))
    keys = torch.tensor([2, 3, 4], dtype=torch.float64)
    torch.testing.assert_close(result.out[:, 0, 0], keys / (keys + 2), rtol=1e-7, atol=0)
    torch.testing.assert_close(result.lse[0], torch.log(keys + 2), rtol=1e-7, atol=0)


def test_a_very_large_sink_leaves_nothing(paged_call, randn):
    call = paged_call([(randn(2, 2, 4), randn(5, 1, 4), randn(5, 1, 4))], sinks=torch.full((2,), 1e5))
    assert torch.equal(paged_attention(*call)[:2], torch.zeros(2, 2, 4))
    assert torch.equal(lse_of(call)[:, :2], torch.full((2, 2), 1e5))


@pytest.mark.parametrize("sinks", [torch.full((2,), -torch.inf), torch.full((2,), -1e4)])
def test_a_sink_of_minus_infinity_or_far_below_is_none(sinks, paged_call, randn):
    tokens = [(randn(2, 2, 4), randn(5, 1, 4), randn(5, 1, 4))]
    with_sinks, without = paged_call(tokens, sinks=sinks), paged_call(tokens)
    assert torch.equal(paged_attention(*with_sinks), paged_attention(*without))
    assert torch.equal(lse_of(with_sinks)[:, :2], lse_of(without)[:, :2])


def test_sinks_belong_to_query_heads(paged_call, randn):
    tokens = [(randn(2, 4, 4), randn(5, 2, 4), randn(5, 2, 4))]
    plain = paged_attention(*paged_call(tokens))
    sinks = torch.tensor([-torch.inf, -torch.inf, 1e5, -torch.inf], dtype=torch.bfloat16)
    out = paged_attention(*paged_call(tokens, sinks=sinks))
    assert torch.equal(out[:2, [0, 1, 3]], plain[:2, [0, 1, 3]])
    assert not out[:2, 2].any()


def test_causality_is_a_property_of_a_request(paged_call, randn):
    tokens = [(randn(3, 1, 4), randn(5, 1, 4), randn(5, 1, 4)) for _ in range(2)]
    mixed = paged_attention(*paged_call(tokens, causal=[True, False]))
    assert torch.equal(mixed[:3], paged_attention(*paged_call(tokens, causal=True))[:3])
    assert torch.equal(mixed[3:6], paged_attention(*paged_call(tokens, causal=False))[3:6])
    assert not torch.equal(mixed[3:6], paged_attention(*paged_call(tokens, causal=True))[3:6])


@pytest.mark.parametrize("query_len", [1, 3])
def test_cross_attention_sees_every_key(query_len, paged_call):
    """A causal mask would be invisible at query_len 1 (vLLM #38450)."""
    value = torch.arange(8.0).view(8, 1, 1)
    query, key = torch.zeros(query_len, 1, 1), torch.zeros(8, 1, 1)
    call = paged_call([(query, key, value)], attn_type=AttentionType.ENCODER_DECODER, causal=False)
    assert torch.equal(paged_attention(*call)[:query_len], torch.full((query_len, 1, 1), 3.5))


@pytest.mark.parametrize("sink", [None, -torch.inf, -2.0, 3.0])
def test_without_keys_the_output_is_zero_and_the_lse_the_sink(sink, paged_call, randn):
    sinks = None if sink is None else torch.tensor([sink, sink])
    call = paged_call([(randn(2, 2, 4), randn(0, 1, 4), randn(0, 1, 4))], sinks=sinks)
    assert torch.equal(paged_attention(*call), torch.zeros(4, 2, 4))
    assert torch.equal(lse_of(call)[:, :2], torch.full((2, 2), -torch.inf if sink is None else sink))


@pytest.mark.parametrize("flat", [False, True])
def test_rows_of_no_request_are_untouched(flat, paged_call, randn):
    """A request without a query stands between two others, and owns no row."""
    tokens = [(randn(q, 2, 4), randn(s, 1, 4), randn(s, 1, 4)) for q, s in ((2, 3), (0, 6), (1, 1))]
    call = paged_call(tokens)
    out = torch.full((5, 8) if flat else (5, 2, 4), torch.nan)
    lse = torch.full((2, 5), torch.nan)
    assert paged_attention(*call, out=out, lse=lse) is out
    assert out[:3].isfinite().all()
    assert lse[:, :3].isfinite().all()
    assert out[3:].isnan().all()
    assert lse[:, 3:].isnan().all()
    assert torch.equal(paged_attention(*call)[3:], torch.zeros(2, 2, 4))


def test_outputs_and_queries_of_any_stride(paged_call, randn):
    """q is a slice of a fused qkv tensor; out and lse are slices of wider buffers, whose other elements stay."""
    call = paged_call([(randn(3, 2, 4), randn(5, 1, 4), randn(5, 1, 4))])
    qkv, wide, tall = randn(5, 4, 4), torch.zeros(5, 3, 4), torch.zeros(4, 5)
    qkv[:, :2] = call.q
    out, lse = wide[:, 1:], tall[::2]
    paged_attention(qkv[:, :2], *call[1:], out=out, lse=lse)
    assert torch.equal(out, paged_attention(*call))
    assert torch.equal(lse[:, :3], lse_of(call)[:, :3])
    assert not wide[:, 0].any()
    assert not tall[1::2].any()


def test_layouts_do_not_change_the_result(paged_call, randn):
    tokens = [(randn(q, 4, 4), randn(s, 2, 4), randn(s, 2, 4)) for q, s in ((3, 9), (1, 4))]
    expected = paged_attention(*paged_call(tokens))
    for layout in Layout:
        if not (layout.has_inline_scales or layout.has_latent_value):
            assert torch.equal(paged_attention(*paged_call(tokens, layout=layout)), expected), layout


@pytest.mark.parametrize("kv_cache_dtype", FLOAT8_DTYPES)
def test_fixed_scales_of_keys_and_of_values(kv_cache_dtype, paged_call):
    """All stored numbers are 1: the output then shows which head's v_scale was used, and the logits which head's k_scale."""
    query, ones = torch.ones(1, 4, 1), torch.ones(3, 2, 1)
    scales = {"k_scale": torch.tensor([0.5, 2.0]), "v_scale": torch.tensor([8.0, 32.0])}
    key, value = (ones * scale[:, None] for scale in scales.values())
    call = paged_call([(query, key, value)], kv_cache_dtype=kv_cache_dtype, **scales)
    stored = call.kv_cache.view(torch.uint8)
    assert (
        stored[stored != 0xFF].unique().tolist()
        == quantize(torch.ones(1), torch.ones(1), kv_cache_dtype).view(torch.uint8).tolist()
    )
    (result,) = attend_exactly(call)
    assert result.out.flatten().tolist() == pytest.approx([8, 8, 32, 32], rel=1e-14)
    assert result.logits[:, 0, 0].tolist() == [0.5, 0.5, 2, 2]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
@pytest.mark.parametrize("shape", [(5, 2, 4), (5, 8)])
def test_a_float8_output_is_the_quantized_output(shape, dtype, precision, paged_call, randn):
    """The LSE is not scaled, and rows that no request owns are not written."""
    tokens = [(randn(3, 2, 4).bfloat16(), randn(6, 1, 4).bfloat16(), randn(6, 1, 4).bfloat16())]
    scale = torch.tensor([0.01])
    call, plain = paged_call(tokens, output_scale=scale), paged_call(tokens)
    out, lse = torch.zeros(shape, dtype=torch.uint8).view(dtype), torch.full((2, 5), torch.nan)
    assert paged_attention(*call, out=out, lse=lse, precision=precision) is out
    (request,) = paged_requests(*plain, precision)
    expected = attend(request, plain.layer)
    written = out.view(5, 2, 4).view(torch.uint8)
    assert torch.equal(written[:3], quantize(expected.out.float(), scale, dtype).view(torch.uint8))
    assert not written[3:].any()
    torch.testing.assert_close(lse[:, :3], expected.lse.float(), rtol=0, atol=0)


def test_a_float8_output_is_rounded_once(paged_call):
    """The mean of 31 values of 17 and one of 18 is just above 17, the midpoint of float8's 16 and 18. Rounded to bfloat16
    first, it would be 17."""
    value = torch.full((32, 1, 1), 17.0, dtype=torch.bfloat16)
    value[5] = 18
    zeros = torch.zeros(32, 1, 1, dtype=torch.bfloat16)
    out = torch.zeros(3, 1, 1, dtype=torch.uint8).view(torch.float8_e4m3fn)
    paged_attention(*paged_call([(zeros[:1], zeros, value)], output_scale=torch.ones(1)), out=out)
    assert out[0].item() == 18


def test_a_float8_output_of_an_encoder(varlen_call):
    tokens = [(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4), torch.full((3, 1, 4), 6.0))]
    out = torch.zeros(5, 1, 4, dtype=torch.uint8).view(torch.float8_e4m3fn)
    varlen_attention(*varlen_call(tokens, output_scale=torch.tensor(0.5)), out=out)
    assert out.float()[:3].eq(12).all()


def test_keys_that_no_query_sees_may_hold_nan(paged_call, randn):
    """An engine recycles the blocks that a sliding window has left (vLLM #30887)."""
    query, key, value = randn(2, 2, 4), randn(9, 1, 4), randn(9, 1, 4)
    expected = paged_attention(*paged_call([(query, key, value)], window=(2, 2)))
    key[:5], value[:5] = torch.nan, torch.inf
    assert torch.equal(paged_attention(*paged_call([(query, key, value)], window=(2, 2))), expected)


def test_long_prompts_are_cut_without_a_trace(paged_call, randn, monkeypatch):
    tokens, ranges = [(randn(7, 2, 4), randn(9, 1, 4), randn(9, 1, 4))], torch.tensor([[[1, 5]]], dtype=torch.int32)
    rules = {"alibi_slopes": randn(2), "chunked_local": 4, "sink_tokens": 1, "window": (1, 0), "logits_soft_cap": 1.0}
    call = paged_call(tokens, bidirectional_ranges=ranges, qq_bias=randn(10, 10), sinks=randn(2), **rules)
    whole, whole_lse = paged_attention(*call, precision=torch.float64), lse_of(call)
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", 3)
    assert [request.rows for request in paged_requests(*call, torch.float64)] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    torch.testing.assert_close(paged_attention(*call, precision=torch.float64), whole, rtol=2**-23, atol=0)
    torch.testing.assert_close(lse_of(call)[:, :7], whole_lse[:, :7])


@pytest.mark.parametrize("attn_type", [AttentionType.ENCODER, AttentionType.ENCODER_ONLY])
def test_encoders_attend_both_ways_within_a_request(attn_type, varlen_call):
    first_values = {3: 0, 0: 0, 2: 10}
    requests = [
        (torch.zeros(n, 2, 1), torch.ones(n, 1, 1), torch.arange(float(first), first + n).view(n, 1, 1))
        for n, first in first_values.items()
    ]
    call = varlen_call(requests, attn_type=attn_type)
    out, lse = torch.full((7, 2), torch.nan), torch.full((2, 7), torch.nan)
    varlen_attention(*call, out=out, lse=lse)
    assert out[:5, 1].tolist() == [1, 1, 1, 10.5, 10.5]
    torch.testing.assert_close(lse[0, :5], torch.tensor([3.0, 3, 3, 2, 2]).log())
    assert out[5:].isnan().all()
    assert lse[:, 5:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_precision_is_that_of_the_arithmetic_only(dtype, paged_call, randn):
    """The bound has two terms: one rounding of the output, and the float32 roundings in the logits and the sum."""
    query, key, value = (x.to(dtype) for x in (randn(3, 2, 16), randn(40, 1, 16), randn(40, 1, 16)))
    call = paged_call([(query, key, value)])
    single, double = paged_attention(*call), paged_attention(*call, precision=torch.float64)
    assert single.dtype == double.dtype == dtype
    largest_logit = call.layer.scale * query.float().norm(dim=-1).max() * key.float().norm(dim=-1).max()
    arithmetic = 2**-24 * value.abs().max().item() * (2 * (16 + 2) * largest_logit.item() + 40)
    torch.testing.assert_close(single[:3], double[:3], rtol=torch.finfo(dtype).eps, atol=arithmetic)
