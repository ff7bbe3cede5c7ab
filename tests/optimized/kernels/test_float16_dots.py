"""Dots in float16 of bfloat16 queries: nothing of their range is lost, nor of weights far below float16's."""

from dataclasses import dataclass

import attn_optimized
import pytest
import torch
import triton
import triton.language as tl
from attn_fuzz.verdict.rounding import LOST_IN_FLOAT16
from attn_optimized.kernels.float16_dots import float16_queries

from tests.optimized.conftest import kind_of
from tests.support.calls import joined
from tests.support.calls import paged_call as call_of_tokens

FN = torch.float8_e4m3fn
ONE = {"k_scale": torch.tensor(1.0), "v_scale": torch.tensor(1.0)}


@dataclass(frozen=True)
class Kind:
    """The fields of `kernels.arguments.Kind` that the function reads."""

    block_rest: int


@triton.jit
def float16_queries_kernel(out_ptr, factor_ptr, q_ptr, KIND: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr):
    row = tl.arange(0, ROWS)
    offset = row[:, None] * DIMS + tl.arange(0, DIMS)[None, :]
    q = tl.load(q_ptr + offset)
    q, _, _, factor = float16_queries(q, q, q, 1.0, KIND)
    tl.store(out_ptr + offset, q)
    tl.store(factor_ptr + row, factor)


def scaled_back(q: torch.Tensor) -> torch.Tensor:
    """float64: what the kernel makes of queries [rows, dims], with their factors."""
    out, factor = torch.empty(q.shape, dtype=torch.float16, device=q.device), torch.empty(len(q), device=q.device)
    float16_queries_kernel[1,](out, factor, q, KIND=Kind(block_rest=0), ROWS=q.shape[0], DIMS=q.shape[1])
    assert bool((out[q.isfinite()].abs() < 2**16).all())
    return out.double() * factor.double()[:, None]


def test_bfloat16_numbers_keep_their_bits_beside_larger_ones(device):
    """Every exponent beside every exponent that is smaller by up to 60, with all bits of the mantissa set."""
    exponents = torch.arange(-126, 128)[:, None] - torch.tensor([0, *range(60), 125, 126, 127])[None]
    q = torch.ldexp(torch.full(exponents.shape, 1.9921875, dtype=torch.float64), exponents).to(torch.bfloat16)
    q[:, 1::2] *= -1
    q = torch.cat([q, torch.zeros(2, 64, dtype=torch.bfloat16)]).to(device)
    back, right = scaled_back(q), q.double()
    largest = right.abs().amax(1, keepdim=True)
    error = (back - right).abs()
    assert (error <= LOST_IN_FLOAT16 * largest).all()
    is_kept = right.abs() >= 2.0**-31 * largest
    assert (error[is_kept] == 0).all()
    assert (error > 0).any(), "float16 holds not all of them"


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_a_row_keeps_an_infinity_and_a_nan(number, device):
    q = torch.ones(2, 16, dtype=torch.bfloat16, device=device)
    q[1, 3] = number
    back = scaled_back(q)
    assert (back[0] == 1).all()
    torch.testing.assert_close(back[1, 3].item(), number, equal_nan=True)


@pytest.mark.parametrize("power", [-60, -30, 30, 110])
def test_queries_far_from_float16s_range(power, assert_agrees, device):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 2, 32, generator=generator).to(torch.bfloat16) for n in (1, 70, 70))
    query = torch.ldexp(query.float(), torch.tensor(power)).to(torch.bfloat16)
    tokens = joined([(query, key, value)])
    call = call_of_tokens(tokens, kv_cache_dtype=FN, scale=2.0**-power / 4, device=device, **ONE)
    assert kind_of(call).has_float16_dots
    assert_agrees(call)


def test_weights_far_below_float16s_range_count(assert_agrees, device):
    """One key of a value of 0, and 600 keys of a value of 1, each of a weight of 2^-36 of the first key's."""
    query, key = torch.zeros(1, 1, 16), torch.zeros(601, 1, 16)
    query[..., 0], key[0, 0, 0], value = 1.0, 1.0, torch.ones(601, 1, 16)
    value[0] = 0
    tokens = joined([tuple(each.to(torch.bfloat16) for each in (query, key, value))])
    call = call_of_tokens(tokens, kv_cache_dtype=FN, scale=25.0, device=device, **ONE)
    assert kind_of(call).has_float16_dots
    out = attn_optimized.paged_attention(*call)
    weight = torch.exp(torch.tensor(-25.0, dtype=torch.float64))
    torch.testing.assert_close(out[0].double().cpu(), (600 * weight).expand(1, 16), rtol=2.0**-6, atol=0.0)
    assert_agrees(call)


def test_a_sink_weighs_as_much_as_keys_do(assert_agrees, device):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, 2, 32, generator=generator).to(torch.bfloat16) for n in (1, 70, 70))
    call = call_of_tokens(joined([(query, key, value)]), kv_cache_dtype=FN, sinks=[2.0, 5.0], device=device, **ONE)
    assert kind_of(call).has_float16_dots
    assert_agrees(call)


@pytest.mark.parametrize(
    ("cache", "q_dtype"), [(FN, torch.float16), (torch.int8, torch.bfloat16), (None, torch.bfloat16)], ids=str
)
def test_other_types_of_q_and_of_the_cache_keep_the_dots_of_q(cache, q_dtype, device):
    query, key, value = (torch.randn(n, 1, 32).to(q_dtype) for n in (1, 20, 20))
    rules = {} if cache is None else {"kv_cache_dtype": cache} if cache is torch.int8 else {"kv_cache_dtype": cache, **ONE}
    assert not kind_of(call_of_tokens(joined([(query, key, value)]), device=device, **rules)).has_float16_dots
