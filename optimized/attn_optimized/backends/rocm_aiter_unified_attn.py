"""ROCM_AITER_UNIFIED_ATTN: decoders on AITER's Triton unified_attention, every other attention type on this project's kernels.

AITER's kernel is causal and nothing else, which decoders are and no other type is. What it cannot do is refused for decoders:
nothing is handed to another kernel silently.
"""

import functools

import torch
from attn_contract import (
    FLOAT8_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    Combination,
    No,
    Only,
)
from attn_contract.layer import UNLIMITED

from attn_optimized.aiter_adapter import (
    BLOCKS_BESIDE_TILES,
    GROUP_SIZES,
    TILES_OF_GFX1250,
    UNIFIED_HEAD_SIZES,
    Aiter,
    features_of,
    is_beside_tiles,
    is_no_tile_of,
    native_float8,
    unified_attention,
    unified_block_sizes,
)
from attn_optimized.backends.base import AttentionBackend, BatchBuilder
from attn_optimized.backends.declaring import (
    LAYOUTS_OF_ROWS,
    NOT_OVER_RANKS,
    answer,
    declared_aiter,
    own_float8_caches,
    triton_capabilities,
)
from attn_optimized.backends.triton_attn import TritonAttentionImpl


class RocmAiterUnifiedAttentionImpl(TritonAttentionImpl):
    """A layer on AITER's unified_attention if it is a decoder's, for prefill, extend and decode alike, else on our kernels.

    Cross-attention takes the paged kernel with causal=False for every number of query tokens, encoders the dense one.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        attn_metadata: Batch,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.layer.attn_type is not AttentionType.DECODER:
            return super().forward(query, key, value, kv_cache, attn_metadata, output=output, lse=lse)
        self._check_metadata(attn_metadata)
        self._check_step(query, attn_metadata, output, lse)
        return unified_attention(
            self.aiter,
            query,
            self._own_view(kv_cache),
            self.layer,
            attn_metadata,
            out=output,
            lse=lse,
            validate=self.validate,
        )


class RocmAiterUnifiedAttentionBackend(AttentionBackend):
    name = "ROCM_AITER_UNIFIED_ATTN"
    impl = RocmAiterUnifiedAttentionImpl
    builder = BatchBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        declared = declared_aiter(aiter)
        features = features_of(declared)
        no_such_mask = No("AITER's unified_attention knows causality and a window, and no other mask")
        return triton_capabilities(
            cls.name,
            available=answer(aiter.missing or features["unified"]),
            architectures=Only(("gfx",), "AITER needs ROCm"),
            dtypes=Only((torch.float16, torch.bfloat16), "the dots of AITER's unified_attention round float32 to TF32 or XF32"),
            head_sizes=UNIFIED_HEAD_SIZES,
            block_sizes=unified_block_sizes(declared),
            group_sizes=GROUP_SIZES,
            layouts=Only(LAYOUTS_OF_ROWS, "AITER's unified_attention reads rows of one head's dims, by their strides"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "AITER's unified_attention reads no int8"),
            scales=Only(("tensor",), "AITER's unified_attention takes one k_scale and one v_scale"),
            output_dtypes=Only(
                () if features["unified_output_scale"] else FLOAT8_DTYPES,
                features["unified_output_scale"] or "AITER's unified_attention clamps to these",
            ),
            rules={
                "window": answer(features["unified_window"]),
                "sink_tokens": no_such_mask,
                "chunked_local": no_such_mask,
                "logits_soft_cap": answer(features["unified_soft_cap"]),
                "q_scale": No("AITER 0.1.7's unified_attention has a q_descale and asserts that it is None"),
                "alibi_slopes": answer(features["unified_alibi"]),
                "sinks": answer(features["unified_sinks"]),
                "qq_bias": answer(features["unified_qq_bias"]),
                **dict.fromkeys(
                    ("non_causal", "per_request_causal", "bidirectional_ranges", "ranges_clamped"),
                    No("AITER's unified_attention asserts causal (vLLM #40176)"),
                ),
                "lse": No("AITER's unified_attention returns none"),
                "batch_invariant": No("AITER's unified_attention splits keys or does not, by what else is in the batch"),
                "rope": YES,
                "kv_sharing": YES,
                "over_ranks": NOT_OVER_RANKS,
            },
            combinations=(
                Combination(
                    property="ALiBi with sinks",
                    applies=lambda config, _: _has_alibi_and_sinks(config),
                    reason="AITER's unified_attention anchors ALiBi at the context's end, which moves logits against the sink",
                ),
                Combination(
                    property="a window without sinks in float16",
                    applies=lambda config, _: _has_bare_window_in_float16(config),
                    reason="where a row sees nothing of a tile, AITER's unified_attention holds its largest logit for 0, and "
                    "float16 weights of logits below about -9 underflow (finding aiter-hidden-tile, seen in 0.1.7)",
                ),
                Combination(
                    property="a float8 output that is not of the architecture's own type",
                    applies=functools.partial(_has_foreign_output, declared),
                    reason="AITER's unified_attention clamps to the range of that type",
                ),
                own_float8_caches(declared),
                Combination(
                    property="blocks of 48",
                    applies=lambda config, _: is_beside_tiles(declared, _block_size(config)),
                    reason=BLOCKS_BESIDE_TILES,
                ),
                Combination(
                    property="blocks that are no power of two on gfx1250",
                    applies=lambda config, architecture: is_no_tile_of(architecture, _block_size(config)),
                    reason=TILES_OF_GFX1250,
                ),
            ),
        )


def _has_bare_window_in_float16(config: AttentionConfig) -> bool:
    windowed = config.attn_type is AttentionType.DECODER and config.value_of("window")[0] != UNLIMITED
    return windowed and config.dtype == torch.float16 and not config.asks("sinks")


def _block_size(config: AttentionConfig) -> int:
    """The block size of a decoder, whose blocks AITER's kernel reads. For other types 64, which the kernel serves."""
    return config.block_size if config.block_size is not None and config.attn_type is AttentionType.DECODER else 64


def _has_alibi_and_sinks(config: AttentionConfig) -> bool:
    return config.asks("alibi_slopes") and config.asks("sinks") and config.attn_type is AttentionType.DECODER


def _has_foreign_output(aiter: Aiter, config: AttentionConfig, architecture: str | None) -> bool:
    if architecture is None or config.output_dtype is None or config.attn_type is not AttentionType.DECODER:
        return False
    return config.output_dtype != native_float8(aiter, architecture)
