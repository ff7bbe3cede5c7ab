"""The reference refuses at its border, values included, and has then written nothing."""

import dataclasses

import pytest
import torch
from attn_contract import ContractError, UnsupportedError
from attn_reference import (
    merge_attn_states,
    paged_attention,
    paged_requests,
    rope_and_write_kv_cache,
    varlen_attention,
    write_kv_cache,
)


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
    error = refused(write_kv_cache, randn(2, 1, 4), randn(2, 1, 4), call.kv_cache, call.layer, torch.tensor(slots))
    assert error.argument.startswith("slot_mapping")
    torch.testing.assert_close(call.kv_cache, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"positions": torch.tensor([0, 5])}, "positions[1]"),
        ({"positions": torch.tensor([-1, 4])}, "positions[0]"),
        ({"positions": torch.tensor([0])}, "slot_mapping"),
        ({"slot_mapping": torch.tensor([0, 99])}, "slot_mapping[1]"),
        ({"cos_sin_cache": torch.ones(5, 6)}, "cos_sin_cache"),
        ({"is_neox": 1}, "is_neox"),
    ],
)
def test_a_refused_rotation_turns_and_writes_nothing(changes, argument, call, randn):
    """q is rotated in place: a call that was half done could not be repeated."""
    arguments = {
        "q": randn(2, 2, 4),
        "k": randn(2, 1, 4),
        "v": randn(2, 1, 4),
        "positions": torch.tensor([0, 4]),
        "cos_sin_cache": torch.ones(5, 4),
        "kv_cache": call.kv_cache,
        "layer": call.layer,
        "slot_mapping": torch.tensor([0, 1]),
        "is_neox": True,
    }
    assert refused(rope_and_write_kv_cache, **(arguments | changes)).argument == argument


@pytest.mark.parametrize(
    ("name", "tensor"), [("bidirectional_ranges", torch.zeros(1, 1, 2, dtype=torch.int32)), ("qq_bias", torch.zeros(8, 8))]
)
def test_encoders_have_neither_ranges_nor_a_bias_between_queries(name, tensor, varlen_call, randn):
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    batch = dataclasses.replace(dense.batch, **{name: tensor})
    assert refused(varlen_attention, dense.q, dense.k, dense.v, dense.layer, batch).argument == name


def test_batch_invariance_is_refused_by_name(call, varlen_call, randn):
    out = torch.full_like(call.q, torch.nan)
    dense = varlen_call([(randn(3, 2, 4), randn(3, 1, 4), randn(3, 1, 4))])
    for attention, arguments in ((paged_attention, call), (varlen_attention, dense)):
        with pytest.raises(UnsupportedError, match=r"^attn_reference: batch_invariant not supported: BLAS"):
            attention(*arguments, out=out, batch_invariant=True)
    assert out.isnan().all()


def test_an_invalid_call_is_refused_as_such_first(call):
    out = torch.zeros(1, 2, 4).expand(5, 2, 4)
    assert refused(paged_attention, *call, out=out, batch_invariant=True).argument == "out"


def test_a_float8_output_is_not_made_up(call):
    layer = dataclasses.replace(call.layer, output_scale=torch.tensor(1.0))
    assert refused(paged_attention, call.q, call.kv_cache, layer, call.batch).argument == "out"
    assert refused(paged_attention, call.q, call.kv_cache, layer, call.batch, out=torch.zeros(5, 2, 4)).argument == "out"


def test_a_merge_of_unequal_shapes(randn):
    out = torch.full((3, 2, 4), torch.nan)
    error = refused(merge_attn_states, randn(3, 2, 4), randn(2, 3), randn(3, 2, 5), randn(2, 3), out=out)
    assert error.argument == "out_b"
