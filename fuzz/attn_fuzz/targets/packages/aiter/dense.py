"""AITER's Triton attention that reads this step's keys from k and v: prefill_attention, extend_attention and mha.

Neither vLLM 0.33.0 nor SGLang 0.5.23 calls the first two: SGLang has copies of its own. flash_attn_varlen_func of mha is what
vLLM's AITER_TRITON_MLA calls (v1/attention/backends/mla/aiter_triton_mla.py:45), with V narrower than K, which the contract has
not. So the declarations say what the docstrings and the asserts of the functions allow.

    prefill_attention   no context, no window; the scale is 1 / sqrt(D)
    extend_attention    the context by slots, this step's keys from k and v, a soft cap
    mha                 ALiBi by distance and the LSE; it refuses windows (mha.py:65). Keys of earlier steps are copied from the
                        cache to rows before the call, as an engine gathers them
"""

import dataclasses

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.findings.aiter.dense import EXTEND as EXTEND_FINDINGS
from attn_fuzz.findings.aiter.dense import MHA_VARLEN
from attn_fuzz.findings.aiter.dense import PREFILL as PREFILL_FINDINGS
from attn_fuzz.targets.engine import GIVES_KEYS, Engine
from attn_fuzz.targets.packages.aiter import package as aiter_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

PREFILL, EXTEND, MHA = (aiter_package.ops(name) for name in ("prefill_attention", "extend_attention", "mha"))
_ENGINE = Engine(scale_signs=(1,), more_queries_than_keys=False, empty_batches=False)
_WITH_KEYS = dataclasses.replace(_ENGINE, **GIVES_KEYS)


def _prefill(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = PREFILL.load()
    rows = int(batch.query_start_loc[-1])
    module.context_attention_fwd(
        q[:rows],
        k[:rows],
        v[:rows],
        rows_of(out, layer, rows),
        batch.query_start_loc,
        batch.query_start_loc.diff(),
        batch.max_query_len,
        is_causal=batch.causal,
    )


def _extend(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = EXTEND.load()
    rows = int(batch.query_start_loc[-1])
    prefixes = batch.seq_lens - batch.query_start_loc.diff()
    k_rows, v_rows, indptr = gathered(kv_cache, layer, batch, prefixes)
    module.extend_attention_fwd(
        q[:rows],
        k[:rows],
        v[:rows],
        rows_of(out, layer, rows),
        k_rows,
        v_rows,
        batch.query_start_loc,
        indptr,
        torch.arange(len(k_rows), device=q.device),
        None,
        batch.causal,
        None,
        batch.max_query_len,
        sm_scale=layer.scale,
        logit_cap=layer.logits_soft_cap or 0.0,
    )


def _mha(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = MHA.load()
    rows, starts = int(batch.query_start_loc[-1]), batch.query_start_loc
    if kv_cache is not None:
        k, v, starts = gathered(kv_cache, layer, batch, batch.seq_lens)
    computed, of_rows = module.flash_attn_varlen_func(
        q[:rows],
        k[: int(starts[-1])],
        v[: int(starts[-1])],
        batch.query_start_loc,
        starts,
        batch.max_query_len,
        batch.max_seq_len,
        softmax_scale=layer.scale,
        causal=batch.causal,
        alibi_slopes=None if layer.alibi_slopes is None else layer.alibi_slopes.expand(batch.num_requests, -1),
        return_lse=True,
    )
    rows_of(out, layer, rows)[:] = computed
    if lse is not None:
        lse[:, :rows] = of_rows.T


def gathered(kv_cache, layer, batch, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first keys and values of each request as rows [sum(lengths), HK, D], and where each request begins."""
    caches = foreign.keys_and_values(kv_cache, layer)
    positions = [torch.arange(length, device=lengths.device) for length in lengths.tolist()]
    size = caches[0].shape[1]
    at = [(table[p // size].long(), p % size) for table, p in zip(batch.block_table, positions, strict=True)]
    blocks, offsets = (torch.cat(parts) for parts in zip(*at, strict=True))
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return caches[0][blocks, offsets], caches[1][blocks, offsets], indptr


_SUPPORT = Support(
    attn_types=(AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY),
    dtypes=("float16", "bfloat16", "float32"),
    layouts=(Layout.KV_FIRST_NHD,),
    rules=("non_causal",),
    head_sizes=(32, 64, 80, 96, 128),
    engine=dataclasses.replace(
        _WITH_KEYS, contexts=False, other_scales=False, cited={"other_scales": "prefill_attention.py:64"}
    ),
    tile_sizes=(32, 128),
    max_tokens=144,
    max_seq_len=256,
)
AITER_PREFILL_ATTENTION = PREFILL.target(
    name="aiter-prefill-attention",
    description="AITER's Triton prefill_attention, for steps without a context",
    attention=_prefill,
    support=_SUPPORT,
    rounding=Rounding(keys_per_tile=128, normalizes_first=True),
    findings=PREFILL_FINDINGS,
    dense_keys=lambda case: [True] * len(case.requests),
)
AITER_EXTEND_ATTENTION = EXTEND.target(
    unavailable=aiter_package.needs_rocm(EXTEND),
    name="aiter-extend-attention",
    description="AITER's Triton extend_attention, which reads this step's keys from k and v",
    attention=_extend,
    support=dataclasses.replace(
        _SUPPORT,
        attn_types=(AttentionType.DECODER,),
        rules=("non_causal", "logits_soft_cap"),
        engine=_WITH_KEYS,
        tile_sizes=(32, 64, 128),
    ),
    rounding=Rounding(keys_per_tile=64),
    findings=EXTEND_FINDINGS,
    dense_keys=lambda case: [True] * len(case.requests),
)
AITER_MHA_VARLEN = MHA.target(
    unavailable=aiter_package.needs_rocm(MHA),
    name="aiter-mha-varlen",
    description="AITER's Triton flash_attn_varlen_func, the forward pass: keys as rows, outputs and LSE",
    attention=_mha,
    support=dataclasses.replace(
        _SUPPORT,
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY),
        rules=("non_causal", "alibi_slopes", "lse"),
        engine=_ENGINE,
        tile_sizes=(32, 64, 128),
    ),
    rounding=Rounding(keys_per_tile=64),
    findings=MHA_VARLEN,
)
