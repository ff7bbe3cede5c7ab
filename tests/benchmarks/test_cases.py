"""Bytes, FLOPs and floors of the benchmark's cases are what counting by hand gives."""

import itertools
import math

import pytest
import torch
from attn_contract import AttentionType

from benchmarks.measuring.machine import Rates
from benchmarks.participants.index import step_of
from benchmarks.participants.rows import row_op
from benchmarks.speed.command import CLASSES
from benchmarks.steps.calls import attention_call, float8_of, requests_of
from benchmarks.steps.cases import CASES, Attention, IndexOp, RowOp, class_of
from benchmarks.steps.latent import CASES as LATENT

CPU = torch.device("cpu")
ATTENTION = [case for case in CASES if isinstance(case, Attention)]
ROW_OPS = [case for case in CASES if isinstance(case, RowOp)]
INDEX_CASES = [case for case in CASES if isinstance(case, IndexOp)]


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("decode, fp8 cache, 64 x 8k", 0.251), ("prefill, 1 x 16k", 2.85), ("prefill, window 1k, 2 x 8k", 0.334)],
)
def test_floors_are_those_of_other_arithmetic(name, expected):
    """Milliseconds after a launch at 4.29 TB/s and 772 TFLOP/s, as they were once computed elsewhere."""
    (case,) = (case for case in CASES if case.name == name)
    rates = Rates(read=5e12, copy=4.29e12, matmul=772e12, launch=2.0)
    assert rates.floor_ms(case.flops, case.bytes) - 2.0 == pytest.approx(expected, rel=0.015)
    assert rates.sum_ms(case.flops, case.bytes) == pytest.approx(2.0 + case.bytes / 4.29e9 + case.flops / 772e9)


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_every_visible_pair_and_every_seen_key_counts_once(case):
    tiny = case.tiny()
    pairs, seen = 0, set()
    for r, (query_len, seq_len) in enumerate(zip(tiny.query_lens, tiny.seq_lens, strict=True)):
        for i, j in itertools.product(range(query_len), range(seq_len)):
            distance = seq_len - query_len + i - j
            in_window = 0 <= distance < (tiny.window or seq_len)
            chunk = tiny.chunked_local or seq_len
            in_chunk = (seq_len - query_len + i) // chunk == j // chunk
            if tiny.attn_type is not AttentionType.DECODER or (in_window and in_chunk):
                pairs += not tiny.selection or j < math.prod(tiny.selection)  # which keys are selected does not count
                seen.add((0 if j < tiny.common_prefix_len else r, j))
    assert tiny.flops == 2 * (tiny.head_size + tiny.v_head_size) * tiny.num_heads * pairs
    stored = 1 if tiny.float8_cache else 2
    row = tiny.head_size + (0 if tiny.is_latent else tiny.v_head_size)
    keys_and_values = row * min(len(seen), pairs) * tiny.num_kv_heads * stored
    q_and_out = sum(tiny.query_lens) * tiny.num_heads * (tiny.head_size + tiny.v_head_size) * 2
    assert tiny.bytes == keys_and_values + q_and_out


@pytest.mark.parametrize("case", ROW_OPS, ids=lambda case: case.name)
def test_rows_are_read_and_written_once(case):
    tiny = case.tiny()
    run = row_op(tiny, CPU, seed=0)[0].run
    tensors = [tensor for tensor in (*run.args, *run.keywords.values()) if isinstance(tensor, torch.Tensor)]
    if tiny.op == "merge":
        assert tiny.bytes == sum(tensor.nbytes for tensor in tensors)
        return
    by_token = [tensor for tensor in tensors if len(tensor) == tiny.num_tokens]
    counted = sum(tensor.nbytes for tensor in by_token)
    counted += tiny.num_tokens * tiny.num_kv_heads * tiny.head_size * 2 * (1 if tiny.float8_cache else 2)
    if tiny.op == "rope":  # q is written too, and a row of cosines and sines is read for each token
        counted += by_token[0].nbytes + tiny.num_tokens * tiny.head_size * 2
    assert tiny.bytes == counted


@pytest.mark.parametrize("case", INDEX_CASES[:2], ids=lambda case: case.name)
def test_keys_logits_and_choices_of_an_index_layer_count_once(case):
    tiny = case.tiny()
    step = step_of(tiny, CPU, seed=0)
    logits = 4 * sum(tiny.seq_lens)
    if tiny.op == "logits":
        assert tiny.bytes == sum(tiny.seq_lens) * step.index_cache[0, 0].nbytes + logits
        assert tiny.flops == 2 * sum(tiny.seq_lens) * step.q[0].numel()
    else:
        assert tiny.bytes == logits + 4 * step.layer.selected_width * len(tiny.seq_lens)


def test_every_class_has_cases():
    assert {class_of(case) for case in (*CASES, *LATENT)} == {*CLASSES} - {"host"}


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_a_tiny_case_keeps_what_makes_it_special(case):
    tiny = case.tiny()
    for name in (
        "name",
        "head_size",
        "layout",
        "attn_type",
        "sinks",
        "logits_soft_cap",
        "float8_cache",
        "causal",
        "is_uniform",
    ):
        assert getattr(tiny, name) == getattr(case, name) or (name == "head_size" and case.is_latent)
    assert tiny.num_heads // tiny.num_kv_heads == min(case.num_heads // case.num_kv_heads, 80)
    assert (tiny.window is None) == (case.window is None)
    assert (tiny.common_prefix_len > 0) == (case.common_prefix_len > 0)
    assert max(tiny.query_lens) > 1 or max(case.query_lens) == 1
    assert tiny.num_tokens <= 60
    assert sum(tiny.seq_lens) <= 200


def test_requests_of_a_cascade_share_the_blocks_of_their_prefix_alone():
    case = next(case.tiny() for case in ATTENTION if case.common_prefix_len)
    call = attention_call(case, CPU, seed=0)
    first, second, *_ = (request.key for request in requests_of(call))
    prefix = case.common_prefix_len
    assert torch.equal(first[:prefix], second[:prefix])
    assert not torch.equal(first[prefix:], second[prefix:])


def test_a_float8_cache_is_of_the_architectures_type():
    case = next(case for case in ATTENTION if case.float8_cache)
    call = attention_call(case, torch.device("meta"), 1, float8_of("gfx942"))
    assert call.kv_cache is not None
    assert call.kv_cache.dtype == call.layer.kv_cache_dtype == torch.float8_e4m3fnuz
