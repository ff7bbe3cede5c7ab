"""A step on another device is the same step: the same bytes, lying the same way, shared the same way."""

import dataclasses

import pytest
import torch
from attn_fuzz.cases import tensors
from attn_fuzz.cases.poison import bits, storage_of
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run.case import devices
from attn_fuzz.strategies import cases
from attn_fuzz.targets.support import EVERYTHING
from hypothesis import given, settings

SMALL = dataclasses.replace(EVERYTHING, head_sizes=(16, 32), block_sizes=(16, 1, 4, 48), max_tokens=32, max_seq_len=64)


def all_tensors(step: Step) -> dict[str, torch.Tensor]:
    layers = {
        f"{name} of the layer of write {i}": tensor
        for i, w in enumerate(step.writes)
        for name, tensor in w.layer.tensors.items()
    }
    lse = {} if step.lse is None else {"lse": step.lse}
    return {**step.inputs(), "out": step.out, "out_buffer": step.out_buffer, **lse, "lse_buffer": step.lse_buffer, **layers}


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def assert_same(step: Step, other: Step) -> None:
    first, second = all_tensors(step), all_tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        lies = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)
        assert lies == (second[name].shape, second[name].stride(), second[name].storage_offset(), second[name].dtype), name
        assert torch.equal(bits(tensor), bits(second[name]).cpu()), name
        memory, other_memory = storage_of(tensor, torch.uint8), storage_of(second[name], torch.uint8)
        assert torch.equal(memory, other_memory.cpu()), f"around {name}"
        assert not len(memory) or memory.data_ptr() != other_memory.data_ptr(), f"{name} is shared"
    for name in first:
        for like in first:
            shares, others_share = (address(of[name]) == address(of[like]) for of in (first, second))
            assert shares == others_share, (name, like)
    assert (step.view, step.batch.max_seq_len) == (other.view, other.batch.max_seq_len)


@given(cases("anything", SMALL))
@settings(max_examples=40, deadline=None, database=None)
def test_a_fetched_step_is_the_same_step(case):
    step = tensors.build(case)
    assert_same(step, devices.returned(step))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@given(cases("anything", SMALL))
@settings(max_examples=40, deadline=None, database=None)
def test_a_sent_step_is_the_same_step(case):
    step = tensors.build(case)
    there = devices.sent(step, "cuda")
    assert {tensor.device.type for tensor in all_tensors(there).values()} == {"cuda"}
    assert_same(step, there)
    assert_same(step, devices.returned(there))
