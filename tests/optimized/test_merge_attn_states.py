"""Merging attention over disjoint keys."""

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract.validation.values import LARGEST_LOGIT


@pytest.fixture
def states(device):
    """[T, H, D] and [H, T], twice, strided."""
    torch.manual_seed(0)
    outs = torch.randn(2, 37, 3, 50, device=device)[..., :40]
    lses = torch.randn(2, 3, 41, device=device)[..., :37] * 3
    return outs[0], lses[0], outs[1], lses[1]


def test_is_what_the_reference_computes(states):
    lse, expected_lse = torch.empty(2, 3, 37)
    out = attn_optimized.merge_attn_states(*states, lse=lse.to(states[1].device))
    expected = attn_reference.merge_attn_states(*(state.cpu() for state in states), lse=expected_lse)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=2**-20 * float(expected.abs().max()))


def test_an_empty_side_changes_nothing(states):
    out_a, lse_a, out_b, lse_b = states
    lse_a[:, :5] = lse_b[:, 5:9] = -torch.inf
    out_a[:5] = out_b[5:9] = torch.nan
    lse = torch.empty(3, 37, device=lse_a.device)
    out = attn_optimized.merge_attn_states(*states, lse=lse)
    assert torch.equal(out[:5], out_b[:5])
    assert torch.equal(out[5:9], out_a[5:9])
    assert torch.equal(lse[:, :5], lse_b[:, :5])
    assert torch.equal(lse[:, 5:9], lse_a[:, 5:9])


@pytest.mark.parametrize("merge", [attn_optimized.merge_attn_states, attn_reference.merge_attn_states])
def test_a_side_of_the_largest_lse_takes_all_weight_and_of_the_least_none(merge, states):
    """As a side has them where a sink of that size is its own."""
    out_a, lse_a, out_b, lse_b = (state.cpu() for state in states) if merge is attn_reference.merge_attn_states else states
    lse_a[0], lse_a[1], lse_a[2] = LARGEST_LOGIT, -LARGEST_LOGIT, -LARGEST_LOGIT
    lse_b[2] = -LARGEST_LOGIT
    lse = torch.empty(3, 37, device=lse_a.device)
    out = merge(out_a, lse_a, out_b, lse_b, lse=lse)
    assert torch.equal(out[:, 0], out_a[:, 0])
    assert torch.equal(out[:, 1], out_b[:, 1])
    torch.testing.assert_close(out[:, 2], (out_a[:, 2] + out_b[:, 2]) / 2, rtol=0, atol=2**-21)
    assert torch.equal(lse, torch.stack([lse_a[0], lse_b[1], lse_a[2]]))


def test_two_empty_sides_are_an_empty_one(states):
    out_a, lse_a, out_b, lse_b = states
    for tensor, value in ((out_a, torch.nan), (out_b, torch.nan), (lse_a, -torch.inf), (lse_b, -torch.inf)):
        tensor.fill_(value)
    lse = torch.empty(3, 37, device=lse_a.device)
    assert not attn_optimized.merge_attn_states(*states, lse=lse).any()
    assert (lse == -torch.inf).all()


def test_in_place(states):
    expected_lse = torch.empty(3, 37, device=states[1].device)
    expected = attn_optimized.merge_attn_states(*states, lse=expected_lse)
    out_a, lse_a, _, _ = states
    assert attn_optimized.merge_attn_states(*states, out=out_a, lse=lse_a) is out_a
    assert torch.equal(out_a, expected)
    assert torch.equal(lse_a, expected_lse)


def test_rounds_once_to_the_output_dtype(states, dtype):
    out_a, lse_a, out_b, lse_b = states
    out_a, out_b = out_a.to(dtype), out_b.to(dtype)
    exact = attn_optimized.merge_attn_states(out_a.float(), lse_a, out_b.float(), lse_b)
    assert torch.equal(attn_optimized.merge_attn_states(out_a, lse_a, out_b, lse_b), exact.to(dtype))


def test_no_token(device):
    out, lse = torch.empty(0, 3, 8, device=device), torch.empty(3, 0, device=device)
    assert attn_optimized.merge_attn_states(out, lse, out, lse).shape == (0, 3, 8)


def test_rows_without_a_prefix_are_the_suffix_whatever_the_prefix_holds(states):
    _, lse_a, out_b, lse_b = states
    whole_lse, lse = torch.empty(2, 3, 37, device=lse_a.device)
    whole = attn_optimized.merge_attn_states(*states, lse=whole_lse)
    out = attn_optimized.merge_attn_states(*states, lse=lse, prefill_tokens_with_context=9)
    assert torch.equal(out, torch.cat([whole[:9], out_b[9:]]))
    assert torch.equal(lse, torch.cat([whole_lse[:, :9], lse_b[:, 9:]], dim=1))
    assert torch.equal(attn_optimized.merge_attn_states(*states, prefill_tokens_with_context=0), out_b)


@pytest.mark.parametrize("empty", [torch.inf, torch.nan])
def test_an_lse_of_infinity_or_nan_is_an_empty_side(empty, states):
    out_a, lse_a, out_b, lse_b = states
    lse_a[:, :5], out_a[:5] = empty, torch.nan
    lse = torch.empty(3, 37, device=lse_a.device)
    out = attn_optimized.merge_attn_states(*states, lse=lse)
    assert torch.equal(out[:5], out_b[:5])
    assert torch.equal(lse[:, :5], lse_b[:, :5])


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_a_float8_output_holds_the_merged_one_over_the_scale(float8, states):
    scale = torch.tensor(0.3, device=states[0].device)
    merged = attn_optimized.merge_attn_states(*states)
    out = torch.empty(merged.shape, device=merged.device, dtype=float8)
    attn_optimized.merge_attn_states(*states, out=out, output_scale=scale)
    right = attn_reference.quantize(merged.cpu(), scale.cpu(), float8)
    assert torch.equal(out.cpu().view(torch.uint8), right.view(torch.uint8))
