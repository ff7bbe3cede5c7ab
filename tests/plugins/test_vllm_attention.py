"""Layers in vLLM's own caches, step by step, against attention over keys that lie request by request.

The caches, metadata and specs are vLLM's objects; what runs is this project's.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

from attn_vllm.parity_reference import ParityReferenceBackend
from attn_vllm.parity_triton import ParityTritonBackend
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import (
    EncoderOnlyAttentionSpec,
    FullAttentionSpec,
    KVCacheTensor,
    compute_layout_strides,
    create_kv_cache_views,
    get_kv_quant_mode,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE, NUM_BLOCKS, NUM_LAYERS = 4, 2, 32, 4, 16, 2
SCALE = HEAD_SIZE**-0.5
UNTOUCHED = -1
"""Every byte of a cache to begin with: a NaN in all float types."""
STORED = {"auto": torch.float32, "fp8": torch.uint8, "int8_per_token_head": torch.int8, "fp8_per_token_head": torch.uint8}
BACKENDS = [ParityReferenceBackend, ParityTritonBackend]
STEPS = [[5, 9, 1], [1, 6, 3], [1, 1, 4], [0, 1, 1]]
"""Query lengths of three requests: prefill, mixed, several tokens, a request that has ended."""

pytestmark = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.get_name())


class LoadedLayer(SimpleNamespace):
    """The attributes of vLLM's Attention module once its weights are loaded."""

    def __init__(self, device: torch.device, **more):
        super().__init__(_k_scale=torch.tensor(0.02, device=device), _v_scale=torch.tensor(0.03, device=device), **more)


class VllmStep(NamedTuple):
    """One step of vLLM, and the same for requests that each have one block of their own."""

    common: CommonAttentionMetadata
    num_tokens: int
    own: Batch


def step_of(query_lens, seq_lens, block_table, device, *, causal=True, padding=2, ranges=None) -> VllmStep:
    """`padding` tokens belong to no request, and one request more has neither queries nor keys."""
    starts = torch.tensor([0, *query_lens, 0]).cumsum(0).int()
    lengths = torch.tensor([*seq_lens, 0]).int()
    positions = [torch.arange(n - q, n) for q, n in zip(query_lens, seq_lens, strict=True)]
    slots = [block_table[r, at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE for r, at in enumerate(positions)]
    num_tokens = int(starts[-1])
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(device),
        num_reqs=len(lengths),
        num_actual_tokens=num_tokens + padding,
        max_query_len=max(query_lens),
        max_seq_len=64,
        block_table_tensor=torch.cat([block_table, torch.zeros_like(block_table[:1])]).to(device),
        slot_mapping=torch.cat([*slots, torch.full((padding,), -1)]).to(device),
        causal=causal,
        mm_req_doc_ranges=ranges,
    )
    own = Batch(
        query_start_loc=starts.to(device),
        seq_lens=lengths.to(device),
        max_query_len=max(query_lens),
        max_seq_len=64,
        num_actual_tokens=num_tokens,
        causal=causal,
        block_table=torch.arange(len(lengths), dtype=torch.int32, device=device)[:, None],
    )
    return VllmStep(common, num_tokens, own)


class Served:
    """One layer of a model in vLLM, and the keys and values of its requests as they should be read."""

    def __init__(self, backend, device, kv_cache, *, kv_cache_dtype="auto", loaded=None, **options):
        with device:  # where vLLM builds its models
            self.impl = backend.get_impl_cls()(
                NUM_HEADS, HEAD_SIZE, SCALE, NUM_KV_HEADS, kv_cache_dtype=kv_cache_dtype, **options
            )
        self.kv_cache, self.kv_cache_dtype = kv_cache, kv_cache_dtype
        self.loaded = LoadedLayer(device, **(loaded or {}))
        self.own_cache = torch.full((4, 2, 64, NUM_KV_HEADS, HEAD_SIZE), torch.nan, device=device)

    def write(self, k, v, step: VllmStep, seq_lens) -> None:
        self.impl.do_kv_cache_update(self.loaded, k, v, self.kv_cache, step.common.slot_mapping)
        starts = step.common.query_start_loc_cpu
        for r, seq_len in enumerate(seq_lens):
            rows, own = slice(starts[r], starts[r + 1]), slice(seq_len - int(starts[r + 1] - starts[r]), seq_len)
            self.own_cache[r, 0, own] = self.as_stored(k[rows], self.loaded._k_scale)
            self.own_cache[r, 1, own] = self.as_stored(v[rows], self.loaded._v_scale)

    def as_stored(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if self.kv_cache_dtype == "auto":
            return rows
        dtype = torch.int8 if self.kv_cache_dtype.startswith("int8") else torch.float8_e4m3fn
        if self.kv_cache_dtype.endswith("per_token_head"):
            scale = attn_reference.row_scales(rows, dtype)
        return attn_reference.dequantize(attn_reference.quantize(rows, scale, dtype), scale, torch.float32)

    def check(self, q, step: VllmStep, metadata, **layer) -> None:
        out = torch.full_like(q, torch.nan)
        assert self.impl.forward(self.loaded, q, None, None, self.kv_cache, metadata, out) is out
        expected = attn_reference.paged_attention(
            q[: step.num_tokens], self.own_cache, plain_layer(**layer), step.own, precision=torch.float64
        )
        torch.testing.assert_close(out[: step.num_tokens], expected, rtol=0, atol=2e-5)
        assert out[step.num_tokens :].isnan().all()


def plain_layer(**layer) -> Layer:
    return Layer(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=SCALE,
        layout=Layout.BLOCKS_FIRST_NHD,
        **layer,
    )


def allocate(backend, layout: KVCacheLayout, kv_cache_dtype: str, device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A raw allocation for two layers and vLLM's views of it."""
    spec = backend.customize_spec(
        FullAttentionSpec(
            block_size=BLOCK_SIZE,
            num_kv_heads=NUM_KV_HEADS,
            head_size=HEAD_SIZE,
            dtype=STORED[kv_cache_dtype],
            kv_quant_mode=get_kv_quant_mode(kv_cache_dtype),
        )
    )
    size = NUM_LAYERS * NUM_BLOCKS * spec.page_size_bytes
    raw = torch.full((size,), UNTOUCHED, dtype=torch.int8, device=device)
    layer_stride, block_stride, *_ = compute_layout_strides(spec, NUM_BLOCKS, NUM_LAYERS, layout)
    placed = KVCacheTensor(size=size, layers=["first", "second"], layer_stride=layer_stride, block_stride=block_stride)
    return raw, create_kv_cache_views(raw, spec, NUM_BLOCKS, layout, placed)


def builder_of(backend, device, spec=None):
    spec = spec or FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, dtype=torch.float32)
    return backend.get_builder_cls()(spec, ["first", "second"], SimpleNamespace(model_config=None), device)


def shuffled_blocks() -> torch.Tensor:
    """[3, 5] int32 block ids; vLLM never hands out block 0."""
    return (1 + torch.randperm(NUM_BLOCKS - 1, generator=torch.Generator().manual_seed(0)))[:15].view(3, 5).int()


def qkv(step: VllmStep, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices of one fused tensor, as a model's are; padded rows hold NaN."""
    fused = torch.randn(step.common.num_actual_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE)
    fused[step.num_tokens :] = torch.nan
    q, k, v = fused.to(device).split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    return q, k, v


@pytest.mark.parametrize("kv_cache_dtype", STORED)
@pytest.mark.parametrize("layout", KVCacheLayout, ids=lambda layout: layout.name)
def test_two_layers_of_one_allocation(backend, layout, kv_cache_dtype, device):
    """In every physical order, each layer reads what it wrote, and no byte changes but those of the written slots."""
    torch.manual_seed(0)
    raw, views = allocate(backend, layout, kv_cache_dtype, device)
    layers = [Served(backend, device, view, kv_cache_dtype=kv_cache_dtype) for view in views]
    builder, block_table = builder_of(backend, device), shuffled_blocks()
    seq_lens = [0, 0, 0]
    for query_lens in STEPS:
        seq_lens = [n + q for n, q in zip(seq_lens, query_lens, strict=True)]
        step = step_of(query_lens, seq_lens, block_table, device)
        metadata = builder.build(0, step.common)
        for layer in layers:
            q, k, v = qkv(step, device)
            layer.write(k, v, step, seq_lens)
            layer.check(q, step, metadata)
    row = views[0].shape[-1] * views[0].element_size()
    written = raw.view(-1, row).ne(UNTOUCHED).any(1).sum()
    assert written == NUM_LAYERS * NUM_KV_HEADS * sum(seq_lens)


@pytest.mark.parametrize("causal", [True, False, "per request"])
def test_a_sliding_window_counts_the_token_itself(backend, causal, device):
    """3 keys up to the query's own and, where nothing is causal, 2 more behind it, as in vLLM's own Triton backend."""
    torch.manual_seed(0)
    if causal == "per request":
        causal = torch.tensor([True, False, True, False], device=device)
    _, views = allocate(backend, KVCacheLayout.LBNHC, "auto", device)
    layer = Served(backend, device, views[0], sliding_window=3)
    step = step_of([5, 9, 2], [5, 9, 2], shuffled_blocks(), device, causal=causal)
    q, k, v = qkv(step, device)
    layer.write(k, v, step, [5, 9, 2])
    layer.check(q, step, builder_of(backend, device).build(0, step.common), window=(2, 2))


@pytest.mark.parametrize("clamped", [False, True])
def test_images_are_seen_both_ways(backend, clamped, device):
    """Ranges of positions, both ends included, for some requests only; Gemma 4's keep the left edge of the window."""
    torch.manual_seed(0)
    _, views = allocate(backend, KVCacheLayout.LBHNC, "auto", device)
    loaded = {"mm_prefix_clamp_sliding_window": clamped}
    layer = Served(backend, device, views[1], sliding_window=2, loaded=loaded)
    ranges = {0: [(1, 3)], 2: [(0, 1), (5, 8)]}
    step = step_of([5, 3, 9], [5, 3, 9], shuffled_blocks(), device, ranges=ranges)
    q, k, v = qkv(step, device)
    layer.write(k, v, step, [5, 3, 9])
    own_ranges = [[(1, 3), (0, -1)], [(0, -1)] * 2, [(0, 1), (5, 8)], [(0, -1)] * 2]
    own = replace(step.own, bidirectional_ranges=torch.tensor(own_ranges, dtype=torch.int32, device=device))
    metadata = builder_of(backend, device).build(0, step.common)
    layer.check(q, step._replace(own=own), metadata, window=(1, 1), ranges_clamped=clamped)


def test_soft_cap_alibi_and_sinks_reach_the_kernel(backend, device):
    torch.manual_seed(0)
    slopes, sinks = [0.5, 0.25, 0.125, 0.0625], torch.tensor([0.5, -1.0, 2.0, 0.0])
    _, views = allocate(backend, KVCacheLayout.BLNHC, "auto", device)
    layer = Served(backend, device, views[0], alibi_slopes=slopes, logits_soft_cap=0.5, sinks=sinks.to(device))
    step = step_of([5, 1, 2], [5, 1, 2], shuffled_blocks(), device)
    q, k, v = qkv(step, device)
    layer.write(k, v, step, [5, 1, 2])
    rules = {"logits_soft_cap": 0.5, "alibi_slopes": torch.tensor(slopes, device=device), "sinks": sinks.to(device)}
    layer.check(q, step, builder_of(backend, device).build(0, step.common), **rules)


def test_an_encoder_reads_no_cache(backend, device):
    torch.manual_seed(0)
    spec = EncoderOnlyAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, dtype=torch.float32)
    impl = backend.get_impl_cls()(NUM_HEADS, HEAD_SIZE, SCALE, NUM_KV_HEADS, None, 3, "auto", None, "encoder_only", None)
    step = step_of([5, 9, 1], [5, 9, 1], shuffled_blocks(), device, causal=False)
    metadata = builder_of(backend, device, spec).build(0, step.common)
    q, k, v = qkv(step, device)
    impl.do_kv_cache_update(None, k, v, torch.empty(0), step.common.slot_mapping)
    out = torch.full_like(q, torch.nan)
    impl.forward(LoadedLayer(device), q, k, v, torch.empty(0), metadata, out)
    layer = Layer(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=SCALE,
        attn_type=AttentionType.ENCODER_ONLY,
        window=(2, 2),
    )
    own = replace(step.own, block_table=None)
    n = step.num_tokens
    expected = attn_reference.varlen_attention(q[:n], k[:n], v[:n], layer, own, precision=torch.float64)
    torch.testing.assert_close(out[:n], expected, rtol=0, atol=2e-5)
    assert out[n:].isnan().all()


def test_a_float8_output_is_scaled(backend, device):
    torch.manual_seed(0)
    _, views = allocate(backend, KVCacheLayout.LBHNC, "auto", device)
    layer = Served(backend, device, views[0])
    step = step_of([5, 9, 1], [5, 9, 1], shuffled_blocks(), device)
    q, k, v = qkv(step, device)
    layer.write(k, v, step, [5, 9, 1])
    metadata = builder_of(backend, device).build(0, step.common)
    exact, output_scale = torch.zeros_like(q), torch.tensor([0.01], device=device)
    layer.impl.forward(layer.loaded, q, k, v, layer.kv_cache, metadata, exact)
    out = torch.zeros(q.shape, dtype=torch.float8_e4m3fn, device=device)
    layer.impl.forward(layer.loaded, q, k, v, layer.kv_cache, metadata, out, output_scale)
    torch.testing.assert_close(out.float() * output_scale, exact, rtol=2**-4, atol=2**-9 * 0.01)


def test_the_profiling_run_has_no_metadata(backend, device):
    impl = backend.get_impl_cls()(NUM_HEADS, HEAD_SIZE, SCALE)
    q = torch.full((3, NUM_HEADS, HEAD_SIZE), torch.nan, device=device)
    assert impl.forward(LoadedLayer(device), q, q, q, torch.empty(0), None, q.clone()).eq(0).all()


def test_a_rotated_write_writes_the_rotated_keys(backend, device):
    """The query is rotated in place, and the cache gets the rotated key."""
    torch.manual_seed(0)
    _, views = allocate(backend, KVCacheLayout.LBNHC, "auto", device)
    layer = Served(backend, device, views[0])
    seq_lens = [5, 9, 1]
    step = step_of(seq_lens, seq_lens, shuffled_blocks(), device)
    q, k, v = qkv(step, device)
    angles = torch.randn(64, HEAD_SIZE // 2, device=device)
    cos_sin_cache = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.tensor([*range(5), *range(9), 0, 0, 0], device=device)

    def rotated(rows: torch.Tensor) -> torch.Tensor:
        at = angles[positions][:, None]
        x, y = rows.chunk(2, dim=-1)
        return torch.cat([x * at.cos() - y * at.sin(), y * at.cos() + x * at.sin()], dim=-1)

    expected_q, rotated_k = rotated(q), rotated(k)
    assert layer.impl.fused_rope_kvcache_supported()
    layer.impl.do_rope_and_kv_cache_update(
        layer.loaded, q, k, v, positions, cos_sin_cache, True, views[0], step.common.slot_mapping
    )
    torch.testing.assert_close(q, expected_q, rtol=0, atol=1e-6, equal_nan=True)
    written = layer.kv_cache.clone()
    layer.write(rotated_k, v, step, seq_lens)
    torch.testing.assert_close(written, layer.kv_cache, rtol=0, atol=1e-6, equal_nan=True)


def test_another_group_brings_its_own_blocks(backend, device):
    """vLLM builds the metadata once for groups that differ in nothing else."""
    torch.manual_seed(0)
    builder, (here, there) = builder_of(backend, device), shuffled_blocks()[:, :4].split([2, 2], dim=1)
    seq_lens = [5, 6, 1]
    steps = [step_of(seq_lens, seq_lens, block_table, device) for block_table in (here, there)]
    metadata = builder.build(0, steps[0].common)
    metadata = builder.update_block_table(metadata, steps[1].common.block_table_tensor, steps[1].common.slot_mapping)
    _, views = allocate(backend, KVCacheLayout.LBNHC, "auto", device)
    layer = Served(backend, device, views[0])
    q, k, v = qkv(steps[1], device)
    layer.write(k, v, steps[1]._replace(common=steps[1].common.replace(slot_mapping=metadata.slot_mapping)), seq_lens)
    layer.check(q, steps[1], metadata)


def test_scales_of_every_head(backend, device):
    """A checkpoint may bring them after the layer was built."""
    torch.manual_seed(0)
    _, views = allocate(backend, KVCacheLayout.BHLNC, "fp8", device)
    layer = Served(backend, device, views[1], kv_cache_dtype="fp8")
    of_head = torch.tensor([0.02, 0.04], device=device)
    layer.loaded._k_scale, layer.loaded._v_scale = of_head, of_head.flip(0)
    step = step_of([5, 2, 1], [5, 2, 1], shuffled_blocks(), device)
    q, k, v = qkv(step, device)
    layer.impl.do_kv_cache_update(layer.loaded, k, v, views[1], step.common.slot_mapping)
    stored = [
        attn_reference.dequantize(attn_reference.quantize(x, s[:, None], torch.float8_e4m3fn), s[:, None], torch.float32)
        for x, s in ((k, of_head), (v, of_head.flip(0)))
    ]
    for r, rows in enumerate(torch.stack(stored, dim=1)[: step.num_tokens].split([5, 2, 1])):
        layer.own_cache[r, :, : len(rows)] = rows.transpose(0, 1)
    layer.check(q, step, builder_of(backend, device).build(0, step.common))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", "fp8_per_token_head"])
def test_a_captured_step_serves_others(backend, kv_cache_dtype, device):
    """Capture a padded step, fill the same tensors anew, and replay, as vLLM does. Nothing waits for the device."""
    if backend is ParityReferenceBackend:
        pytest.skip("the reference reads values: it says NEVER")
    torch.manual_seed(0)
    _, views = allocate(backend, KVCacheLayout.LBNHC, kv_cache_dtype, device)
    layer = Served(backend, device, views[0], kv_cache_dtype=kv_cache_dtype)
    builder, block_table = builder_of(backend, device), shuffled_blocks()
    shape = {"num_actual_tokens": 18, "max_query_len": 18, "max_seq_len": 64}
    static = step_of([4, 5, 6], [4, 5, 6], block_table, device, padding=3).common.replace(**shape)
    fused = torch.zeros(18, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_SIZE, device=device)
    q, k, v = fused.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    static.slot_mapping.fill_(-1)
    metadata, out = builder.build_for_cudagraph_capture(static), torch.empty_like(q)

    def run() -> None:
        layer.impl.do_kv_cache_update(layer.loaded, k, v, layer.kv_cache, static.slot_mapping)
        layer.impl.forward(layer.loaded, q, k, v, layer.kv_cache, metadata, out)

    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    seq_lens = [0, 0, 0]
    for query_lens in STEPS:
        seq_lens = [n + length for n, length in zip(seq_lens, query_lens, strict=True)]
        step = step_of(query_lens, seq_lens, block_table, device, padding=18 - sum(query_lens))
        torch.cuda.set_sync_debug_mode("error")
        try:
            eager = builder.build(0, step.common)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name in ("query_start_loc", "seq_lens", "block_table_tensor", "slot_mapping"):
            getattr(static, name).copy_(getattr(step.common, name))
        fused.copy_(torch.cat(qkv(step, device), dim=1))
        out.fill_(torch.nan)
        graph.replay()
        layer.write(k, v, step, seq_lens)
        layer.check(q, step, eager)
        expected = torch.full_like(q, torch.nan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            layer.impl.forward(layer.loaded, q, k, v, layer.kv_cache, eager, expected)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5, equal_nan=True)
