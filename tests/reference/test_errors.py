"""The reference refuses at its border, values included, and has then written nothing."""

import dataclasses

import pytest
import torch
from attn_contract import ContractError, Layout
from attn_reference import merge_attn_states, paged_attention, paged_requests, varlen_attention, write_kv_cache


@pytest.fixture
def call(paged_call, randn):
    return paged_call([(randn(3, 2, 4), randn(6, 1, 4), randn(6, 1, 4))])


def refused(function, *args, **kwargs) -> ContractError:
    """The error, once its outputs are known to be as they were."""
    before = {name: value.clone() for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ContractError) as caught:
        function(*args, **kwargs)
    for name, value in before.items():
        torch.testing.assert_close(kwargs[name], value, rtol=0, atol=0, equal_nan=True)
    return caught.value


def test_values_are_always_checked(call):
    """A shipping kernel reads no value of a device tensor; this is a debugging tool, and does."""
    table = call.batch.block_table.clone()
    table[0, 1] = 99
    batch = dataclasses.replace(call.batch, block_table=table)
    out = torch.full_like(call.q, torch.nan)
    assert refused(paged_attention, call.q, call.kv_cache, call.layer, batch, out=out).argument == "block_table[0, 1]"
    assert refused(paged_requests, call.q, call.kv_cache, call.layer, batch, torch.float64).argument == "block_table[0, 1]"


@pytest.mark.parametrize("precision", [torch.float16, torch.int64])
def test_precisions_that_are_not_float32_or_float64(call, precision):
    out = torch.full_like(call.q, torch.nan)
    assert refused(paged_attention, *call, out=out, precision=precision).argument == "precision"


def test_outputs_that_share_memory(call):
    out = torch.zeros(1, 2, 4).expand(5, 2, 4)
    assert refused(paged_attention, *call, out=out).argument == "out"


def test_each_function_names_the_other_for_the_wrong_type(call, varlen_call, randn):
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    with pytest.raises(ContractError, match="use varlen_attention"):
        paged_attention(dense.q, call.kv_cache, dense.layer, dense.batch)
    with pytest.raises(ContractError, match="use paged_attention"):
        varlen_attention(call.q, dense.k, dense.v, call.layer, call.batch)


@pytest.mark.parametrize("slots", [[0, -2], [0, 16], [3, 3]])
def test_a_write_outside_or_twice_writes_nothing(call, slots, randn):
    before = call.kv_cache.clone()
    error = refused(write_kv_cache, randn(2, 1, 4), randn(2, 1, 4), call.kv_cache, Layout.KV_FIRST_NHD, torch.tensor(slots))
    assert error.argument.startswith("slot_mapping")
    torch.testing.assert_close(call.kv_cache, before, rtol=0, atol=0, equal_nan=True)


def test_a_merge_of_unequal_shapes(randn):
    out = torch.full((3, 2, 4), torch.nan)
    error = refused(merge_attn_states, randn(3, 2, 4), randn(2, 3), randn(3, 2, 5), randn(2, 3), out=out)
    assert error.argument == "out_b"
