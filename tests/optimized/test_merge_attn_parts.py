"""Merging any number of parts: against the reference, whose arithmetic is float64, and at the edges."""

import math

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract.validation.values import LARGEST_LOGIT

U = 2**-24
"""Unit roundoff of float32."""
T, H, D = 37, 3, 40


def parts(num_parts, device, dtype=torch.float32):
    """Outs [N, T, H, D] and LSEs [N, H, T] with strides of their own, a third of them of empty parts."""
    generator = torch.Generator().manual_seed(num_parts)
    outs = (2 * torch.rand(T, num_parts, H, D + 8, generator=generator) - 1).to(dtype)[..., :D].transpose(0, 1)
    lses = 4 * torch.randn(num_parts, T + 2, H, generator=generator)[:, :T].mT
    is_empty = torch.rand(lses.shape, generator=generator) < 1 / 3
    empty = torch.tensor([-torch.inf, torch.inf, torch.nan])[torch.randint(3, lses.shape, generator=generator)]
    outs[is_empty.mT] = torch.nan
    lses[is_empty] = empty[is_empty]
    return outs.to(device), lses.to(device)


def expected(outs, lses, **options):
    lse = torch.empty(H, T)
    return attn_reference.merge_attn_parts(outs.cpu(), lses.cpu(), lse=lse, **options), lse


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
@pytest.mark.parametrize("lse_base", ["e", "2"])
def test_is_what_the_reference_computes(num_parts, lse_base, device):
    """Each weight has a relative error of a few U for its exponent, which is at most 32, and each sum one U a part."""
    outs, lses = parts(num_parts, device)
    lse = torch.full((H, T), torch.nan, device=device)
    out = attn_optimized.merge_attn_parts(outs, lses, lse=lse, lse_base=lse_base)
    right, right_lse = expected(outs, lses, lse_base=lse_base)
    torch.testing.assert_close(out.cpu(), right, rtol=0, atol=(64 + 2 * num_parts) * U)
    torch.testing.assert_close(lse.cpu(), right_lse, rtol=4 * U, atol=(8 + 2 * num_parts) * U)


@pytest.mark.parametrize("lse_base", ["e", "2"])
def test_a_part_of_the_largest_lse_takes_all_weight_and_of_the_least_none(lse_base, device):
    """As a part has them where a sink of that size is its own."""
    outs, lses = torch.randn(3, T, H, D, device=device), torch.zeros(3, H, T, device=device)
    lses[:, 0] = torch.tensor([LARGEST_LOGIT, -LARGEST_LOGIT, 3.0], device=device)[:, None]
    lses[:, 1] = torch.tensor([-LARGEST_LOGIT, -LARGEST_LOGIT, 3.0], device=device)[:, None]
    lses[:, 2] = torch.tensor([-LARGEST_LOGIT, -torch.inf, -LARGEST_LOGIT], device=device)[:, None]
    lse = torch.empty(H, T, device=device)
    out = attn_optimized.merge_attn_parts(outs, lses, lse=lse, lse_base=lse_base)
    right, right_lse = expected(outs, lses, lse_base=lse_base)
    mean = (outs[0, :, 2] + outs[2, :, 2]) / 2
    for got, got_lse in ((out.cpu(), lse.cpu()), (right, right_lse)):
        assert torch.equal(got[:, 0], outs[0, :, 0].cpu())
        assert torch.equal(got[:, 1], outs[2, :, 1].cpu())
        torch.testing.assert_close(got[:, 2], mean.cpu(), rtol=0, atol=4 * U)
        to_e = 1.0 if lse_base == "e" else math.log(2)
        extremes = torch.tensor([LARGEST_LOGIT, 3.0, -LARGEST_LOGIT])[:, None].expand(H, T) * to_e
        torch.testing.assert_close(got_lse, extremes, rtol=4 * U, atol=0)


def test_rounds_once_to_the_output_dtype(dtype, device):
    outs, lses = parts(3, device, dtype)
    exact = attn_optimized.merge_attn_parts(outs.float(), lses)
    assert torch.equal(attn_optimized.merge_attn_parts(outs, lses), exact.to(dtype))


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_a_float8_output_holds_the_merged_one_over_the_scale(float8, device):
    outs, lses = parts(3, device)
    scale = torch.tensor([0.3], device=device)
    merged = attn_optimized.merge_attn_parts(outs, lses)
    out = torch.empty(T, H, D, device=device, dtype=float8)
    attn_optimized.merge_attn_parts(outs, lses, out=out, output_scale=scale)
    right = attn_reference.quantize(merged.cpu(), scale.cpu(), float8)
    assert torch.equal(out.cpu().view(torch.uint8), right.view(torch.uint8))


def test_no_token(device):
    outs, lses = torch.empty(2, 0, 3, 8, device=device), torch.empty(2, 3, 0, device=device)
    assert attn_optimized.merge_attn_parts(outs, lses).shape == (0, 3, 8)
