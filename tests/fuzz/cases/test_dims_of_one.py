"""A dimension of one element has no stride: whatever number stands there, a call means the same."""

import dataclasses
import random

import pytest
import torch
from attn_contract import AttentionType, Batch, Layer
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.idle_strides import IDLE_STRIDES
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry

STRIDES = (0, 1, 3, 12345, 2**31 + 1, 2**40 + 1)
FUNCTIONS = ("attention", "write_kv_cache", "rope_and_write_kv_cache", "write_latent_cache")
TARGETS = ("reference-fp32", "triton", "triton-varlen", "triton-write", "triton-latent", "triton-cascade", "torch-ops")
BACKENDS = (
    *("backend-triton", "backend-triton-diffkv", "backend-rocm-attn", "backend-triton-mla"),
    *("planted_aiter:FA", "planted_aiter:UNIFIED"),
)


class Restrided:
    """A function that is called with other strides of the dimensions of one element, in tensors, layers and batches."""

    def __init__(self, function) -> None:
        self.function, self.rng, self.changed = function, random.Random(0), 0

    def __call__(self, *arguments, **by_name):
        return self.function(*map(self._other, arguments), **{name: self._other(value) for name, value in by_name.items()})

    def _other(self, value):
        if isinstance(value, Layer | Batch):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            tensors = {name: self._other(each) for name, each in fields.items() if isinstance(each, torch.Tensor)}
            return dataclasses.replace(value, **tensors)
        if not isinstance(value, torch.Tensor) or 1 not in value.shape:
            return value
        strides = [
            self.rng.choice(STRIDES) if size == 1 else stride for size, stride in zip(value.shape, value.stride(), strict=True)
        ]
        self.changed += 1
        return value.as_strided(value.shape, strides, value.storage_offset())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*TARGETS, *BACKENDS])
def test_any_stride_of_a_dimension_of_one_element_is_right(name, tmp_path):
    target = registry.load(name)
    functions = {each: Restrided(function) for each in FUNCTIONS if (function := getattr(target, each)) is not None}
    restrided = dataclasses.replace(target, **functions)
    for case in shard.drawn(FuzzPlan(target=name, device="cpu", examples=8, seed=3, folder=tmp_path)):
        verdict = try_case(case, restrided, "cpu")
        assert not verdict.failed, verdict.message
    assert sum(function.changed for function in functions.values()) > 8, "few tensors have a dimension of one element"


def test_a_target_is_given_the_strides_of_the_case():
    """`Tensor.view` would make up another stride for a dimension of one element."""
    given = []

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        given.extend(tensor.stride(1) for tensor in (q, k, v, out))

    case = Case(target="anything", attn_type=AttentionType.ENCODER, requests=(Request(3, 3),), unlike_strides=True)
    try_case(case, dataclasses.replace(registry.load("reference-fp32"), attention=attention), "cpu")
    assert set(given) == {IDLE_STRIDES[0]}
