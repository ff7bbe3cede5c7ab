"""ROCM_ATTN: decoders and encoders on planes of packed keys and values, the cache of vLLM's ROCm paged attention.

The name is vLLM's, and so is its promise: what is served here, vLLM's backend of that name serves too (as of vLLM 0.33), and
what that one would lose silently is refused here with the reason. In one thing this one differs: vLLM's prefill takes a step's
keys and values from the dense tensors, so that an fp8 cache quantizes them one step later. Here every phase reads the cache: a
token has one value in all steps that see it.
"""

from attn_contract import (
    FLOAT8_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    Layout,
    Multiples,
    No,
    Only,
)

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, BatchBuilder
from attn_optimized.backends.declaring import CHUNKS_ARE_REQUESTS, NOT_OVER_RANKS, triton_capabilities
from attn_optimized.backends.triton_attn import TritonAttentionImpl

HEAD_SIZES = (32, 64, 80, 96, 128, 160, 192, 224, 256)


class RocmAttentionImpl(TritonAttentionImpl):
    """A layer on the Triton kernels, with packed planes as its cache."""


class RocmAttentionBackend(AttentionBackend):
    name = "ROCM_ATTN"
    impl = RocmAttentionImpl
    builder = BatchBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        return triton_capabilities(
            cls.name,
            attn_types={
                AttentionType.DECODER: YES,
                AttentionType.ENCODER: YES,
                AttentionType.ENCODER_ONLY: YES,
                AttentionType.ENCODER_DECODER: No(
                    "vLLM's prefill takes the newest keys for the decoder's own tokens, so that only steps of one query token "
                    "per request come out right (vLLM #38450)"
                ),
            },
            head_sizes=Only(HEAD_SIZES, "vLLM's kernels are built for these"),
            block_sizes=Multiples(16, "vLLM's kernels take blocks in units of 16 slots"),
            layouts=Only((Layout.X_PACKED,), "its cache is a plane of packed keys and a plane of values"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "its paged decode reads no int8"),
            scales=Only(("tensor", "head"), "its cache has no room for scales of tokens"),
            rules={
                **dict.fromkeys(("window", "alibi_slopes", "non_causal", "rope", "kv_sharing"), YES),
                "over_ranks": NOT_OVER_RANKS,
                **dict.fromkeys(
                    ("sink_tokens", "logits_soft_cap", "bidirectional_ranges", "ranges_clamped", "qq_bias"),
                    No("vLLM's backend has no parameter for it, and would ignore it silently"),
                ),
                "chunked_local": CHUNKS_ARE_REQUESTS,
                "q_scale": No("vLLM's backend quantizes no query, and refuses a float8 one whose scale is not 1"),
                "sinks": No("vLLM's decode is handed none, so that a request would lose them after its prefill"),
                "per_request_causal": No("vLLM's kernels are compiled for one causal flag in a step"),
                "lse": No("vLLM's decode keeps none"),
                "batch_invariant": No("vLLM's decode takes another kernel for another batch"),
            },
            combinations=_ALIBI,
        )


_ALIBI = (
    Combination(
        property="ALiBi with a window",
        applies=lambda config, _: config.asks("alibi_slopes") and config.asks("window"),
        reason="vLLM's prefill with ALiBi takes no window",
    ),
    Combination(
        property="ALiBi without causality",
        applies=lambda config, _: config.asks("alibi_slopes") and not _is_causal(config),
        reason="vLLM's prefill with ALiBi is causal",
    ),
)


def _is_causal(config: AttentionConfig) -> bool:
    return config.attn_type is AttentionType.DECODER and not config.asks("non_causal")
