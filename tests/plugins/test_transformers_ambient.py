"""A model's attention and its paged cache give the same bits whatever torch is set to around a forward pass."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")

import attn_optimized
import attn_reference
from attn_transformers.attention import attention
from attn_transformers.paged_cache import PagedCache

from tests.support.ambient import states_that_change

pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [attn_reference, attn_optimized])
@pytest.mark.parametrize("has_bias", [False, True])
def test_attention(kernels, dtype, has_bias):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 16, generator=generator).to(dtype) for heads in (4, 2, 2))
    mask = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5).clone()
    mask[0, ..., 0] = False
    more = {}
    if has_bias:
        more["position_bias"] = -torch.tensor([0.5, 0.25, 1.0, 2.0])[:, None, None] * torch.arange(5.0).flip(0).expand(
            2, 4, 5, 5
        )
    module = SimpleNamespace(is_causal=True)
    assert states_that_change(lambda: attention(kernels, module, query, key, value, mask, scaling=0.25, **more)[0]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_paged_cache(dtype):
    key, value = torch.randn(2, 2, 2, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert states_that_change(lambda: PagedCache(block_size=4).update(key, value, 0)) == []
