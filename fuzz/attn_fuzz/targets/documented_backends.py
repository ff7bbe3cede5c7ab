"""The backends named after AITER as targets on the double `attn_fuzz.documented_aiter`.

What they serve is stated here once more. A backend that declares too little refuses what it must serve.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionConfig, AttentionType, Batch, Layer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets import documented_aiter, wrong_arguments
from attn_fuzz.targets.aiter import ROWS
from attn_fuzz.targets.backends import BackendLayers, backend_target, common_metadata, named
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.declared import config_of
from attn_fuzz.targets.documented_aiter import documented
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.target import Support
from attn_fuzz.verdict.rounding import Rounding

MOST_CHUNKS = 3
"""Chunks into which the context of an extend is cut."""
_TOO_MANY = 1 << 20
_THIS = "gfx942"
"""The architecture for which the double's outputs are."""


def tokens_as_cached(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """This step's keys and values [T, HK, D] of a decoder, as its cache holds them.

    ROCM_AITER_FA attends to the tensors of a step, which a quantized cache rounds for later steps alone. The reference reads
    the cache. The two agree about tensors that are rounded already.
    """
    k, v = (q.new_zeros(len(q), layer.num_kv_heads, layer.head_size) for _ in range(2))
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
        own = min(len(request.key), len(request.query))
        if own:
            rows = slice(request.rows.stop - own, request.rows.stop)
            k[rows], v[rows] = request.key[-own:].to(q.dtype), request.value[-own:].to(q.dtype)
    return k, v


def _unified(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _UNIFIED.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _flash_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if kv_cache is not None and k is not None and layer.kv_cache_dtype is not None:
        k, v = tokens_as_cached(q, kv_cache, layer, batch)
    if kv_cache is not None and layer.attn_type is AttentionType.DECODER:
        _check_phases(batch)
        if longer := _longer(batch):
            # by layers of its own: the layers of a step share the step's metadata
            others = dataclasses.replace(_FA, is_checked=False)
            too_long = functools.partial(others.attention, q, k, v, kv_cache, layer, longer, out=out, lse=lse)
            wrong_arguments.must_raise(too_long, "a request with more keys than its blocks hold")
        _without_queries(q, kv_cache, layer, batch, out)
    _FA.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _longer(batch: Batch) -> Batch | None:
    """The batch with a request that has more keys than any table holds; None if there is no query."""
    with_queries = batch.query_start_loc.diff().nonzero()
    if not len(with_queries):
        return None
    seq_lens = batch.seq_lens.clone()
    seq_lens[with_queries[-1]] += _TOO_MANY
    return dataclasses.replace(batch, seq_lens=seq_lens, max_seq_len=batch.max_seq_len + _TOO_MANY)


def _without_queries(q, kv_cache, layer: Layer, batch: Batch, out: torch.Tensor) -> None:
    """Serve the batch as it would be if no request had a token, and its table no column. Steps are hardly ever drawn so."""
    assert batch.block_table is not None
    empty = dataclasses.replace(
        batch,
        query_start_loc=torch.zeros_like(batch.query_start_loc),
        seq_lens=torch.zeros_like(batch.seq_lens),
        max_query_len=0,
        max_seq_len=0,
        num_actual_tokens=0,
        block_table=batch.block_table[:, :0],
        slot_mapping=None,
    )
    dataclasses.replace(_FA, is_checked=False).attention(q[:0], None, None, kv_cache, layer, empty, out=out[:0], lse=None)


def _check_phases(batch: Batch) -> None:
    """Check that each query is in one phase, and that the context of each extend is cut into consecutive chunks, none of which
    has more keys than asked for.

    A chunk has at least one key of each request, or less where a context ends.
    """
    common = common_metadata(batch, AttentionType.DECODER)
    query_lens = batch.query_start_loc.diff()
    context_lens = (batch.seq_lens - query_lens)[(query_lens > 1) & (query_lens < batch.seq_lens)]
    choose = choices_by((query_lens, context_lens))
    most = choose.choice((1, 2, 7, 16 * len(query_lens) + 1))
    metadata = named("ROCM_AITER_FA")().builder(AttentionType.DECODER, context_chunk_keys=most).build(common)
    rows = torch.arange(int(batch.query_start_loc[-1]), device=query_lens.device)
    phases = [phase.rows for phase in (metadata.decode, metadata.extend, metadata.prefill) if phase is not None]
    taken = torch.cat([rows[:0], *(rows[phase] for phase in phases)])
    assert torch.equal(taken.sort().values, rows), f"phases take rows {taken.tolist()} of {len(rows)}"
    extend = metadata.extend
    assert (extend is None) == (not len(context_lens)), f"got {extend}, expected contexts of {context_lens.tolist()} keys"
    end = torch.zeros_like(context_lens)
    for chunk in () if extend is None else extend.context_chunks:
        lens = chunk.key_start_loc.diff()
        assert torch.equal(chunk.begins, end), f"a chunk begins at {chunk.begins.tolist()}, expected {end.tolist()}"
        assert (chunk.num_keys, chunk.max_key_len) == (int(lens.sum()), int(lens.max())), f"got {chunk}"
        assert 0 < chunk.num_keys <= max(most, len(lens)), f"{chunk.num_keys} keys in a chunk, expected at most {most}"
        end = end + lens
    assert torch.equal(end, context_lens), f"chunks end at {end.tolist()}, expected {context_lens.tolist()}"


def _builder_options(batch: Batch) -> dict[str, Any]:
    """Of ROCM_AITER_FA's builder, chosen by the step: what counts as a decode, and how many keys are gathered at once."""
    choose = choices_by((batch.query_start_loc, batch.seq_lens))
    keys = batch.num_requests * max(batch.seq_lens.tolist(), default=0)
    chunk_keys = max(1, -(-keys // choose.randint(1, MOST_CHUNKS)))
    return {"num_speculative_tokens": choose.choice((0, 0, 1, 3)), "context_chunk_keys": chunk_keys}


def _phases(step: Step) -> Iterable[str]:
    """The phases into which ROCM_AITER_FA splits the step."""
    query_lens, seq_lens = step.batch.query_start_loc.diff().tolist(), step.batch.seq_lens.tolist()
    most = 1 + _builder_options(step.batch)["num_speculative_tokens"]
    phases = {
        "decode" if query_len <= most else "prefill" if query_len == seq_len else "extend"
        for query_len, seq_len in zip(query_lens, seq_lens, strict=True)
        if query_len
    }
    return sorted(phases)


def _fa_support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        head_sizes=(64, 128, 256),
        block_sizes=(16, 32),
        rules=("window", "logits_soft_cap", "sinks"),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        engine=Engine(more_queries_than_keys=False, writes=(True,), unwritten=False),
        max_tokens=128,
        max_seq_len=512,
        exclude=lambda case: _beyond_fa(config_of(case), _THIS),
    )


def _beyond_fa(config: AttentionConfig, architecture: str) -> str | None:
    is_lossy = config.asks("sinks") or config.asks("logits_soft_cap")
    is_assembled = config.dtype == torch.bfloat16 and config.head_size == 128
    return "sinks or a soft cap in assembly kernels" if is_lossy and is_assembled else None


def _unified_support(device: str) -> Support:
    """Decoders are served by AITER's kernel, and all other attention types by the project's kernels."""
    return Support(
        attn_types=tuple(AttentionType),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        head_sizes=(32, 16, 64, 128, 256),
        block_sizes=(16, 32, 64, 128),
        rules=("window", "logits_soft_cap", "alibi_slopes", "sinks", "qq_bias", "rope"),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        max_tokens=128,
        max_seq_len=512,
        exclude=lambda case: _beyond_unified(config_of(case), _THIS),
    )


def _beyond_unified(config: AttentionConfig, architecture: str) -> str | None:
    if config.attn_type is not AttentionType.DECODER:
        return None
    if config.asks("alibi_slopes") and config.asks("sinks"):
        return "ALiBi with sinks"
    if config.dtype == torch.float16 and config.value_of("window")[0] >= 0 and not config.asks("sinks"):
        return "a window without sinks in float16"
    own = torch.float8_e4m3fn if architecture == "gfx950" else torch.float8_e4m3fnuz
    return None if config.output_dtype in (None, own) else "an output that is not of the device's own float8 type"


def rounding(device: str) -> Rounding:
    """ROCM_AITER_FA merges a step's own keys with each chunk of the context.

    What the double does not serve, the backends give to the project's Triton kernels.
    """
    return dataclasses.replace(documented_aiter.rounding(device), merged_parts=1 + MOST_CHUNKS)


_FA = BackendLayers(named("ROCM_AITER_FA"), documented, _builder_options)
DOCUMENTED_AITER_FA = backend_target(
    "documented-aiter-fa",
    _FA,
    description="the backend ROCM_AITER_FA, on a double that computes what AITER documents",
    attention=_flash_attention,
    support=_fa_support,
    rounding=rounding,
    events=_phases,
    sanitizes=False,
    exact=False,
)
_UNIFIED = BackendLayers(named("ROCM_AITER_UNIFIED_ATTN"), documented)
DOCUMENTED_AITER_UNIFIED_BACKEND = backend_target(
    "documented-aiter-unified-backend",
    _UNIFIED,
    description="the backend ROCM_AITER_UNIFIED_ATTN, on a double that computes what AITER documents",
    attention=_unified,
    support=_unified_support,
    rounding=documented_aiter.rounding,
    sanitizes=False,
    exact=False,
)
