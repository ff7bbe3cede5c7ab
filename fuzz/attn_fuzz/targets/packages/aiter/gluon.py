"""AITER's Gluon attention, which is in AITER's main and in no wheel: `ATTN_PARITY_AITER=FOLDER` names a checkout of it.

No interpreter runs Gluon: `aiter-gluon-unified@gfx1250` compiles the kernels, and the emulator runs them. AITER's host code
runs as it is, and gets the architecture after the `@`. It was read at commit e4048607a5 of ROCm/aiter; paths are below
aiter/ops/triton.

unified_attention (attention/unified_attention.py) takes its Gluon 2D kernel for steps with a prefill or a window, its Gluon 3D
kernel for other decodes of a SHUFFLED cache, and Triton's 3D kernel for those of other caches, all only on gfx1250 (:36-51,
:314-315, :550). Parts are merged in Gluon if they are at most 8 (:626-636). A tile of a prefill is a block, or 64 keys.

pa_decode_gluon (gluon/pa_decode_gluon.py) has 1 to 4 queries for each request, of which here each has 1. With `ps` and more
than one part it merges them by FlyDSL, which is not Gluon and is not here (:5049-5150): the calls with several parts have no
`ps`. A float8 cache has one scale, or one for each token and head; q stays bfloat16, and so do the dots (`compute_type`). With
scales of tokens weights are multiplied by them, relative to the largest of a tile, before they are rounded.

With a float8 cache and q in bfloat16 unified_attention takes Triton's 2D kernel instead of Gluon's (attention/
unified_attention.py:49-62), and Gluon's 3D kernel for SHUFFLED decodes. The contract cannot say what else these functions take:
nvfp4 and q in float8.

For SHUFFLED blocks of fewer than 64 keys the 2D kernel calls async_gather as Triton 3.7 had it
(_gluon_kernels/gfx1250/attention/unified_attention_2d.py:594): Triton 3.8 and 3.9 refuse it.

mla_gluon (gluon/mla_gluon.py) on gfx950, and mla_prefill_fwd and mla_decode_fwd (attention/mla.py) on gfx1250, attend to
latent rows. Weights on gfx1250 are rounded toward zero (`rtz`: unified_attention_2d.py:931, unified_attention_3d.py:1508,
mla.py:2834). Parts of the first are rounded to the dtype of the output before they are merged (gluon/mla_gluon.py:1006-1012).
"""

import dataclasses
import functools
from typing import Any

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aiter.gluon import GLUON_DECODE, GLUON_MLA, GLUON_UNIFIED, takes_gluon_2d
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.aiter.package import GLUON, HOST, load_main, needs_main
from attn_fuzz.targets.packages.declaring import SHARES_A_QUERY
from attn_fuzz.targets.packages.latent_rows import decoded_rows, has_row_without_keys
from attn_fuzz.targets.packages.slots import slots_of_tokens
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.rounding import Rounding

UNIFIED = (f"{HOST}unified_attention.py", f"{GLUON}gfx1250/attention/unified_attention_reduce.py")
MLA = (f"{HOST}mla.py", f"{GLUON}gfx1250/attention/mla.py", "ops/triton/_triton_kernels/attention/mla.py")
DECODE, MLA_DECODE = (("ops/triton/gluon/pa_decode_gluon.py",), ("ops/triton/gluon/mla_gluon.py",))
"""The file with the host code, and those whose kernels it imports by other names."""
PARTITION = 256
"""Keys of a part of pa_decode_gluon, as AITER's callers have it."""


def _unified(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    is_shuffled, rows = layer.layout is Layout.SHUFFLED, batch.num_actual_tokens
    k_cache, v_cache = (foreign.packed_keys_and_values if is_shuffled else foreign.keys_and_values)(kv_cache, layer)
    load_main(UNIFIED)[0].unified_attention(
        q=q[:rows],
        k=k_cache,
        v=v_cache,
        out=rows_of(out, layer, rows),
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len,
        seqused_k=batch.seq_lens,
        max_seqlen_k=batch.max_seq_len,
        softmax_scale=layer.scale,
        causal=True,
        window_size=layer.window,
        block_table=batch.block_table,
        softcap=0.0,
        q_descale=None,
        k_descale=layer.k_scale,
        v_descale=layer.v_scale,
        sinks=layer.sinks,
        shuffled_kv_cache=is_shuffled,
    )


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    request, seq_lens = decoded_rows(batch)
    rows = len(request)
    if not rows:
        return
    k_cache, v_cache = foreign.packed_keys_and_values(kv_cache, layer)
    parts = -(-batch.max_seq_len // PARTITION)
    scales = [
        each if per_token is None else per_token.transpose(1, 2).unsqueeze(3).contiguous()
        for each, per_token in ((layer.k_scale, layer.k_scale_cache), (layer.v_scale, layer.v_scale_cache))
    ]
    load_main(DECODE)[0].pa_decode_gluon(
        output=rows_of(out, layer, rows),
        query=q[:rows].contiguous(),
        key_cache=k_cache,
        value_cache=v_cache,
        context_lengths=seq_lens,
        block_tables=batch.block_table[request],
        softmax_scale=layer.scale,
        query_length=1,
        max_context_partition_num=parts,
        context_partition_size=PARTITION,
        compute_type=q.dtype,
        key_scale=scales[0],
        value_scale=scales[1],
        sinks=layer.sinks,
        sliding_window=0,
        ps=parts == 1,
    )


def _mla_decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    request, lens = decoded_rows(batch)
    if not len(request):
        return
    keys = torch.arange(int(lens.max()))
    tokens = torch.where(keys < lens[:, None], keys, -1)
    table = slots_of_tokens(tokens, batch.block_table[request], kv_cache.shape[1]).clamp(min=0).int()
    found = torch.empty(len(request), layer.num_heads, layer.v_head_size, dtype=q.dtype)
    latent, rotated = q[: len(request)].split([layer.v_head_size, layer.head_size - layer.v_head_size], dim=2)
    rows = kv_cache.flatten(0, 1)
    load_main(MLA_DECODE)[0].mla_gluon(latent, rotated, rows, found, table, lens, layer.scale, kv_pe_offset=layer.v_head_size)
    rows_of(out, layer, len(request))[:] = found


def _mla(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    rows = int(batch.query_start_loc[-1])
    if not rows:
        return
    module = load_main(MLA)[0]
    attend = module.mla_decode_fwd if batch.max_query_len == 1 else module.mla_prefill_fwd
    attend(
        q=q[:rows],
        kv_buffer=kv_cache.unsqueeze(2),
        out=rows_of(out, layer, rows),
        cu_seqlens_q=batch.query_start_loc,
        seqused_k=batch.seq_lens,
        max_seqlen_kv=batch.max_seq_len,
        block_tables=batch.block_table,
        softmax_scale=layer.scale,
        kv_lora_rank=layer.v_head_size,
        qk_rope_head_dim=layer.head_size - layer.v_head_size,
        causal=True,
        q_descale=None,
        kv_descale=None,
    )


_ENGINE = dataclasses.replace(VLLM, windows=("left",), empty_requests=False, unowned_rows=(0,))


def _excluded(case: Case) -> str | None:
    cache = case.cache
    if cache is not None and cache.layout is Layout.SHUFFLED and cache.block_size < 64 and takes_gluon_2d(case):
        return "SHUFFLED blocks of fewer than 64 keys: async_gather as Triton 3.7 has it, unified_attention_2d.py:594"
    return has_row_without_keys(case)


def _target(
    name: str,
    description: str,
    architectures: tuple[str, ...],
    attention: AttentionFunction,
    files: tuple[str, ...],
    rounding: Rounding,
    findings: tuple[Finding, ...] = (),
    races: str | None = None,
    **supported: Any,
) -> Target:
    """A target of bfloat16 decoders; `supported` are further fields of its Support."""
    fields = {"engine": _ENGINE, "max_tokens": 24, "max_seq_len": 300, "exclude": has_row_without_keys} | supported
    support = Support(attn_types=(AttentionType.DECODER,), dtypes=("bfloat16",), unused_slots="mostly finite", **fields)
    return Target(
        name=name,
        description=description,
        attention=attention,
        support=lambda device: support,
        refuses=False,
        rounding=lambda device: rounding,
        unavailable=needs_main(files),
        modules=functools.partial(load_main, files),
        architectures=architectures,
        findings=findings,
        races=races,
    )


latent_target = functools.partial(_target, layouts=(Layout.LATENT,))
AITER_GLUON_UNIFIED = _target(
    "aiter-gluon-unified",
    "AITER's unified_attention on gfx1250, whose kernels are Gluon",
    ("gfx1250",),
    _unified,
    UNIFIED,
    Rounding(keys_per_tile=64, splits=8, dot_is_chained=True, truncates_weights=True),
    GLUON_UNIFIED,
    SHARES_A_QUERY,
    layouts=(Layout.KV_FIRST_NHD, Layout.SHUFFLED),
    rules=("window", "sinks"),
    head_sizes=(64, 128),
    block_sizes=(64, 128, 16, 32),
    group_sizes=(8, 1, 2, 4, 16, 3),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    exclude=_excluded,
)
_decode_target = functools.partial(
    _target,
    attention=_decode,
    files=DECODE,
    rounding=Rounding(keys_per_tile=PARTITION, splits=3, dot_is_chained=True, merged_parts=3),
    findings=GLUON_DECODE,
    layouts=(Layout.X_PACKED, Layout.SHUFFLED),
    rules=("sinks",),
    scales=("tensor", "token"),
    head_sizes=(128, 64),
    block_sizes=(16, 64),
    max_seq_len=600,
)
AITER_GLUON_DECODE = _decode_target(
    "aiter-gluon-decode",
    "AITER's pa_decode_gluon: each query as a request of its own",
    ("gfx950",),
    cache_dtypes=("fp8_e4m3fn",),
)
AITER_GLUON_DECODE_GFX942 = _decode_target(
    "aiter-gluon-decode-gfx942",
    "AITER's pa_decode_gluon on gfx942: each query as a request of its own",
    ("gfx942",),
    cache_dtypes=("fp8_e4m3fnuz",),
)
AITER_GLUON_MLA_DECODE = latent_target(
    "aiter-gluon-mla-decode",
    "AITER's mla_gluon, the decode of latent attention on gfx950",
    ("gfx950",),
    _mla_decode,
    MLA_DECODE,
    Rounding(keys_per_tile=64, splits=256, dot_is_chained=True, merged_parts=5),
    rules=("head_size_v",),
    # a matmul makes q, and Triton compiles no loads into LDS of rows that are not aligned
    engine=dataclasses.replace(_ENGINE, fused_qkv=(False,), padding=(0,)),
    latent=LatentSizes(widths=((512, 64),), group_sizes=(16, 8, 32, 24), block_sizes=(16, 1, 64)),
    max_tokens=6,
)
AITER_GLUON_MLA = latent_target(
    "aiter-gluon-mla",
    "AITER's mla_prefill_fwd and mla_decode_fwd on gfx1250, whose kernels are Gluon",
    ("gfx1250",),
    _mla,
    MLA,
    Rounding(keys_per_tile=16, splits=16, dot_is_chained=True, truncates_weights=True),
    GLUON_MLA,
    rules=("head_size_v",),
    latent=LatentSizes(widths=((512, 64),), group_sizes=(16, 8, 32), block_sizes=(64, 32, 16)),
    max_tokens=12,
)
