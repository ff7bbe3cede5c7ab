"""Parts of ranks whose LSEs 16 bits hold merge to what they merged to before."""

import math

import pytest
import torch
from attn_fuzz.targets.packages.rank_merges import stored_in
from attn_fuzz.targets.parts import State


@pytest.mark.parametrize("log_of_base", [1.0, math.log(2.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_outputs_hold_the_bits_that_an_lse_loses(dtype, log_of_base):
    generator = torch.Generator().manual_seed(0)
    ranks, rows, heads, size = 3, 4, 2, 8
    out = torch.randn((ranks, rows, heads, size), generator=generator, dtype=torch.float64)
    lse = torch.randn((ranks, heads, rows), generator=generator, dtype=torch.float64) * 20
    lse[0, 0, 0] = lse[:, 1, 1] = -torch.inf
    stored = stored_in(dtype, State(out, lse), log_of_base)
    assert torch.equal(stored.lse.to(dtype).to(torch.float64), stored.lse)
    weights = ((stored.lse * log_of_base).softmax(0), lse.softmax(0))
    merged, expected = (
        (weight.transpose(1, 2)[..., None] * part).sum(0) for weight, part in zip(weights, (stored.out, out), strict=True)
    )
    assert torch.allclose(merged, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(stored.lse.isinf(), lse.isinf())
