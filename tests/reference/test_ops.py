"""The torch ops `attn_parity::*` on CPU tensors are the reference."""

import importlib
import warnings

import attn_reference
import pytest
import torch
from attn_contract import UnsupportedError

ops = torch.ops.attn_parity
KERNELS = (
    "paged_attention",
    "varlen_attention",
    "write_kv_cache",
    "rope_and_write_kv_cache",
    "merge_attn_states",
    "merge_attn_parts",
)


@pytest.fixture
def arguments(paged_call, varlen_call, randn):
    """(args, options) of a call of each op. The outputs are the last args."""
    tokens = [(randn(q, 4, 8), randn(s, 2, 8), randn(s, 2, 8)) for q, s in ((3, 9), (1, 4))]
    rules = {"window": (2, 2), "sink_tokens": 1, "chunked_local": 6, "logits_soft_cap": 5.0, "ranges_clamped": True}
    per_head = {"alibi_slopes": randn(4), "sinks": randn(4)}
    tensors = {"bidirectional_ranges": torch.tensor([[[1, 7]], [[0, 0]]], dtype=torch.int32), "qq_bias": randn(6, 6)}
    call = paged_call(tokens, **rules, **per_head, **tensors)
    dense = varlen_call([(q, q[:, :2], q[:, 2:]) for q, _, _ in tokens])
    out, lse = torch.zeros(6, 4, 8), torch.zeros(4, 6)

    def lengths(batch):
        return batch.query_start_loc, batch.seq_lens, batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens

    def paged(call, causal, causal_per_request):
        cache = call.kv_cache.nan_to_num()
        layer = (str(call.layer.layout), 2, call.layer.scale, "decoder")
        return call.q.nan_to_num(), cache, *layer, *lengths(call.batch), call.batch.block_table, causal, causal_per_request

    q, k, v = (x.nan_to_num() for x in dense[:3])
    cache, slots = call.kv_cache.nan_to_num(), torch.tensor([1, -1, 9, 4])
    options = {**rules, **per_head, **tensors}
    encoder = {"window": [-1, 1], "alibi_slopes": randn(4), "sink_tokens": 1, "logits_soft_cap": 3.0}
    rotation = (torch.tensor([0, 3, 1, 2]), randn(4, 6), True)
    return {
        "paged_attention": ((*paged(call, True, None), out, lse), options),
        "varlen_attention": ((q, k, v, 0.5, "encoder_only", *lengths(dense.batch), out, lse), encoder),
        "write_kv_cache": ((randn(5, 2, 8), randn(5, 2, 8), cache, str(call.layer.layout), slots), {}),
        "rope_and_write_kv_cache": (
            (randn(6, 4, 8), randn(5, 2, 8), randn(5, 2, 8), *rotation, cache, str(call.layer.layout), slots),
            {},
        ),
        "merge_attn_states": ((out + 1, lse, out + 2, lse, out, None), {"prefill_tokens_with_context": 2}),
        "merge_attn_parts": ((torch.stack([out + 1, out + 2]), torch.stack([lse, lse]), out, None), {"lse_base": "2"}),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cpu_tensor_dispatches_to_the_reference(kernel, arguments, monkeypatch):
    calls = []
    monkeypatch.setattr(attn_reference, kernel, lambda *args, **kwargs: calls.append((args, kwargs)))
    args, options = arguments[kernel]
    assert getattr(ops, kernel)(*args, **options) is None
    ((received, named),) = calls
    first, *_ = (*received, *named.values())
    assert torch.equal(first, args[0])


def test_a_second_import_registers_nothing_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(attn_reference)


def test_paged_attention_writes_out_and_lse(arguments):
    """Outputs are written in the rows of requests; out may be [T, H * D]."""
    (*inputs, out, lse), options = arguments["paged_attention"]
    ops.paged_attention(*inputs, out, lse, **options)
    assert out[:4].any(dim=-1).all()
    assert not out[4:].any()
    assert lse[:, :4].all()
    flat = torch.zeros(6, 32)
    ops.paged_attention(*inputs, flat, None, **options)
    assert torch.equal(flat.view(6, 4, 8), out)


def test_every_rule_arrives(arguments):
    """Each option changes the output, so none was lost on its way."""
    (*inputs, out, _), options = arguments["paged_attention"]
    ops.paged_attention(*inputs, out, None, **options)
    for name in options:
        other = torch.zeros_like(out)
        ops.paged_attention(*inputs, other, None, **{key: value for key, value in options.items() if key != name})
        assert not torch.equal(other, out), name


def test_batch_invariance_is_refused(arguments):
    for kernel in ("paged_attention", "varlen_attention"):
        args, options = arguments[kernel]
        with pytest.raises(UnsupportedError, match="batch_invariant"):
            getattr(ops, kernel)(*args, **options, batch_invariant=True)


def test_float8_out(arguments):
    (*inputs, out, _), options = arguments["paged_attention"]
    float8 = torch.zeros(6, 4, 8, dtype=torch.uint8).view(torch.float8_e4m3fn)
    ops.paged_attention(*inputs, out, None, **options)
    ops.paged_attention(*inputs, float8, None, **options, output_scale=torch.tensor(0.25))
    torch.testing.assert_close(float8.float() * 0.25, out, rtol=2**-4, atol=0.25 * 2**-10)


@pytest.mark.parametrize("quantized", [False, True])
def test_write_then_read(quantized):
    """A value is written to slot 6, then read by a query that sees no other key."""
    k, v = torch.ones(1, 1, 4), torch.full((1, 1, 4), 5.0)
    cache = torch.zeros(2, 3, 4, 1, 4) if not quantized else torch.zeros(2, 3, 4, 1, 4, dtype=torch.int8)
    names = ("k_scale_cache", "v_scale_cache") if quantized else ()
    scales = {name: torch.zeros(3, 4, 1) for name in names}
    ops.write_kv_cache(k, v, cache, "KV_FIRST_NHD", torch.tensor([6]), **scales)
    out, starts, seq_lens = torch.zeros(1, 1, 4), torch.tensor([0, 1]).int(), torch.tensor([3]).int()
    table = torch.tensor([[1]]).int()
    lengths = (starts, seq_lens, 1, 3, 1)
    ops.paged_attention(
        k, cache, "KV_FIRST_NHD", 1, 0.0, "decoder", *lengths, table, True, None, out, None, window=[0, 0], **scales
    )
    torch.testing.assert_close(out[0], v[0], rtol=2**-23, atol=0)


def test_rotation_reaches_q_and_the_cache():
    """A quarter turn takes (1, 0) to (0, 1)."""
    q, k, cache = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]), torch.zeros(2, 1, 4, 1, 2)
    quarter = torch.tensor([[0.0, 1.0]])
    ops.rope_and_write_kv_cache(q, k, k, torch.tensor([0]), quarter, True, cache, "KV_FIRST_NHD", torch.tensor([2]))
    assert q.flatten().tolist() == [0, 1]
    assert k.flatten().tolist() == [1, 0]
    assert cache[:, 0, 2, 0].tolist() == [[0, 1], [1, 0]]
