"""Merging is attention over the union of two disjoint sets of keys."""

import itertools
import math

import pytest
import torch
from attn_contract import AttentionType, Layer
from attn_reference import Request, attend, merge_attn_parts, merge_attn_states, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

H, HK, D, SCALE = 4, 2, 3, 2.0
U = 2**-24
"""Unit roundoff of float32, the dtype of out and lse."""
MAX_OUT, MAX_LSE = 1, 9
"""Tokens are drawn from [-1, 1]: a logit is at most 6 in absolute value, and 6 + log(13) < 9 for 12 keys and a sink."""


def random_tokens(query_len, seq_len, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((query_len, H, D), (seq_len, HK, D), (seq_len, HK, D))
    return [2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1 for shape in shapes]


def state(query, key, value, seen, sinks=None):
    """(out, lse) of attention to the seen keys, in float32 as a kernel returns them."""
    layer = Layer(num_heads=H, num_kv_heads=HK, head_size=D, scale=SCALE, attn_type=AttentionType.ENCODER, sinks=sinks)
    rows, positions = slice(0, len(query)), torch.arange(len(query))
    attention = attend(Request(0, rows, query, key, value, seen, positions, bias=None), layer)
    return attention.out.float(), attention.lse.float()


def merge(a, b):
    lse = torch.empty_like(a[1])
    return merge_attn_states(*a, *b, lse=lse), lse


def assert_same_state(a, b, roundings):
    """Compare two states that were rounded a number of times.

    Each rounding moves out by U * |out| and lse by U * |lse|. A merge then weights the state wrong by a factor of up to
    1 + U * |lse|, and the outputs that it weights are at most 2 * MAX_OUT apart.
    """
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=roundings * U * (1 + 4 * MAX_LSE) * MAX_OUT)
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=roundings * U * MAX_LSE)


@settings(deadline=None, max_examples=60)
@given(
    query_len=st.integers(0, 4),
    seq_len=st.integers(0, 12),
    with_sinks=st.booleans(),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_split_merges_into_the_whole(query_len, seq_len, with_sinks, seed, data):
    """Each key belongs to one of two parts, which need not be contiguous. The sink joins exactly one part."""
    in_a = torch.tensor(data.draw(st.lists(st.booleans(), min_size=seq_len, max_size=seq_len)), dtype=torch.bool)
    tokens = random_tokens(query_len, seq_len, seed)
    sinks = torch.linspace(-2, 2, H) if with_sinks else None
    everything = torch.ones(query_len, seq_len, dtype=torch.bool)
    merged = merge(state(*tokens, everything & in_a, sinks), state(*tokens, everything & ~in_a))
    assert_same_state(merged, state(*tokens, everything, sinks), roundings=4)


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.integers(0, 2), max_size=12), seed=st.integers(0, 2**16))
def test_merging_is_associative_and_commutative(parts, seed):
    tokens = random_tokens(2, len(parts), seed)
    seen = torch.tensor(parts, dtype=torch.int64).expand(2, -1)
    a, b, c = (state(*tokens, seen == part) for part in range(3))
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    assert_same_state(left, right, roundings=4)
    forth, back = merge(a, b), merge(b, a)
    assert torch.equal(forth[0], back[0])
    assert torch.equal(forth[1], back[1])


def test_each_row_and_head_is_merged_by_itself(randn):
    out_a, out_b = randn(2, 2, 3), randn(2, 2, 3)
    lse_a = torch.tensor([[0.0, -torch.inf], [1.0, 2.0]])
    lse_b = torch.tensor([[-torch.inf, 0.0], [1.0, -torch.inf]])
    out, lse = merge((out_a, lse_a), (out_b, lse_b))
    assert torch.equal(out[0, 0], out_a[0, 0])
    assert torch.equal(out[1, 0], out_b[1, 0])
    assert torch.equal(out[1, 1], out_a[1, 1])
    torch.testing.assert_close(out[0, 1], (out_a[0, 1] + out_b[0, 1]) / 2)
    torch.testing.assert_close(lse, torch.tensor([[0.0, 0.0], [1 + torch.log(torch.tensor(2.0)).item(), 2.0]]))


def test_a_far_larger_side_decides(randn):
    """exp(1000) overflows in float64 too; only differences of LSEs are ever raised."""
    out_a, out_b, lse = randn(3, 2, 4), randn(3, 2, 4), torch.full((2, 3), 1000.0)
    merged_out, merged_lse = merge((out_a, lse), (out_b, -lse))
    assert torch.equal(merged_out, out_a)
    assert torch.equal(merged_lse, lse)


def test_a_merge_may_be_in_place(randn):
    out_a, out_b, lse_a, lse_b = randn(3, 2, 4), randn(3, 2, 4), randn(2, 3), randn(2, 3)
    out, lse = merge((out_a, lse_a), (out_b, lse_b))
    assert merge_attn_states(out_a, lse_a, out_b, lse_b, out=out_a, lse=lse_a) is out_a
    assert torch.equal(out_a, out)
    assert torch.equal(lse_a, lse)


@settings(deadline=None, max_examples=60)
@given(
    num_parts=st.integers(1, 5),
    query_len=st.integers(0, 3),
    seq_len=st.integers(0, 12),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_number_of_parts_merges_into_the_whole(num_parts, query_len, seq_len, seed, data):
    part_of = torch.tensor(data.draw(st.lists(st.integers(0, num_parts - 1), min_size=seq_len, max_size=seq_len)))
    tokens = random_tokens(query_len, seq_len, seed)
    everything = torch.ones(query_len, seq_len, dtype=torch.bool)
    parts = [state(*tokens, everything & (part_of == part)) for part in range(num_parts)]
    assert_same_state(merge_parts(parts), state(*tokens, everything), roundings=2)
    base_2 = [(out, (lse.double() / math.log(2)).float()) for out, lse in parts]
    assert_same_state(merge_parts(base_2, lse_base="2"), state(*tokens, everything), roundings=4)


def merge_parts(parts, **options):
    outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    lse = torch.empty_like(lses[0])
    return merge_attn_parts(outs, lses, lse=lse, **options), lse


@pytest.mark.parametrize("empty", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("content", [0.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_empty_part_is_neutral_whatever_it_and_its_lse_hold(dtype, empty, content, randn):
    """exp(-inf + inf) is NaN: a chunk with no context for one request of a batch (vLLM #39148)."""
    part = randn(5, 2, 3).to(dtype), 100 * randn(2, 5)
    nothing = torch.full((5, 2, 3), content, dtype=dtype), torch.full((2, 5), empty)
    for parts in itertools.permutations([nothing, part, nothing]):
        merged_out, merged_lse = merge_parts(parts)
        assert torch.equal(merged_out, part[0])
        assert torch.equal(merged_lse, part[1])
    for a, b in itertools.permutations([nothing, part]):
        merged_out, merged_lse = merge(a, b)
        assert torch.equal(merged_out, part[0])
        assert torch.equal(merged_lse, part[1])
    for merged_out, merged_lse in (merge_parts([nothing, nothing]), merge(nothing, nothing)):
        assert torch.equal(merged_out, torch.zeros(5, 2, 3, dtype=dtype))
        assert torch.equal(merged_lse, torch.full((2, 5), -torch.inf))


def test_rows_without_a_prefix_are_the_suffix_whatever_the_prefix_holds(randn):
    out_a, out_b, lse_a, lse_b = randn(4, 2, 3), randn(4, 2, 3), randn(2, 4), randn(2, 4)
    whole_lse, lse = torch.empty(2, 4), torch.empty(2, 4)
    whole = merge_attn_states(out_a, lse_a, out_b, lse_b, lse=whole_lse)
    out = merge_attn_states(out_a, lse_a, out_b, lse_b, lse=lse, prefill_tokens_with_context=1)
    assert torch.equal(out, torch.cat([whole[:1], out_b[1:]]))
    assert torch.equal(lse, torch.cat([whole_lse[:, :1], lse_b[:, 1:]], dim=1))


def test_a_float8_output_holds_the_merged_one_over_the_scale(randn):
    parts, scale = [(randn(3, 2, 4), randn(2, 3)) for _ in range(2)], torch.tensor(0.25)
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        expected = quantize(merge(*parts)[0].double(), scale, dtype).view(torch.uint8)
        out = torch.empty(3, 2, 4, dtype=dtype)
        (out_a, lse_a), (out_b, lse_b) = parts
        merge_attn_states(out_a, lse_a, out_b, lse_b, out=out, output_scale=scale)
        assert torch.equal(out.view(torch.uint8), expected)
        merge_attn_parts(
            torch.stack([out_a, out_b]),
            torch.stack([lse_a, lse_b]),
            out=out.view(torch.uint8).zero_().view(dtype),
            output_scale=scale,
        )
        assert torch.equal(out.view(torch.uint8), expected)
