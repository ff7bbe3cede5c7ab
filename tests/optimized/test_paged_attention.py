"""The paged attention kernel on cases chosen for where such kernels break; the fuzzer draws the rest."""

import math
from dataclasses import replace

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, Layout

ENCODER_DECODER = AttentionType.ENCODER_DECODER

CASES = {
    "prefill over several tiles": {"query_lens": [150], "seq_lens": [150]},
    "extend": {"query_lens": [70, 3], "seq_lens": [200, 65]},
    "decode": {"query_lens": [1] * 6, "seq_lens": [1, 15, 16, 17, 64, 130]},
    "mix with padding requests": {"query_lens": [1, 0, 33, 0, 4, 0], "seq_lens": [129, 0, 33, 5, 63, 0]},
    "no query at all": {"query_lens": [0, 0], "seq_lens": [0, 9]},
    "no key": {"query_lens": [3, 1], "seq_lens": [0, 0]},
    "more queries than keys": {"query_lens": [70, 5], "seq_lens": [3, 4]},
    "group of 5": {"query_lens": [17, 1], "seq_lens": [40, 9], "num_heads": 10},
    "group of 7": {"query_lens": [30, 1], "seq_lens": [80, 9], "num_heads": 7, "num_kv_heads": 1},
    "group of 16": {"query_lens": [9, 1], "seq_lens": [70, 9], "num_heads": 32},
    "head size 80, block size 48": {"query_lens": [5, 1], "seq_lens": [100, 48], "head_size": 80, "block_size": 48},
    "head size 1": {"query_lens": [5, 1], "seq_lens": [30, 48], "head_size": 1},
    "head size 256": {"query_lens": [2], "seq_lens": [70], "head_size": 256},
    "one slot per block": {"query_lens": [5, 1], "seq_lens": [20, 3], "block_size": 1},
    "block larger than a tile": {"query_lens": [5, 1], "seq_lens": [150, 80], "block_size": 144},
    "window": {"query_lens": [70, 1], "seq_lens": [170, 140], "window": (15, 15)},
    "window of itself": {"query_lens": [20, 1], "seq_lens": [90, 70], "window": (0, 0)},
    "window, more queries than keys": {"query_lens": [70], "seq_lens": [30], "window": (4, -1)},
    "non-causal": {"query_lens": [9, 1], "seq_lens": [75, 64], "causal": False},
    "non-causal window": {"query_lens": [70, 3], "seq_lens": [170, 90], "causal": False, "window": (10, 4)},
    "non-causal, right edge only": {"query_lens": [70], "seq_lens": [140], "causal": False, "window": (-1, 2)},
    "causal per request": {"query_lens": [9, 9, 9], "seq_lens": [75, 75, 5], "causal": [True, False, False]},
    "cross-attention": {
        "query_lens": [1, 4, 40],
        "seq_lens": [75, 1, 3],
        "causal": False,
        "attn_type": AttentionType.ENCODER_DECODER,
    },
    "sinks": {"query_lens": [9, 1, 2], "seq_lens": [75, 10, 0], "sinks": [0.5, 30.0, -30.0, -torch.inf]},
    "sinks and window": {
        "query_lens": [70, 3],
        "seq_lens": [75, 2],
        "window": (3, -1),
        "sinks": [3.0, 100.0, -100.0, -torch.inf],
    },
    "negative scale": {"query_lens": [9], "seq_lens": [75], "scale": -0.3},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_reference(case, dtype, paged_call, assert_agrees):
    assert_agrees(paged_call(**case, dtype=dtype))


@pytest.mark.parametrize("layout", Layout)
def test_reads_every_layout(layout, paged_call, assert_agrees):
    assert_agrees(paged_call([20, 1], [50, 33], layout=layout, head_size=24, block_size=10))


@pytest.mark.parametrize("scale", [0.0, 0.25, 10.0, -10.0])
def test_equal_logits_give_the_exact_mean(scale, dtype, paged_call):
    """Every weight is exp(0) = 1, for logits beyond exp's range too, and every sum is exact: the quotient is rounded once."""
    call = paged_call([1, 3], [199, 130], dtype=dtype, causal=False, scale=scale)
    blocks = call.batch.block_table[0, :13].long()
    values = torch.randint(-8, 9, (13, 16, 2, 32), dtype=dtype, device=call.q.device)
    call.kv_cache[blocks, 0] = 1
    call.kv_cache[blocks, 1] = values
    lse = torch.empty(4, len(call.q), device=call.q.device)
    out = attn_optimized.paged_attention(torch.ones_like(call.q), *call[1:], lse=lse)
    # on a GPU, torch divides by a Python number as a multiplication by its reciprocal
    mean = (values.flatten(0, 1)[:199].double().sum(0) / 199).float().to(dtype)
    assert torch.equal(out[0], mean.repeat_interleave(2, dim=0))
    torch.testing.assert_close(lse[:, 0].cpu(), torch.full((4,), 32 * scale + math.log(199)))


def test_a_request_alone_is_bitwise_the_same_as_in_a_batch(paged_call):
    call = paged_call([40, 70, 1], [60, 130, 77], sinks=[0.0, 1.0, 2.0, 3.0])
    together = attn_optimized.paged_attention(*call)
    first, end = 40, 110
    alone = replace(
        call.batch,
        query_start_loc=torch.tensor([0, end - first], dtype=torch.int32, device=call.q.device),
        seq_lens=call.batch.seq_lens[1:2],
        block_table=call.batch.block_table[1:2],
        num_actual_tokens=end - first,
    )
    out = attn_optimized.paged_attention(call.q[first:end], call.kv_cache, call.layer, alone)
    assert torch.equal(out, together[first:end])


@pytest.mark.parametrize("dtype_of_sinks", [torch.float16, torch.bfloat16])
def test_sinks_of_another_dtype(dtype_of_sinks, paged_call, assert_agrees):
    call = paged_call([9, 1], [75, 10])
    sinks = torch.tensor([0.5, 2.0, -1.0, -torch.inf], dtype=dtype_of_sinks, device=call.q.device)
    assert_agrees(call._replace(layer=replace(call.layer, sinks=sinks)))


def test_no_request(paged_call):
    call = paged_call([], [])
    out = torch.full_like(call.q, 7)
    attn_optimized.paged_attention(*call, out=out)
    assert (out == 7).all()


def test_out_and_lse_are_optional(paged_call):
    call = paged_call([3, 1], [20, 9])
    out = torch.empty_like(call.q)
    attn_optimized.paged_attention(*call, out=out, lse=torch.empty(4, len(call.q), device=call.q.device))
    assert torch.equal(attn_optimized.paged_attention(*call)[:4], out[:4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes 9 GB of memory; test_compile.py shows the same without")
def test_blocks_beyond_two_to_the_31_elements(paged_call, assert_agrees):
    call = paged_call([1, 20], [40, 60], dtype=torch.float16)
    num_blocks, page = call.kv_cache.shape[0], call.kv_cache[0].numel()
    far = torch.empty(2**32 // page + num_blocks, *call.kv_cache.shape[1:], dtype=torch.float16, device=call.q.device)
    far[-num_blocks:] = call.kv_cache
    used = call.batch.block_table.clone()
    used[(used >= 0) & (used < num_blocks)] += len(far) - num_blocks
    assert torch.equal(
        attn_optimized.paged_attention(call.q, far, call.layer, replace(call.batch, block_table=used))[:21],
        attn_optimized.paged_attention(*call)[:21],
    )
