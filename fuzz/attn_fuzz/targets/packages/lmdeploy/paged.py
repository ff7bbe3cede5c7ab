"""LMDeploy's Triton attention as its TritonAttentionImpl of backends/cuda/attention/default.py calls it: write, then attend.

The object that the engine builds for a layer is built here, too. It writes the step's keys into the cache, and its `forward` is
called (436-514). A decode has one query of each request, and reads the cache by pages. A model of blocks that are denoised,
such as SDAR, decodes a block of each request at once, and each of its queries sees all keys (models/sdar.py:58). A prefill
flattens the cache of all requests first (376-428).

Scales of a float8 cache are 1 in the engine (nn/attention.py:77-80). So that of K is a factor of the softmax scale here, and
that of V one of the output.

The lines that are cited are those of the wheel of LMDeploy 0.18.0, in lmdeploy/pytorch. `ATTN_PARITY_LMDEPLOY=FOLDER` takes the
sources of another release.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.lmdeploy import BLOCK_DECODE, DECODE, PREFILL
from attn_fuzz.targets.packages.lmdeploy import package as lmdeploy_package
from attn_fuzz.targets.packages.lmdeploy.package import SOURCES, UNITS, QuantPolicy
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _forward(q, k, v, kv_cache, layer, batch, out, is_decoding=True)


def _prefill(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _forward(q, k, v, kv_cache, layer, batch, out, is_decoding=False)


def _forward(q, k, v, kv_cache, layer: Layer, batch: Batch, out, *, is_decoding: bool) -> None:
    rows = int(batch.query_start_loc[-1])
    caches = foreign.keys_and_values(kv_cache, layer)
    _forget(caches, batch)
    metadata = _metadata(batch, layer, is_decoding)
    built = _built(layer, metadata.max_q_seqlen if is_decoding else 1)
    one = None if layer.k_scale is None else torch.ones_like(layer.k_scale)
    with _launches_for_rocm(q.device):
        built._fill_kv_cache_impl(k[:rows], v[:rows], *caches, metadata, metadata.max_q_seqlen, layer.k_scale, layer.v_scale)
        result = built.forward(
            q[:rows], None, None, *caches, metadata, k_scales_zeros=one, v_scales_zeros=one, learnable_sink=layer.sinks
        )
    rows_of(out, layer, rows)[:] = result if layer.v_scale is None else result.float() * layer.v_scale


def _forget(caches: Iterable[torch.Tensor], batch: Batch) -> None:
    """Overwrite this step's keys, which the cache holds already, by NaN: the engine writes them itself."""
    assert batch.block_table is not None
    lengths = zip(batch.query_start_loc.diff().tolist(), batch.seq_lens.tolist(), strict=True)
    for table, (queries, keys) in zip(batch.block_table, lengths, strict=True):
        position = torch.arange(keys - queries, keys, device=table.device)
        for cache in caches:
            size = cache.shape[1]
            cache.view(torch.uint8)[table[position // size].long(), position % size] = 0xFF


@contextlib.contextmanager
def _launches_for_rocm(device: torch.device) -> Iterator[None]:
    """The tiles of a prefill are those for ROCm where torch is built for it (kernels/cuda/flashattention.py:542-544)."""
    with mock.patch.object(torch.version, "hip", "7.2") if device.type == "cpu" else contextlib.nullcontext():
        yield


def _built(layer: Layer, block: int) -> Any:
    """The object of `Attention` for a layer (nn/attention.py:51-69). Its window is the model's (models/gpt_oss.py:56)."""
    backend, kernels = lmdeploy_package.backend(), lmdeploy_package.kernels()
    spec = {
        "num_heads": layer.num_heads,
        "scale": layer.scale if layer.k_scale is None else layer.scale * float(layer.k_scale),
        "num_kv_heads": layer.num_kv_heads,
        "alibi": layer.alibi_slopes is not None,
        "sliding_window": None if layer.window[0] < 0 else layer.window[0] + 1,
        "logit_softcapping": layer.logits_soft_cap or 0.0,
        "causal": True,
        "use_flash_mla": False,
        "learnable_sink": layer.sinks is not None,
        "block_sparse_size": block,
    }
    if hasattr(backend, "_build_paged_attention"):
        built = backend._build_paged_attention(SimpleNamespace(**spec, head_dim=layer.head_size, v_head_dim=layer.head_size))
    else:  # before 0.18
        built = backend.TritonAttentionBuilder.build(**spec, head_size=layer.head_size, v_head_size=layer.head_size)
    built.fill_kv_cache = kernels["fill_kv_cache"].fill_kv_cache
    built.paged_attention_fwd = kernels["pagedattention"].flash_attn_with_kvcache
    built.flatten_kv_cache = kernels["flatten_kv_cache"].flatten_kv_cache
    built.flash_attention_fwd = kernels["flashattention"].flash_attn_varlen_func
    built.set_alibi_slopes(layer.alibi_slopes)
    return built


def _metadata(batch: Batch, layer: Layer, is_decoding: bool) -> SimpleNamespace:
    """TritonAttentionMetadata (61-77), of CudaSequenceMetadata.from_step_context (backends/cuda/step_metadata.py:38-72)."""
    queries = batch.query_start_loc.diff().long()
    starts = torch.nn.functional.pad(batch.seq_lens.cumsum(0, dtype=torch.int32), (1, 0))
    return SimpleNamespace(
        is_decoding=is_decoding,
        block_offsets=batch.block_table,
        q_start_loc=batch.query_start_loc[:-1].long(),
        q_seqlens=queries,
        kv_start_loc=starts[:-1].long(),
        kv_seqlens=batch.seq_lens.long(),
        kv_flatten_size=int(starts[-1]),
        quant_policy=QuantPolicy.NONE if layer.kv_cache_dtype is None else QuantPolicy.FP8,
        cu_seqlens_q=batch.query_start_loc,
        cu_seqlens_k=starts,
        max_kv_seqlen=int(batch.seq_lens.max()),
        max_q_seqlen=int(queries.max()),
    )


def _is_scaled_late(case: Case) -> str | None:
    """The scale of V comes after the kernel has rounded the output, which is denormal in float16 where the scale is large."""
    return "a float8 cache with float16" if case.is_quantized and case.dtype == "float16" else None


def _has_many_tiles(case: Case) -> str | None:
    """`_get_split_k` raises where a request has more tiles of queries than a device has places for them."""
    if reason := _is_scaled_late(case):
        return reason
    rows = case.group_size * max((request.query_len for request in case.requests), default=0)
    return "more tiles of queries than compute units" if case.num_kv_heads * math.ceil(rows / 16) > UNITS else None


_SUPPORT = Support(
    attn_types=(AttentionType.DECODER,),
    dtypes=("float16", "bfloat16"),
    layouts=(Layout.BLOCKS_FIRST_NHD,),
    rules=("window", "logits_soft_cap", "alibi_slopes", "sinks"),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    head_sizes=(64, 32, 80, 96, 128),
    block_sizes=(16, 32, 64),
    unused_slots="finite",
    engine=lmdeploy_package.ENGINE,
    exclude=_is_scaled_late,
    tile_sizes=(32, 64),
    max_tokens=160,
    max_seq_len=320,
)
_DECODES = dataclasses.replace(
    _SUPPORT, engine=dataclasses.replace(lmdeploy_package.ENGINE, query_lens=("one",)), tile_sizes=(16, 32, 64)
)
_BLOCKS = dataclasses.replace(
    _DECODES,
    causal=False,
    rules=("non_causal",),
    engine=dataclasses.replace(lmdeploy_package.ENGINE, query_lens=("equal",)),
    exclude=_has_many_tiles,
    max_tokens=64,
)


def _served(support: Support, device: str) -> Support:
    return support if lmdeploy_package.serves_float8() else dataclasses.replace(support, cache_dtypes=(), scales=())


# merged_parts: the output of a float8 cache is rounded once more, after the scale of V
_target = functools.partial(SOURCES.target, rounding=Rounding(keys_per_tile=64, splits=UNITS, merged_parts=2))
LMDEPLOY_DECODE = _target(
    name="lmdeploy-decode",
    description="the Triton paged decode of LMDeploy, as its TritonAttentionImpl calls it",
    attention=_decode,
    support=functools.partial(_served, _DECODES),
    findings=DECODE,
)
LMDEPLOY_BLOCK_DECODE = _target(
    name="lmdeploy-block-decode",
    description="the Triton paged decode of LMDeploy, as its TritonAttentionImpl calls it for a block of each request",
    attention=_decode,
    support=functools.partial(_served, _BLOCKS),
    findings=BLOCK_DECODE,
)
LMDEPLOY_PREFILL = _target(
    name="lmdeploy-prefill",
    description="the Triton attention of LMDeploy over a flattened cache, as its TritonAttentionImpl calls it",
    attention=_prefill,
    support=functools.partial(_served, _SUPPORT),
    unavailable=lmdeploy_package.needs_block_pointers,
    findings=PREFILL,
)
