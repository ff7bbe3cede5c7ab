"""The public functions that are no ops give the same bits whatever torch is set to; `tests/ops/test_ambient.py` has the ops."""

from collections.abc import Callable
from typing import Any

import attn_reference
import pytest
import torch
from attn_contract import Layer, Layout, ops
from attn_reference import latent

from tests.ops import small_calls
from tests.support.ambient import DEVICES, states_that_change
from tests.support.calls import paged_call, random_tokens, varlen_call
from tests.support.latent_formats import latent_sizes

FP8 = torch.float8_e4m3fn


def calls(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """A call of each function, of tensors that are made here."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    rules = {"logits_soft_cap": 5.0, "alibi_slopes": torch.tensor([0.5, 0.1, 0.2, 0.3]), "sinks": [0.5, 1.0, -1.0, 0.0]}
    paged = paged_call(random_tokens([3, 1], [9, 4], dtype=dtype), device=device, qq_bias=torch.ones(6, 6), **rules)
    dense = varlen_call(random_tokens([3, 1], [3, 1], dtype=dtype), device=device)
    request = next(iter(attn_reference.paged_requests(*paged, torch.float32)))
    assert paged.batch.block_table is not None
    blocks, layout = paged.batch.block_table[0], Layout.LATENT_SCALED
    heads = {"num_heads": 1, "num_kv_heads": 1, "scale": 1.0, **latent_sizes(layout, scales=2)}
    scaled = Layer(**heads, layout=layout, kv_cache_dtype=FP8)
    scaled_cache = small_calls.write_scaled_latent_cache(device, layout)["kv_cache"]
    rows, one, j = random(5, 6), torch.ones((), device=device), torch.arange(9, device=device)
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    mla = random(5, 3, 5), random(5, 3, 2), random(5, 6), random(5, 2), random(6, 3, 5)
    w_uv, latent_out = random(6, 3, 4), random(5, 3, 6)
    return {
        "paged_requests": lambda: attn_reference.paged_requests(*paged, torch.float32),
        "varlen_requests": lambda: attn_reference.varlen_requests(*dense, torch.float32),
        "attend": lambda: attn_reference.attend(request, paged.layer),
        "visible": lambda: attn_reference.visible(request.query_positions, j, paged.layer, paged.batch, 0),
        "gather_kv_cache": lambda: [
            attn_reference.gather_kv_cache(paged.kv_cache, paged.layer, blocks, 9, torch.float16),
            attn_reference.gather_kv_cache(scaled_cache, scaled, blocks[:1] * 0, 3, torch.bfloat16),
        ],
        "quantize": lambda: attn_reference.quantize(rows, one, FP8),
        "dequantize": lambda: attn_reference.dequantize(codes.view(FP8), one, dtype),
        "row_scales": lambda: attn_reference.row_scales(rows, torch.int8),
        "group_scales": lambda: attn_reference.group_scales(rows, FP8, torch.float32),
        "e8m0_scales": lambda: attn_reference.e8m0_scales(rows, FP8),
        "e8m0_numbers": lambda: attn_reference.e8m0_numbers(codes),
        "latent.expanded": lambda: latent.expanded(*mla, w_uv),
        "latent.absorbed": lambda: latent.absorbed(*mla),
        "latent.up_projected": lambda: latent.up_projected(latent_out, w_uv),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_no_state_of_torch_changes_a_result(device, dtype):
    changed = {name: states_that_change(call) for name, call in calls(torch.device(device), dtype).items()}
    assert {name: states for name, states in changed.items() if states} == {}


def test_every_function_is_called():
    functions = {name for name in attn_reference.__all__ if callable(getattr(attn_reference, name))}
    types = {name for name in functions if isinstance(getattr(attn_reference, name), type)}
    called = calls(torch.device("cpu"), torch.float32)
    assert {name for name in called if "." not in name} == functions - types - {*ops.SCHEMAS}
