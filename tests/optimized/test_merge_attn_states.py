"""Merging attention over disjoint keys."""

import attn_optimized
import pytest
import torch


@pytest.fixture
def states(device):
    """[T, H, D] and [H, T], twice, strided."""
    torch.manual_seed(0)
    outs = torch.randn(2, 37, 3, 50, device=device)[..., :40]
    lses = torch.randn(2, 3, 41, device=device)[..., :37] * 3
    return outs[0], lses[0], outs[1], lses[1]


def test_is_attention_over_the_union(paged_call):
    """The keys of a request, cut in two at an odd place."""
    call = paged_call([5], [101], causal=False)
    keys = call.kv_cache.movedim(1, 0)[:, call.batch.block_table[0, :7].long()].flatten(1, 2)[:, :101]
    q, layer = call.q[:5].double(), call.layer

    def attend(k, v):
        k, v = (x.double().repeat_interleave(2, dim=1) for x in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q, k) * layer.scale
        return torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).float(), logits.logsumexp(-1).float()

    out, lse = attend(*keys)
    merged_lse = torch.empty_like(lse)
    merged = attn_optimized.merge_attn_states(*attend(*keys[:, :37]), *attend(*keys[:, 37:]), lse=merged_lse)
    torch.testing.assert_close(merged, out, rtol=0, atol=2**-20 * float(keys.abs().max()))
    torch.testing.assert_close(merged_lse, lse, rtol=0, atol=2**-20)


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
