"""On a GPU no call waits for the device, and a captured step serves other lengths, blocks and positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import attn_optimized
import pytest
import torch
from attn_contract import Batch, Layer, Layout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")

ops = torch.ops.attn_parity
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, ROTARY_DIM = 4, 2, 32, 16
NUM_REQUESTS, MAX_BLOCKS, BLOCK_SIZE = 4, 256, 16
NUM_BLOCKS = NUM_REQUESTS * MAX_BLOCKS
TOLERANCE = 2 * 2**-18 * 5
"""For two float32 means of values below 5, and two LSEs of a few ones: each is right to 2**-18 of them."""

Tensors = dict[str, torch.Tensor]
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of the second call: the first one compiles."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def padded_step(query_lens: Sequence[int], context_lens: Sequence[int], *, num_tokens: int) -> Tensors:
    """The tensors that change every step, padded: requests without a query, rows of NaN, slots of -1, garbage of blocks."""
    padding = [0] * (NUM_REQUESTS - len(query_lens))
    starts = torch.tensor([0, *query_lens, *padding]).cumsum(0)
    seq_lens = torch.tensor([*(q + c for q, c in zip(query_lens, context_lens, strict=True)), *padding]).int()
    blocks = torch.randperm(NUM_BLOCKS).int().view(NUM_REQUESTS, MAX_BLOCKS)
    qkv = torch.randn(num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE)
    qkv[starts[-1] :] = torch.nan
    positions = torch.zeros(num_tokens, dtype=torch.int64)
    slot_mapping = torch.full((num_tokens,), -1)
    for r, context_len in enumerate(context_lens):
        rows = slice(starts[r], starts[r + 1])
        positions[rows] = torch.arange(context_len, int(seq_lens[r]))
        slot_mapping[rows] = blocks[r, positions[rows] // BLOCK_SIZE] * BLOCK_SIZE + positions[rows] % BLOCK_SIZE
    is_used = torch.arange(MAX_BLOCKS) * BLOCK_SIZE < seq_lens[:, None]
    return {
        "qkv": qkv,
        "positions": positions,
        "slot_mapping": slot_mapping,
        "query_start_loc": starts.int(),
        "seq_lens": seq_lens,
        "block_table": torch.where(is_used, blocks, -1),
    }


def layer_tensors(*, num_tokens: int) -> Tensors:
    """The tensors that every step reads and writes. All blocks hold numbers, so that any context of a step is there."""
    frequencies = 10000.0 ** -torch.arange(0, 1, 2 / ROTARY_DIM)
    angles = torch.arange(MAX_BLOCKS * BLOCK_SIZE)[:, None] * frequencies
    return {
        "kv_cache": torch.randn(NUM_BLOCKS, 2, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE),
        "cos_sin_cache": torch.cat([angles.cos(), angles.sin()], dim=1),
        "sinks": torch.randn(NUM_HEADS),
        "out": torch.full((num_tokens, NUM_HEADS, HEAD_SIZE), torch.nan),
        "lse": torch.full((NUM_HEADS, num_tokens), torch.nan),
    }


def run(tensors: Tensors, *, max_query_len: int, max_seq_len: int) -> None:
    q, k, v = tensors["qkv"].split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    kv_cache, layout = tensors["kv_cache"], "BLOCKS_FIRST_NHD"
    positions, cos_sin_cache, slot_mapping = (tensors[name] for name in ("positions", "cos_sin_cache", "slot_mapping"))
    ops.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, True, kv_cache, layout, slot_mapping)
    ops.paged_attention(
        q,
        kv_cache,
        layout,
        num_kv_heads=NUM_KV_HEADS,
        scale=HEAD_SIZE**-0.5,
        attn_type="decoder",
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        num_actual_tokens=len(q),
        causal=True,
        causal_per_request=None,
        **{name: tensors[name] for name in ("query_start_loc", "seq_lens", "block_table", "out", "lse", "sinks")},
    )


def layer_and_batch(tensors: Tensors, *, max_query_len: int, max_seq_len: int) -> tuple[Layer, Batch]:
    layer = Layer(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        sinks=tensors["sinks"],
        layout=Layout.BLOCKS_FIRST_NHD,
    )
    batch = Batch(
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        num_actual_tokens=len(tensors["qkv"]),
        causal=True,
        **{name: tensors[name] for name in ("query_start_loc", "seq_lens", "block_table")},
    )
    return layer, batch


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_call_does_not_wait_and_can_be_captured(call):
    call.op(**call.arguments)
    with waiting_is_an_error():
        call.op(**call.arguments)
        with pytest.raises(RuntimeError, match="synchronizing"):
            next(call.arguments[name] for name in ("out", "kv_cache", "index_cache") if name in call.arguments).cpu()
    captured(lambda: call.op(**call.arguments)).replay()


def test_cascade_attention_does_not_wait_and_can_be_captured():
    torch.manual_seed(0)
    common_prefix_len = 32 * BLOCK_SIZE
    step = padded_step([1, 2, 1], [700, 650, common_prefix_len], num_tokens=6)
    step["block_table"][:, :32] = step["block_table"][0, :32]
    tensors = {name: tensor.cuda() for name, tensor in (step | layer_tensors(num_tokens=6)).items()}
    q, kv_cache = tensors["qkv"][:, :NUM_HEADS], tensors["kv_cache"]
    layer, batch = layer_and_batch(tensors, max_query_len=2, max_seq_len=4096)
    out, lse = tensors["out"], tensors["lse"]

    def cascade():
        attn_optimized.cascade_attention(q, kv_cache, layer, batch, common_prefix_len, out=out, lse=lse)

    graph = captured(cascade)
    with waiting_is_an_error():
        cascade()
    expected, expected_lse = out.clone(), lse.clone()
    assert expected[:4].isfinite().all()
    for tensor in (out, lse):
        tensor.fill_(torch.nan)
    graph.replay()
    assert_equal(out, expected)
    assert_equal(lse, expected_lse)


DECODE = [([1, 1, 1, 1], [3000, 0, 511, 4095]), ([1, 1], [17, 2047]), ([1, 0, 1], [100, 700, 3]), ([], [])]
MIXED = [([40, 1, 7], [0, 200, 30]), ([1, 1, 1, 1], [255, 3, 16, 0]), ([0, 33, 31], [5, 100, 225]), ([], [])]


@pytest.mark.parametrize(
    ("steps", "num_tokens", "max_query_len", "max_seq_len", "is_split"),
    [pytest.param(DECODE, 4, 1, 4096, True, id="decode"), pytest.param(MIXED, 64, 40, 256, False, id="mixed")],
)
def test_a_captured_step_serves_other_steps(steps, num_tokens, max_query_len, max_seq_len, is_split):
    """Captured as serving engines do it, with padding alone: all that a replay computes, it reads from the tensors of then."""
    torch.manual_seed(0)
    bounds = {"max_query_len": max_query_len, "max_seq_len": max_seq_len}
    static = padded_step([], [], num_tokens=num_tokens) | layer_tensors(num_tokens=num_tokens)
    static = {name: tensor.cuda() for name, tensor in static.items()}
    plan = attn_optimized.plan_of(static["qkv"][:, :NUM_HEADS], *layer_and_batch(static, **bounds))
    assert (plan.splits > 1) == is_split
    graph = captured(lambda: run(static, **bounds))

    for query_lens, context_lens in steps:
        step = padded_step(query_lens, context_lens, num_tokens=num_tokens)
        for name, tensor in step.items():
            static[name].copy_(tensor)
        for name in ("out", "lse"):
            static[name].fill_(torch.nan)
        eager = {name: tensor.clone() for name, tensor in static.items()}
        reference = {name: tensor.to("cpu", copy=True) for name, tensor in static.items()}
        run(eager, **bounds)
        run(reference, **bounds)
        graph.replay()

        for name, tensor in static.items():
            assert_equal(tensor, eager[name])
        for name in ("qkv", "kv_cache"):
            assert_equal(static[name].cpu(), reference[name])
        for name in ("out", "lse"):
            torch.testing.assert_close(static[name].cpu(), reference[name], rtol=0, atol=TOLERANCE, equal_nan=True)
