"""Merging attention over disjoint keys, of two states or of any number of parts: against the reference, and at the edges."""

import math

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract.validation.values import MAX_LOGIT

U = 2**-24
"""Unit roundoff of float32."""
T, H, D = 37, 3, 40
OF_PARTS = {f"{count} of base {base}": (count, {"lse_base": base}) for count in (1, 2, 3, 7) for base in ("e", "2")}
MERGES = {"states": (2, None), **OF_PARTS}
"""The number of parts, and the options of `merge_attn_parts`; None: they are two states."""
EMPTY = (-torch.inf, torch.inf, torch.nan)
"""LSEs of a part without keys."""

each_kind = pytest.mark.parametrize("options", [None, {}], ids=["states", "parts"])


def merged(outs, lses, options, package=attn_optimized, **outputs):
    if options is not None:
        return package.merge_attn_parts(outs, lses, **options, **outputs)
    return package.merge_attn_states(outs[0], lses[0], outs[1], lses[1], **outputs)


def parts(num_parts, device, dtype=torch.float32):
    """Outs [N, T, H, D] and LSEs [N, H, T] with strides of their own, a third of them of empty parts."""
    generator = torch.Generator().manual_seed(num_parts)
    outs = (2 * torch.rand(T, num_parts, H, D + 8, generator=generator) - 1).to(dtype)[..., :D].transpose(0, 1)
    lses = 4 * torch.randn(num_parts, T + 2, H, generator=generator)[:, :T].mT
    is_empty = torch.rand(lses.shape, generator=generator) < 1 / 3
    empty = torch.tensor(EMPTY)[torch.randint(3, lses.shape, generator=generator)]
    outs[is_empty.mT] = torch.nan
    lses[is_empty] = empty[is_empty]
    outs, lses = outs.to(device), lses.to(device)
    return outs, lses.contiguous() if num_parts == 2 else lses


def expected(outs, lses, options):
    lse = torch.empty(H, T)
    return merged(outs.cpu(), lses.cpu(), options, attn_reference, lse=lse), lse


@pytest.mark.parametrize(("num_parts", "options"), MERGES.values(), ids=MERGES)
def test_is_what_the_reference_computes(num_parts, options, device):
    """Each weight has a relative error of a few U for its exponent, which is at most 32, and each sum one U a part."""
    outs, lses = parts(num_parts, device)
    lse = torch.full((H, T), torch.nan, device=device)
    out = merged(outs, lses, options, lse=lse)
    right, right_lse = expected(outs, lses, options)
    atol = 2**-20 * float(right.abs().max()) if options is None else (64 + 2 * num_parts) * U
    torch.testing.assert_close(out.cpu(), right, rtol=0, atol=atol)
    torch.testing.assert_close(lse.cpu(), right_lse, rtol=4 * U, atol=(8 + 2 * num_parts) * U)


@pytest.mark.parametrize("empty", EMPTY)
@each_kind
def test_an_empty_part_changes_nothing_and_two_are_an_empty_one(options, empty, device):
    outs, lses = torch.randn(2, T, H, D, device=device), 3 * torch.randn(2, H, T, device=device)
    outs[..., 0] = -0.0
    for part, tokens in ((0, slice(5)), (1, slice(5, 9)), (0, slice(9, 12)), (1, slice(9, 12))):
        outs[part, tokens], lses[part, :, tokens] = torch.nan, empty
    lse = torch.empty(H, T, device=device)
    out = merged(outs, lses, options, lse=lse)
    bits, bits_of_parts = out.view(torch.int32), outs.view(torch.int32)
    for part, tokens in ((1, slice(5)), (0, slice(5, 9))):
        assert torch.equal(bits[tokens], bits_of_parts[part, tokens])
        assert torch.equal(lse[:, tokens], lses[part, :, tokens])
    assert not bits[9:12].any()
    assert (lse[:, 9:12] == -torch.inf).all()


@pytest.mark.parametrize("options", [None, {"lse_base": "e"}, {"lse_base": "2"}], ids=str)
def test_a_part_of_the_largest_lse_takes_all_weight_and_of_the_least_none(options, device):
    """A part has such an LSE if a sink of that size is its own."""
    outs, lses = torch.randn(3, T, H, D, device=device), torch.zeros(3, H, T, device=device)
    lses[:, 0] = torch.tensor([MAX_LOGIT, -MAX_LOGIT, 3.0], device=device)[:, None]
    lses[:, 1] = torch.tensor([-MAX_LOGIT, -MAX_LOGIT, 3.0], device=device)[:, None]
    lses[:, 2] = torch.tensor([-MAX_LOGIT, -torch.inf, -MAX_LOGIT], device=device)[:, None]
    if options is None:  # the first and the last
        outs, lses = outs[::2], lses[::2]
    lse = torch.empty(H, T, device=device)
    out = merged(outs, lses, options, lse=lse)
    right, right_lse = expected(outs, lses, options)
    mean = (outs[0, :, 2] + outs[-1, :, 2]) / 2
    for got, got_lse in ((out.cpu(), lse.cpu()), (right, right_lse)):
        assert torch.equal(got[:, 0], outs[0, :, 0].cpu())
        assert torch.equal(got[:, 1], outs[-1, :, 1].cpu())
        torch.testing.assert_close(got[:, 2], mean.cpu(), rtol=0, atol=4 * U)
        to_e = math.log(2) if options == {"lse_base": "2"} else 1.0
        extremes = torch.tensor([MAX_LOGIT, 3.0, -MAX_LOGIT])[:, None].expand(H, T) * to_e
        torch.testing.assert_close(got_lse, extremes, rtol=4 * U, atol=0)


@each_kind
def test_rounds_once_to_the_output_dtype(options, dtype, device):
    outs, lses = parts(2, device, dtype)
    assert torch.equal(merged(outs, lses, options), merged(outs.float(), lses, options).to(dtype))


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@each_kind
def test_a_float8_output_holds_the_merged_one_over_the_scale(options, float8, device):
    outs, lses = parts(2, device)
    scale = torch.tensor([0.3], device=device)
    out = torch.empty(T, H, D, device=device, dtype=float8)
    merged(outs, lses, options, out=out, output_scale=scale)
    right = attn_reference.quantize(merged(outs, lses, options).cpu(), scale.cpu(), float8)
    assert torch.equal(out.cpu().view(torch.uint8), right.view(torch.uint8))


@each_kind
def test_no_token_has_an_empty_output(options, device):
    outs, lses = torch.empty(2, 0, 3, 8, device=device), torch.empty(2, 3, 0, device=device)
    assert merged(outs, lses, options).shape == (0, 3, 8)


def test_a_merge_may_be_in_place(device):
    outs, lses = parts(2, device)
    expected_lse = torch.empty(H, T, device=device)
    expected_out = merged(outs, lses, None, lse=expected_lse)
    assert merged(outs, lses, None, out=outs[0], lse=lses[0]) is not None
    assert torch.equal(outs[0], expected_out)
    assert torch.equal(lses[0], expected_lse)


def test_rows_without_a_prefix_are_the_suffix_whatever_the_prefix_holds(device):
    outs, lses = torch.randn(2, T, H, D, device=device), 3 * torch.randn(2, H, T, device=device)
    whole_lse, lse = torch.empty(2, H, T, device=device)
    whole = merged(outs, lses, None, lse=whole_lse)
    out = merged(outs, lses, None, lse=lse, prefill_tokens_with_context=9)
    assert torch.equal(out, torch.cat([whole[:9], outs[1, 9:]]))
    assert torch.equal(lse, torch.cat([whole_lse[:, :9], lses[1, :, 9:]], dim=1))
    assert torch.equal(merged(outs, lses, None, prefill_tokens_with_context=0), outs[1])
