"""TRITON_ATTN_DIFFKV: decoders whose V has another width than K, with rows of K and V side by side as their cache.

The name is vLLM's, and so is its promise: what is served here, vLLM's backend of that name serves too (as of vLLM 0.33). That
one inherits more declarations from TRITON_ATTN than it keeps. What it would lose silently is refused here with the reason.
vLLM chooses it for MiMo-V2 on devices without FlashAttention 3 and 4.
"""

from attn_contract import FLOAT8_DTYPES, YES, AttentionType, Capabilities, Combination, Layout, Multiples, No, Only

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, BatchBuilder
from attn_optimized.backends.declaring import (
    CHUNKS_ARE_REQUESTS,
    FLOAT8_BEFORE_SM89,
    FLOAT8_QUERIES,
    NOT_OVER_RANKS,
    triton_capabilities,
)
from attn_optimized.backends.triton_attn import TritonAttentionImpl
from attn_optimized.launch.widths import MAX_HEAD_SIZE

_SERVED = ("head_size_v", "window", "logits_soft_cap", "q_scale", "alibi_slopes", "sinks", "batch_invariant", "kv_sharing")


class TritonAttentionDiffKVImpl(TritonAttentionImpl):
    """A layer on the Triton kernels, whose cache has rows of K and V of two widths."""


class TritonAttentionDiffKVBackend(AttentionBackend):
    name = "TRITON_ATTN_DIFFKV"
    impl = TritonAttentionDiffKVImpl
    builder = BatchBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        a_decoder = No("vLLM's backend is for decoders alone")
        return triton_capabilities(
            cls.name,
            attn_types={**dict.fromkeys(AttentionType, a_decoder), AttentionType.DECODER: YES},
            block_sizes=Multiples(16, "vLLM's cache has blocks in units of 16 slots"),
            layouts=Only((Layout.CONTENT_PACKED,), "its cache has K and V of two widths side by side in a row"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "vLLM declares no other quantized cache"),
            scales=Only(("tensor",), "vLLM's kernel takes one scale of K and one of V"),
            output_dtypes=Only((), "vLLM's backend refuses to quantize the output"),
            rules={
                **dict.fromkeys(_SERVED, YES),
                "non_causal": No("vLLM's backend declares it, and attends causally in every step"),
                "per_request_causal": No("vLLM's backend attends causally in every step"),
                "bidirectional_ranges": No("vLLM's backend declares it, hands none to its kernel and would ignore it silently"),
                **dict.fromkeys(("ranges_clamped", "sink_tokens", "qq_bias"), No("vLLM's backend hands none to its kernel")),
                "chunked_local": CHUNKS_ARE_REQUESTS,
                "lse": No("vLLM's kernel keeps none"),
                "rope": No("vLLM's write that rotates takes K and V of one width"),
                "over_ranks": NOT_OVER_RANKS,
            },
            combinations=(
                *FLOAT8_QUERIES,
                Combination(
                    property="K and V of one width",
                    applies=lambda config, _: not config.asks("head_size_v"),
                    reason="vLLM chooses this backend for V of another width than K, and TRITON_ATTN for all other layers",
                ),
                Combination(
                    property="a head size below 32",
                    applies=lambda config, _: config.head_size < 32,
                    reason="vLLM declares head sizes from 32 on",
                ),
                Combination(
                    property=f"V wider than {MAX_HEAD_SIZE}",
                    applies=lambda config, _: config.v_head_size > MAX_HEAD_SIZE,
                    reason="a tile holds whole heads",
                ),
                FLOAT8_BEFORE_SM89,
            ),
        )
