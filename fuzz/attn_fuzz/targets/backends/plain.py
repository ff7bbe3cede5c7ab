"""The backends TRITON_ATTN, TRITON_ATTN_DIFFKV and ROCM_ATTN as targets, and the cases that they serve."""

import dataclasses

from attn_contract import AttentionConfig, AttentionType, Layout
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, installed, invariant_layers, named
from attn_fuzz.targets.support import BESIDE_TWO_WIDTHS, Support
from attn_fuzz.targets.triton import TRITON

_ROCM_ATTN_HEAD_SIZES = (32, 64, 80, 96, 128, 160, 192, 224, 256)
"""vLLM 0.33: those of its paged decode."""


def triton_attn(device: str) -> Support:
    """Everything but a selection, keys of several tokens, and float8 queries together with scales per token."""
    drawn = TRITON.support(device)
    rules = tuple(rule for rule in drawn.rules if rule not in ("selection_unit", "key_unit"))
    return dataclasses.replace(drawn, rules=rules, refused_sizes={"head_sizes": (513, 528)}, exclude=beyond_vllm_queries)


def beyond_vllm_queries(case: Case) -> str | None:
    """The reason why vLLM 0.33's Triton backends do not serve a case's float8 queries; None if they do."""
    is_of_tokens = case.q_scale is not None and case.cache is not None and case.cache.scales_tokens
    return "float8 queries beside scales of tokens" if is_of_tokens else None


def triton_attn_diffkv(device: str) -> Support:
    """The support of vLLM 0.33's backend of this name."""
    drawn = TRITON.support(device)
    return dataclasses.replace(
        drawn,
        attn_types=(AttentionType.DECODER,),
        layouts=(Layout.CONTENT_PACKED,),
        head_sizes=tuple(size for size in (*drawn.head_sizes, *BESIDE_TWO_WIDTHS) if size >= 32),
        block_sizes=tuple(size for size in drawn.block_sizes if size % 16 == 0),
        rules=("head_size_v", "window", "logits_soft_cap", "q_scale", "alibi_slopes", "sinks"),
        required_rules=("head_size_v",),
        refused_sizes={"head_sizes": (31, 513), "v_head_sizes": (513,), "block_sizes": (8, 24)},
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor",),
        output_dtypes=(),
        exclude=beyond_vllm_queries,
    )


def rocm_attn(device: str) -> Support:
    """The support of vLLM 0.33's backend of this name."""
    drawn = TRITON.support(device)
    return dataclasses.replace(
        drawn,
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY),
        layouts=(Layout.X_PACKED,),
        head_sizes=tuple(size for size in drawn.head_sizes if size in _ROCM_ATTN_HEAD_SIZES),
        block_sizes=tuple(size for size in drawn.block_sizes if size % 16 == 0),
        refused_sizes={"head_sizes": (16, 48, 272), "block_sizes": (8, 24)},
        rules=("window", "alibi_slopes", "non_causal", "rope"),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz"),
        scales=("tensor", "head"),
        exclude=lambda case: beyond_rocm_attn(config_of(case)),
    )


def beyond_rocm_attn(config: AttentionConfig) -> str | None:
    """Two rules that ROCM_ATTN does not serve together."""
    if not config.asks("alibi_slopes"):
        return None
    if config.asks("window"):
        return "ALiBi with a window"
    is_causal = config.attn_type is AttentionType.DECODER and not config.asks("non_causal")
    return None if is_causal else "ALiBi without causality"


_TRITON = BackendLayers(named("TRITON_ATTN"), installed)
_TRITON_DIFFKV = BackendLayers(named("TRITON_ATTN_DIFFKV"), installed)
_ROCM_ATTN = BackendLayers(named("ROCM_ATTN"), installed)

BACKEND_TRITON = backend_target(
    "backend-triton",
    _TRITON,
    description="the backend TRITON_ATTN: whole layers, within what it serves",
    support=triton_attn,
    modes=invariant_layers(_TRITON),
)
BACKEND_TRITON_DIFFKV = backend_target(
    "backend-triton-diffkv",
    _TRITON_DIFFKV,
    description="the backend TRITON_ATTN_DIFFKV: whole layers with K and V of two widths, within what it serves",
    support=triton_attn_diffkv,
    modes=invariant_layers(_TRITON_DIFFKV),
)
BACKEND_ROCM_ATTN = backend_target(
    "backend-rocm-attn",
    _ROCM_ATTN,
    description="the backend ROCM_ATTN: whole layers, within what it serves",
    support=rocm_attn,
)
