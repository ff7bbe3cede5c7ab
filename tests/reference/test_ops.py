"""The torch ops `attn_parity::*` on CPU tensors are the reference."""

import importlib
import warnings

import attn_reference
import pytest
import torch
from attn_contract import Layout

ops = torch.ops.attn_parity
KERNELS = ("paged_attention", "varlen_attention", "write_kv_cache", "merge_attn_states")


@pytest.fixture
def arguments(paged_call, varlen_call, randn):
    """Of a call of each op, with its outputs last. Finite throughout: opcheck compares runs, and a NaN equals nothing."""
    tokens = [(randn(q, 4, 8), randn(s, 2, 8), randn(s, 2, 8)) for q, s in ((3, 9), (1, 4))]
    call, dense = paged_call(tokens, sinks=randn(4)), varlen_call([(q, q[:, :2], q[:, 2:]) for q, _, _ in tokens])
    out, lse = torch.zeros(6, 4, 8), torch.zeros(4, 6)

    def lengths(batch):
        return batch.query_start_loc, batch.seq_lens, batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens

    q, k, v = (x.nan_to_num() for x in dense[:3])
    layer = (call.layer.scale, "decoder", [2, 2], call.layer.sinks)
    cache, layout, table = call.kv_cache.nan_to_num(), str(call.layer.layout), call.batch.block_table
    paged = (call.q.nan_to_num(), cache, layout, *layer, *lengths(call.batch), table)
    return {
        "paged_attention": (*paged, True, None, out, lse),
        "paged_attention per request": (*paged, None, torch.tensor([True, False]), out, None),
        "varlen_attention": (q, k, v, 0.5, "encoder_only", [-1, 1], None, *lengths(dense.batch), out, lse),
        "write_kv_cache": (randn(5, 2, 8), randn(5, 2, 8), cache, layout, torch.tensor([1, -1, 9, 4])),
        "merge_attn_states": (out + 1, lse, out + 2, lse, out, None),
    }


@pytest.mark.parametrize("call", [*KERNELS, "paged_attention per request"])
def test_schemas_and_fake_kernels_hold(call, arguments):
    torch.library.opcheck(getattr(ops, call.split()[0]).default, arguments[call])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cpu_tensor_dispatches_to_the_reference(kernel, arguments, monkeypatch):
    calls = []
    monkeypatch.setattr(attn_reference, kernel, lambda *args, **kwargs: calls.append((args, kwargs)))
    assert getattr(ops, kernel)(*arguments[kernel]) is None
    ((args, _),) = calls
    assert torch.equal(args[0], arguments[kernel][0])


def test_a_second_import_registers_nothing_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(attn_reference)


def test_paged_attention_writes_out_and_lse(arguments):
    """In the rows of requests, and [T, H, D] as [T, H * D]."""
    *inputs, out, lse = arguments["paged_attention"]
    ops.paged_attention(*inputs, out, lse)
    assert out[:4].any(dim=-1).all()
    assert not out[4:].any()
    assert lse[:, :4].all()
    flat = torch.zeros(6, 32)
    ops.paged_attention(*inputs, flat, None)
    assert torch.equal(flat.view(6, 4, 8), out)


def test_write_then_read():
    k, v, cache = torch.ones(1, 1, 2), torch.full((1, 1, 2), 5.0), torch.zeros(2, 3, 4, 1, 2)
    ops.write_kv_cache(k, v, cache, str(Layout.KV_FIRST_NHD), torch.tensor([6]))
    out, counts = torch.zeros(1, 1, 2), torch.tensor([0, 1], dtype=torch.int32)
    table = torch.tensor([[1]], dtype=torch.int32)
    key, value = attn_reference.gather_kv_cache(cache, Layout.KV_FIRST_NHD, table[0], 3)
    assert torch.equal(key[2], k[0])
    assert torch.equal(value[2], v[0])
    ops.paged_attention(
        k, cache, "KV_FIRST_NHD", 0.0, "decoder", [0, 0], None, counts, counts[1:] * 3, 1, 3, 1, table, True, None, out, None
    )
    assert torch.equal(out[0], v[0])
