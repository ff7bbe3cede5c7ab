"""Under `torch.compile(fullgraph=True)` every op gives the bits of eager mode, in its outputs and in what it changes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.ops.small_calls import CALLS, IN_EACH_RUN, bits
from tests.support.mostly_nightly import mostly_nightly

ops = torch.ops.attn_parity
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 16
NUM_BLOCKS, BLOCK_SIZE = 12, 4


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request, device) -> str:
    if request.param == "inductor" and device.type == "cpu":
        pytest.skip("what it generates around an op is seen on a GPU; for a CPU it wants a C++ compiler")
    return request.param


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    yield
    torch.compiler.reset()


def assert_same_bits(function: Callable, compiled: Callable, arguments: dict[str, Any]) -> None:
    """Compare both results, and all arguments afterwards. Slices of one tensor stay slices of one tensor in both copies."""
    for_eager, for_compiled = copy.deepcopy(arguments), copy.deepcopy(arguments)
    expected, got = function(**for_eager), compiled(**for_compiled)
    assert all(map(torch.equal, map(bits, expected), map(bits, got)))
    for name, value in for_eager.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(bits(value), bits(for_compiled[name])), name


@pytest.mark.parametrize("call", mostly_nightly(CALLS, IN_EACH_RUN), indirect=True)
def test_every_compiled_call_has_the_same_bits(call, backend):
    def function(**arguments):
        call.op(**arguments)
        return [arguments[name].clone() for name in written]

    written = call.written
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_same_bits(function, compiled, call.arguments)


def step(qkv, positions, cos_sin_cache, kv_cache, slot_mapping, sinks, scale_caches, **lengths):
    """A layer's part between its projections: the cache is written, then read, and the output used."""
    q, k, v = qkv.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    scales = {} if scale_caches is None else dict(zip(("k_scale_cache", "v_scale_cache"), scale_caches, strict=True))
    ops.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, True, kv_cache, "BLOCKS_FIRST_NHD", slot_mapping, **scales)
    out, lse = torch.zeros_like(q), q.new_zeros(NUM_HEADS, len(q))
    ops.paged_attention(
        q,
        kv_cache,
        layout="BLOCKS_FIRST_NHD",
        num_kv_heads=NUM_KV_HEADS,
        scale=HEAD_SIZE**-0.5,
        attn_type="decoder",
        causal=True,
        causal_per_request=None,
        out=out,
        lse=lse,
        window=[4, 4],
        sinks=sinks,
        **scales,
        **lengths,
    )
    other, other_lse = torch.ones_like(out), torch.zeros_like(lse)
    ops.merge_attn_states(out, lse, other, other_lse, out, lse)
    return out.flatten(1) * 2, lse


def step_of(query_lens: list[int], context_lens: list[int], device: torch.device, *, is_quantized: bool) -> dict[str, Any]:
    """Request r has the blocks 2r and 2r + 1; its context is in the cache already."""
    num_requests, num_tokens = len(query_lens), sum(query_lens)
    positions = torch.cat([torch.arange(c, c + q) for q, c in zip(query_lens, context_lens, strict=True)])
    request = torch.arange(num_requests).repeat_interleave(torch.tensor(query_lens))
    generator = torch.Generator().manual_seed(0)
    kv_cache = torch.randn(NUM_BLOCKS, 2, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE, generator=generator)
    seq_lens = torch.tensor(query_lens) + torch.tensor(context_lens)
    tensors = {
        "qkv": torch.randn(num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, generator=generator),
        "positions": positions,
        "cos_sin_cache": torch.randn(2 * BLOCK_SIZE, HEAD_SIZE, generator=generator),
        "kv_cache": (kv_cache * 50).to(torch.int8) if is_quantized else kv_cache,
        "slot_mapping": request * 2 * BLOCK_SIZE + positions,
        "sinks": torch.randn(NUM_HEADS, generator=generator),
        "scale_caches": torch.rand(2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, generator=generator) if is_quantized else None,
        "query_start_loc": torch.tensor([0, *query_lens]).cumsum(0).int(),
        "seq_lens": seq_lens.int(),
        "block_table": torch.arange(2 * num_requests).int().view(num_requests, 2),
    }
    bounds = {"max_query_len": max(query_lens), "max_seq_len": int(seq_lens.max()), "num_actual_tokens": num_tokens}
    return {name: None if value is None else value.to(device) for name, value in tensors.items()} | bounds


@pytest.mark.parametrize("is_quantized", [False, True])
def test_attention_sees_the_step_that_is_written_before_it(device, backend, is_quantized):
    arguments = step_of([3, 1], [2, 6], device, is_quantized=is_quantized)
    assert_same_bits(step, torch.compile(step, fullgraph=True, backend=backend), arguments)


def test_one_compilation_serves_steps_of_every_length(device, backend):
    """The first step has no two sizes that are equal by chance: dynamo would expect them to stay equal."""
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds, of each process that collects this file

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for query_lens, context_lens in (([3, 2, 1, 5, 2], [2, 6, 0, 1, 4]), ([7, 2], [0, 1]), ([1, 1, 1], [3, 7, 0])):
        arguments = step_of(query_lens, context_lens, device, is_quantized=False)
        assert_same_bits(step, compiled, arguments)
    assert counter.frame_count == 1
