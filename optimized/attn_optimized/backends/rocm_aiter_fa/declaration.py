"""Capabilities of ROCM_AITER_FA, given an AITER."""

import torch
from attn_contract import FLOAT8_DTYPES, YES, AttentionConfig, AttentionType, Capabilities, Combination, No, Only

from attn_optimized.aiter_adapter import (
    GROUP_SIZES,
    PAGED_ATTENTION_BLOCK_SIZES,
    PAGED_ATTENTION_HEAD_SIZES,
    Aiter,
    features_of,
    may_run_assembly,
)
from attn_optimized.backends.base import AttentionBackend
from attn_optimized.backends.declaring import (
    LAYOUTS_OF_ROWS,
    NOT_OVER_RANKS,
    answer,
    declared_aiter,
    own_float8_caches,
    triton_capabilities,
)
from attn_optimized.backends.rocm_aiter_fa.impl import AiterFlashAttentionImpl
from attn_optimized.backends.rocm_aiter_fa.metadata import DECODER_PHASES, NAME, AiterFlashAttentionMetadataBuilder


class AiterFlashAttentionBackend(AttentionBackend):
    name = NAME
    impl = AiterFlashAttentionImpl
    builder = AiterFlashAttentionMetadataBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        declared = declared_aiter(aiter)
        features = features_of(declared)
        needed = (features.prefill, features.prefill_lse, features.unified, features.decode)
        no_encoder = No(DECODER_PHASES)
        no_such_mask = No("AITER's flash_attn_varlen_func knows causality and a window, and no other mask")
        non_causal = No(
            "its extend attends to this step's tokens with causal=True, and its decode takes unified_attention, which asserts "
            "causal (vLLM #40176)"
        )
        return triton_capabilities(
            cls.name,
            available=answer(aiter.missing or next((reason for reason in needed if reason), None)),
            architectures=Only(
                ("gfx942", "gfx950"),
                "AITER needs ROCm, and its flash attention and paged attention are built for CDNA 3 and later",
            ),
            attn_types={
                AttentionType.DECODER: YES,
                AttentionType.ENCODER: no_encoder,
                AttentionType.ENCODER_ONLY: no_encoder,
                AttentionType.ENCODER_DECODER: No(
                    "its prefill takes cu_seqlens_k from the decoder's query_start_loc with causal=True (vLLM #39119, #38450)"
                ),
            },
            dtypes=Only((torch.float16, torch.bfloat16), "AITER's flash attention knows no other type"),
            head_sizes=PAGED_ATTENTION_HEAD_SIZES,
            block_sizes=PAGED_ATTENTION_BLOCK_SIZES,
            group_sizes=GROUP_SIZES,
            layouts=Only(LAYOUTS_OF_ROWS, "AITER's kernels read rows of one head's dims, by their strides"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "AITER's decode reads no int8"),
            scales=Only(("tensor",), "AITER's decode takes one k_scale and one v_scale"),
            output_dtypes=Only((), "AITER's flash_attn_varlen_func has no output_scale"),
            rules={
                "window": answer(features.prefill_window or features.unified_window),
                "sink_tokens": No("its `sink_size` has not been shown to mean the same, and unified_attention has none"),
                "chunked_local": no_such_mask,
                "logits_soft_cap": answer(features.prefill_soft_cap or features.unified_soft_cap),
                "q_scale": No("vLLM's backend quantizes no query"),
                "alibi_slopes": No(
                    "its extend attends to the context in chunks, and AITER would anchor ALiBi at each chunk's own end"
                ),
                "sinks": answer(features.prefill_sinks or features.unified_sinks),
                "bidirectional_ranges": no_such_mask,
                "ranges_clamped": no_such_mask,
                "qq_bias": No("AITER's flash_attn_varlen_func has no such bias"),
                "non_causal": non_causal,
                "per_request_causal": non_causal,
                "lse": No("AITER's kernels for decode return none"),
                "batch_invariant": No("it takes another kernel for another mix of requests"),
                "rope": No("its prefill attends to this step's own keys, and a cache write rotates only what it writes"),
                "kv_sharing": No("its prefill reads this step's own keys and values, which such a layer has not"),
                "over_ranks": NOT_OVER_RANKS,
            },
            combinations=(
                Combination(
                    property="sinks in bfloat16 with a head size of 128",
                    applies=lambda config, _: config.asks("sinks") and _may_run_assembly(config),
                    reason="AITER's prefill may take assembly kernels for them, which have not been shown to keep sinks",
                ),
                Combination(
                    property="a soft cap in bfloat16 with a head size of 128",
                    applies=lambda config, _: config.asks("logits_soft_cap") and _may_run_assembly(config),
                    reason="AITER's prefill may take assembly kernels for them, which have not been shown to cap",
                ),
                own_float8_caches(declared),
            ),
        )


def _may_run_assembly(config: AttentionConfig) -> bool:
    return may_run_assembly(config.head_size, config.dtype, alibi=config.asks("alibi_slopes"))


AiterFlashAttentionImpl.backend = AiterFlashAttentionBackend
