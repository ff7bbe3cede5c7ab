"""vLLM's Triton unified_attention as TritonAttentionImpl of v1/attention/backends/triton_attn.py calls it.

Lines of that file: 697-734 are the call, 655-657 and 738-748 take K and V from the cache, 503-508 say that a window of W tokens
is (W - 1, 0), which the kernel takes for (W - 1, W - 1) in steps that are not causal (ops/triton_attention_helpers.py:372-379).
58-59 and 136 have the threshold and the number of segments of the 3D kernel, 321-337 the dtypes, 340 the blocks, 380 the head
sizes. The engine sends no qq_bias. Models with ALiBi are causal decoders without sinks: the kernel adds slope * (j - p), which
is no bias by distance where keys lie ahead. Models with ranges are causal, and with both the kernel does not compile: the mask
of one row grows in a loop.

A chunk of C tokens is a window of C with a look-back of 0 chunks (998-1000 of the kernel's file). One model has chunks, with a
look-back of 1 (models/rnj1.py:143), for which the contract has no rule: 0 takes the same code. They come in causal decoders
without ranges. The engine keeps the keys of a window of C tokens, which begins before the chunk does: keys that only the chunk
hides are the request's own, and V is masked only by the window (571-585). R-SWA and ALiBi-sqrt (models/step1.py:145) are no
rules of the contract either.

The kernel loads entries of the block table up to the end of a tile of keys (431), which has 128 keys at most. Rows of the
engine's table have entries for a multiple of 128 tokens (worker/block_table.py:29-42), so no entry past a row is loaded.
"""

import dataclasses
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import LimitError
from attn_fuzz.findings.vllm import UNIFIED_ATTENTION
from attn_fuzz.targets.backends.plain import beyond_vllm_queries
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.declaring import SHARES_A_QUERY
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.packages.vllm.package import KVQuantMode
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.verdict.rounding import Rounding

SOURCES = vllm_package.ops("triton_unified_attention", "triton_attention_helpers")
MIN_LAUNCH_GRID_SIZE_2D = 128
NUM_PAR_SOFTMAX_SEGMENTS = 16
MAX_3D_QUERY_LEN = 8
ENGINE = dataclasses.replace(
    VLLM,
    mixed_alibi=False,
    mixed_ranges=False,
    cited={
        "windows": "v1/attention/backends/triton_attn.py:503-508",
        "mixed_ranges": "v1/attention/ops/triton_attention_helpers.py:361-398, which does not compile",
    },
)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    module, _ = SOURCES.load()
    if batch.causal is not True and "Only causal attention is supported" in inspect.getsource(module.unified_attention):
        raise LimitError("unified_attention of these sources takes no step that is not causal", "a release that takes one")
    foreign.call(
        module.unified_attention,
        max_seqlen_k=batch.max_seq_len,
        causal=batch.causal,
        output_scale=layer.output_scale,
        mm_prefix_range=batch.bidirectional_ranges,
        mm_prefix_clamp_sliding_window=layer.ranges_clamped,
        **(arguments(q, layer, batch, out) | _chunks(layer) | _query_scale(module, layer)),
        **_cache(kv_cache, layer, batch.num_requests),
    )


def _query_scale(module: ModuleType, layer: Layer) -> dict[str, Any]:
    """Before 0.22 the engine serves only float8 queries of the scale 1, and passes no scale."""
    is_known = "q_scale" in module.kernel_unified_attention.arg_names
    is_one = layer.q_scale is not None and bool((layer.q_scale == 1).all())
    return {"q_descale": None} if is_one and not is_known else {}


def _chunks(layer: Layer) -> dict[str, Any]:
    return {} if layer.chunked_local is None else {"chunk_lookback": 0, "window_size": (layer.chunked_local - 1, 0)}


def arguments(q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor) -> dict[str, Any]:
    """Arguments of unified_attention and unified_attention_diffkv, beside K and V. The segments' memory is full of NaN."""
    rows = batch.num_actual_tokens
    threshold = MIN_LAUNCH_GRID_SIZE_2D // layer.num_kv_heads
    scratch = (threshold * MAX_3D_QUERY_LEN, layer.num_heads, NUM_PAR_SOFTMAX_SEGMENTS)
    padded = 1 << (layer.v_head_size - 1).bit_length()
    return {
        "q": q[:rows],
        "out": rows_of(out, layer, rows),
        "cu_seqlens_q": batch.query_start_loc,
        "max_seqlen_q": batch.max_query_len,
        "seqused_k": batch.seq_lens,
        "softmax_scale": layer.scale,
        "window_size": (layer.window[0], min(layer.window[0], 0)),
        "block_table": _block_table(batch),
        "softcap": layer.logits_soft_cap or 0,
        "alibi_slopes": layer.alibi_slopes,
        "sinks": layer.sinks,
        "seq_threshold_3D": threshold,
        "num_par_softmax_segments": NUM_PAR_SOFTMAX_SEGMENTS,
        "softmax_segm_output": q.new_full((*scratch, padded), torch.nan, dtype=torch.float32),
        "softmax_segm_max": q.new_full(scratch, torch.nan, dtype=torch.float32),
        "softmax_segm_expsum": q.new_full(scratch, torch.nan, dtype=torch.float32),
        "q_descale": layer.q_scale,
    }


def _block_table(batch: Batch) -> torch.Tensor:
    """The block table in rows of a multiple of 8 entries, which are those of 128 tokens if blocks have 16 slots."""
    assert batch.block_table is not None
    return torch.nn.functional.pad(batch.block_table, (0, -batch.block_table.shape[1] % 8))


def _cache(kv_cache: torch.Tensor, layer: Layer, num_requests: int) -> dict[str, Any]:
    if layer.layout is Layout.CONTENT_PACKED_SCALED:
        k, v, k_scales, v_scales = vllm_package.keys_values_and_scales(kv_cache, layer)
        mode = KVQuantMode.INT8_PER_TOKEN_HEAD if kv_cache.dtype == torch.int8 else KVQuantMode.FP8_PER_TOKEN_HEAD
        by_token = {"k_scale_cache": k_scales, "v_scale_cache": v_scales}
        return {"k": k, "v": v, "k_descale": None, "v_descale": None, "kv_quant_mode": mode, **by_token}
    k, v = foreign.keys_and_values(kv_cache, layer)
    mode = KVQuantMode.NONE if layer.kv_cache_dtype is None else KVQuantMode.FP8_PER_TENSOR
    # without quantization the engine's scales are 1, and the kernel does not load them
    k_scale, v_scale = (kv_cache.new_ones(1, dtype=torch.float32) if x is None else x for x in (layer.k_scale, layer.v_scale))
    shape = (num_requests, layer.num_kv_heads)
    return {"k": k, "v": v, "k_descale": k_scale.expand(shape), "v_descale": v_scale.expand(shape), "kv_quant_mode": mode}


def _beyond(case: Case) -> str | None:
    others = case.window != (-1, -1) or case.bidirectional_ranges or case.recycled
    if case.chunked_local is not None and (others or not all(request.causal for request in case.requests)):
        return "chunks with a window, with ranges, with recycled keys, or in a step that is not causal"
    return beyond_queries(case)


def beyond_queries(case: Case) -> str | None:
    """Float8 queries that the engine never sends, or whose scales the kernel reads one of (triton_unified_attention.py:388)."""
    if case.q_scale == "head" and case.num_kv_heads > 1:
        return "a scale of float8 queries for each head"
    return beyond_vllm_queries(case)


def _events(step: Step) -> Iterable[str]:
    batch = step.batch
    is_causal = batch.causal is True and batch.bidirectional_ranges is None
    return ["3D"] if batch.max_query_len <= 1 or (batch.max_query_len <= MAX_3D_QUERY_LEN and is_causal) else ["2D"]


ROUNDING = Rounding(
    keys_per_tile=32,
    splits=NUM_PAR_SOFTMAX_SEGMENTS,
    rounds_dequantized=True,
    float8_weights=True,
    weight_scale=256,  # triton_unified_attention.py:592-599
)


VLLM_UNIFIED_ATTENTION = SOURCES.target(
    name="vllm-unified-attention",
    description="the Triton unified_attention of vLLM, as its TRITON_ATTN calls it",
    attention=_attention,
    support=vllm_package.support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
        dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED),
        rules=(
            *("non_causal", "window", "chunked_local", "bidirectional_ranges", "ranges_clamped"),
            *("logits_soft_cap", "q_scale", "alibi_slopes", "sinks"),
        ),
        cache_dtypes=("fp8_e4m3fn", "int8"),
        output_dtypes=("fp8_e4m3fn",),
        engine=ENGINE,
        tile_sizes=(16, 32),
        max_tokens=64,
        exclude=_beyond,
    ),
    rounding=ROUNDING,
    events=_events,
    findings=UNIFIED_ATTENTION,
    races=SHARES_A_QUERY,
)
