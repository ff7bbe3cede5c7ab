"""Targets `planted_aiter:NAME`: the adapter of AITER and the backends on it, on a double of AITER.

The double is `tests.optimized.aiter_adapter.documented_aiter`. The targets show that AITER is called as it documents. A prefill
gets the dense keys of its requests, and a decode gets each query as a request of its own.
"""

import dataclasses
import functools
import random

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layout, UnsupportedError
from attn_contract.layer import UNLIMITED
from attn_contract.rules import active_rules, label_of
from attn_contract.validation import check_paged_attention
from attn_fuzz.cases.case import Case
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, named
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.packages.aiter.unified import AITER_UNIFIED_ATTENTION, ROWS
from attn_fuzz.targets.packages.latent_rows import decoded_rows
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.rounding import Rounding
from attn_optimized import aiter_adapter

from tests.optimized.aiter_adapter.documented_aiter import stand_in, with_two_edges

MAX_CHUNKS = 3
"""Chunks into which the context of an extend is cut."""
RULES = ("window", "logits_soft_cap", "alibi_slopes", "sinks")
FLOAT8 = ("fp8_e4m3fn", "fp8_e4m3fnuz")
OWN_FLOAT8 = FLOAT8[1:]
"""The float8 that the double's unified_attention takes on gfx942, and under the interpreter."""


@functools.cache
def documented(device: str) -> aiter_adapter.Aiter:
    return stand_in()


def _unified(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _refuse_without_a_cache(kv_cache)
    aiter_adapter.unified_attention(stand_in(), q, kv_cache, layer, batch, out=out, lse=lse, validate=True)


def _decode(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _decode_each(aiter_adapter.paged_attention_v1, q, kv_cache, layer, batch, out=out, lse=lse)


def _decode_by_assembly(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """A window's right edge says nothing about a query at the last key, so layers without a window get one."""
    if layer.window[0] < 0 <= layer.window[1]:
        raise UnsupportedError("AITER's decode", "a window", "its right edge hides keys from no query at the last key")
    if layer.window == (UNLIMITED, UNLIMITED):
        layer = dataclasses.replace(layer, window=(UNLIMITED, 0))
    # an engine may have the scale in float32
    layer = dataclasses.replace(layer, scale=torch.tensor(layer.scale).item())
    _decode_each(aiter_adapter.pa_fwd_asm, q, kv_cache, layer, batch, out=out, lse=lse)


def _decode_each(function, q, kv_cache, layer, batch, *, out, lse) -> None:
    """Each query as a request of its own, which sees the keys up to its position."""
    _refuse_without_a_cache(kv_cache)
    if batch.causal is not True:
        raise UnsupportedError("AITER's decode", "non-causal attention", "a query is at its last key")
    check_paged_attention(q, kv_cache, layer, batch, out, lse, values=False)
    request, seq_lens = decoded_rows(batch)
    one_each = dataclasses.replace(
        batch,
        query_start_loc=torch.arange(len(request) + 1, dtype=torch.int32),
        seq_lens=seq_lens,
        max_query_len=1,
        num_actual_tokens=len(request),
        block_table=batch.block_table[request],
        slot_mapping=None,
    )
    function(stand_in(), q, kv_cache, layer, one_each, out=out, lse=lse, validate=True)


def _prefill(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """The keys of all requests, dense and in q's dtype. The rows that no request owns stay out of the call.

    The bounds on lengths are the lengths themselves in every other call, by the number of keys: AITER drops the edges of a
    window by them. The edges of AITER's windows are two or three, by its version.
    """
    function = "AITER's flash_attn_varlen_func"
    if isinstance(batch.causal, torch.Tensor):
        raise UnsupportedError(function, label_of("per_request_causal"), "it has one flag")
    for name in active_rules(batch):
        raise UnsupportedError(function, label_of(name), "it is told of no batch")
    if layer.kv_cache_dtype is not None:
        raise UnsupportedError(function, "a quantized cache", "it reads dense keys of q's dtype")
    key_lens, k, v = _dense_keys(q, k, v, kv_cache, layer, batch)
    rows, bounds = int(batch.query_start_loc[-1]), (batch.max_query_len, batch.max_seq_len)
    if len(k) % 2 == 0:
        bounds = [max(lens.tolist(), default=0) for lens in (batch.query_start_loc.diff(), key_lens)]
    aiter_adapter.flash_attn_varlen(
        stand_in() if rows % 2 else with_two_edges(stand_in()),
        q[:rows],
        k,
        v,
        query_start_loc=batch.query_start_loc,
        key_start_loc=torch.nn.functional.pad(key_lens.cumsum(0), (1, 0)).int(),
        max_query_len=bounds[0],
        max_key_len=bounds[1],
        layer=layer,
        causal=batch.causal,
        out=out.view(q.shape)[:rows],
        lse=None if lse is None else lse[:, :rows],
    )


def _dense_keys(q, k, v, kv_cache, layer, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of keys [R], and keys and values [sum of them, HK, D]. A request without a query gets none."""
    lens = torch.zeros_like(batch.seq_lens)
    keys, values = [q.new_empty(0, layer.num_kv_heads, layer.head_size) for _ in range(2)]
    if kv_cache is not None:
        requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64)
    else:
        requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float64)
    for request in requests:
        lens[request.index] = len(request.key)
        keys, values = torch.cat([keys, request.key.to(q.dtype)]), torch.cat([values, request.value.to(q.dtype)])
    return lens, keys, values


def _refuse_without_a_cache(kv_cache) -> None:
    if kv_cache is None:
        raise UnsupportedError("AITER", "attention to dense keys", "it reads a KV cache")


def _support(**fields) -> Support:
    of_decoders = {"attn_types": (AttentionType.DECODER,), "dtypes": ("float16", "bfloat16"), "layouts": ROWS}
    return Support(**{**of_decoders, "max_tokens": 128, "max_seq_len": 512, **fields})


def _unified_support(device: str) -> Support:
    support = AITER_UNIFIED_ATTENTION.support("cpu")
    own = {"rules": (*RULES, "qq_bias"), "cache_dtypes": OWN_FLOAT8, "unused_slots": "NaN", "max_seq_len": 512}
    return dataclasses.replace(support, **own)


def _decode_support(device: str) -> Support:
    engine = Engine(fused_qkv=(False,), unlike_strides=(False,), dense_out=(True,))
    sizes = {"head_sizes": (64, 128), "block_sizes": (16, 32), "cache_dtypes": FLOAT8, "scales": ("tensor",)}
    return _support(**sizes, rules=RULES[:3], engine=engine, max_tokens=64, exclude=_caps_what_it_biases)


def _caps_what_it_biases(case: Case) -> str | None:
    is_capped = case.logits_soft_cap is not None
    return "a soft cap with ALiBi or with a window" if is_capped and (case.alibi_slopes or case.window[0] >= 0) else None


def _assembly_support(device: str) -> Support:
    engine = Engine(scale_signs=(1,), other_scales=False, fused_qkv=(False,), unlike_strides=(False,), dense_out=(True,))
    sizes = {"layouts": (Layout.SHUFFLED,), "head_sizes": (128,), "block_sizes": (16,), "max_tokens": 64, "max_seq_len": 128}
    return _support(**sizes, engine=engine, exclude=_beyond_assembly)


def _beyond_assembly(case: Case) -> str | None:
    if case.group_size > 16:
        return "more rows than a tile has"
    return "a bound of more than 240 keys" if max([0, *(each.seq_len for each in case.requests)]) + case.slack > 240 else None


def _prefill_support(device: str) -> Support:
    return _support(attn_types=tuple(AttentionType), rules=(*RULES, "non_causal", "lse"), exclude=_may_run_assembly)


def _may_run_assembly(case: Case) -> str | None:
    is_lossy = case.sinks or case.logits_soft_cap is not None
    is_assembled = case.dtype == "bfloat16" and case.head_size == 128 and not case.alibi_slopes
    return "sinks or a soft cap in assembly kernels" if is_lossy and is_assembled else None


def rounding(device: str) -> Rounding:
    """The double sums all keys in a row. ROCM_AITER_FA merges a step's own keys with each chunk of the context."""
    own = {"dot_is_chained": True, "rounds_dequantized": True, "exact_division": False, "merged_parts": 1 + MAX_CHUNKS}
    return dataclasses.replace(TRITON.rounding(device), **own)


def _target(name: str, **fields) -> Target:
    return Target(name=name, description=name, rounding=rounding, unavailable=triton_unavailable, **fields)


UNIFIED = _target(
    "planted_aiter:UNIFIED",
    attention=_unified,
    support=_unified_support,
    checks_arguments=True,
)
PREFILL = _target("planted_aiter:PREFILL", attention=_prefill, support=_prefill_support)
DECODE = _target(
    "planted_aiter:DECODE",
    attention=_decode,
    support=_decode_support,
    checks_arguments=True,
)
DECODE_ASSEMBLY = _target(
    "planted_aiter:DECODE_ASSEMBLY",
    attention=_decode_by_assembly,
    support=_assembly_support,
    checks_arguments=True,
)


def _builder_options(batch: Batch) -> dict[str, int]:
    """Of ROCM_AITER_FA's builder, chosen by the step: what counts as a decode, and how many keys are gathered at once."""
    rng: random.Random = rng_of_lengths(batch)
    keys = batch.num_requests * max(batch.seq_lens.tolist(), default=0)
    chunk_keys = max(1, -(-keys // rng.randint(1, MAX_CHUNKS)))
    return {"num_speculative_tokens": rng.choice((0, 0, 1, 3)), "context_chunk_keys": chunk_keys}


def _flash_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if kv_cache is not None and k is not None and layer.kv_cache_dtype is not None:
        k, v = _tokens_as_cached(q, kv_cache, layer, batch)
    _FA.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


def _tokens_as_cached(q, kv_cache, layer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """This step's keys and values [T, HK, D] as a quantized cache holds them, which the reference reads."""
    k, v = (q.new_zeros(len(q), layer.num_kv_heads, layer.head_size) for _ in range(2))
    for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
        if own := min(len(request.key), len(request.query)):
            rows = slice(request.rows.stop - own, request.rows.stop)
            k[rows], v[rows] = request.key[-own:].to(q.dtype), request.value[-own:].to(q.dtype)
    return k, v


def _fa_support(device: str) -> Support:
    sizes = {"head_sizes": (64, 128, 256), "block_sizes": (16, 32), "cache_dtypes": OWN_FLOAT8, "scales": ("tensor",)}
    engine = Engine(more_queries_than_keys=False, writes=(True,), unwritten=False)
    rules = ("window", "logits_soft_cap", "sinks")
    return _support(**sizes, rules=rules, engine=engine, exclude=lambda case: _beyond_fa(config_of(case)))


def _backend_support(device: str) -> Support:
    """Decoders are served by AITER's kernel, and all other attention types by the project's kernels."""
    support = dataclasses.replace(_unified_support(device), rules=(*RULES, "qq_bias", "rope"), attn_types=tuple(AttentionType))
    own = {"head_sizes": (32, 16, 64, 128, 256), "output_dtypes": FLOAT8}
    return dataclasses.replace(support, **own, exclude=lambda case: _beyond_unified(config_of(case)))


def _beyond_fa(config) -> str | None:
    is_lossy = config.asks("sinks") or config.asks("logits_soft_cap")
    is_assembled = config.dtype == torch.bfloat16 and config.head_size == 128
    return "sinks or a soft cap in assembly kernels" if is_lossy and is_assembled else None


def _beyond_unified(config) -> str | None:
    if config.attn_type is not AttentionType.DECODER:
        return None
    if config.block_size == 48:
        return "blocks of 48, of which a tile of 64 holds no whole number"
    if config.asks("alibi_slopes") and config.asks("sinks"):
        return "ALiBi with sinks"
    if config.dtype == torch.float16 and config.value_of("window")[0] >= 0 and not config.asks("sinks"):
        return "a window without sinks in float16"
    is_own = config.output_dtype in (None, torch.float8_e4m3fnuz)
    return None if is_own else "an output that is not of the device's own float8 type"


_FA = BackendLayers(named("ROCM_AITER_FA"), documented, _builder_options)
_UNIFIED = BackendLayers(named("ROCM_AITER_UNIFIED_ATTN"), documented)
FA = backend_target(
    "planted_aiter:FA",
    _FA,
    description="ROCM_AITER_FA on the double",
    attention=_flash_attention,
    support=_fa_support,
    rounding=rounding,
    sanitizes=False,
    exact=False,
)
UNIFIED_BACKEND = backend_target(
    "planted_aiter:UNIFIED_BACKEND",
    _UNIFIED,
    description="ROCM_AITER_UNIFIED_ATTN on the double",
    support=_backend_support,
    rounding=rounding,
    sanitizes=False,
    exact=False,
)
