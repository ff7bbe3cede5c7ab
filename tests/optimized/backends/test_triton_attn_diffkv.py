"""TRITON_ATTN_DIFFKV: rows of K and V of two widths, and what vLLM's backend of that name would lose."""

from dataclasses import replace

import torch
from attn_contract import ContractError, Layout
from attn_optimized.backends import BACKENDS

DIFFKV = BACKENDS["TRITON_ATTN_DIFFKV"]
MIMO = {"layout": Layout.CONTENT_PACKED, "head_size": 192, "head_size_v": 128}
NARROW = {**MIMO, "head_size": 64, "head_size_v": 48}
MIXED = {"query_lens": [7, 1, 0, 20, 2], "seq_lens": [7, 40, 0, 90, 2]}


def test_a_reader_of_another_layers_cache_writes_nothing_and_agrees(make_step, forward, aiter):
    step = make_step(**MIXED, **NARROW)
    first = forward(DIFFKV, step)
    before = step.kv_cache.clone()
    reader = replace(step, key=torch.zeros_like(step.key), value=torch.zeros_like(step.value))
    second = forward(DIFFKV, reader, kv_sharing_target_layer_name="layers.3")
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(step.kv_cache.view(torch.int16), before.view(torch.int16))


def test_a_cache_of_one_width_is_refused(make_step, refuses):
    step = make_step([9], [9], **NARROW)
    of_one_width = step.kv_cache.new_zeros(*step.kv_cache.shape[:-1], 128)
    refuses(DIFFKV, step, ContractError, "kv_cache", {"kv_cache": of_one_width})


def test_an_output_as_wide_as_k_is_refused(make_step, refuses):
    step = make_step([9], [9], **NARROW)
    refuses(DIFFKV, step, ContractError, "out", {"output": torch.full_like(step.query, torch.nan)})
