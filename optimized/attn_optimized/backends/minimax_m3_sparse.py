"""MINIMAX_M3_SPARSE: decoders whose indexer selects blocks of 128 tokens, for each KV head its own (MiniMax-M3).

The name is vLLM's, and so is its promise: what is served here, vLLM's backend of that name serves too (as of vLLM 0.33). vLLM's
model of MiniMax-M3 chooses it for its sparse layers, whatever `--attention-backend` says.
"""

from typing import Any

import torch
from attn_contract import (
    FLOAT8_DTYPES,
    YES,
    AttentionType,
    Batch,
    Capabilities,
    Combination,
    ContractError,
    Layer,
    Layout,
    No,
    Only,
)
from attn_contract.arguments import check_int32

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, BatchBuilder
from attn_optimized.backends.declaring import NOT_OVER_RANKS, triton_capabilities
from attn_optimized.backends.topk_indices import NAME, selecting
from attn_optimized.backends.triton_attn import TritonAttentionImpl

BLOCK = 128
"""Tokens of a block that is selected, and slots of a block of the cache: one is the other."""
_WITHOUT_PARAMETER = (
    *("window", "sink_tokens", "chunked_local", "bidirectional_ranges", "ranges_clamped"),
    *("logits_soft_cap", "alibi_slopes", "sinks", "qq_bias", "kv_sharing"),
)


class MiniMaxM3SparseImpl(TritonAttentionImpl):
    """A layer on the Triton kernels.

    Args:
        topk_indices_buffer: [HK, max tokens, k] int32: for each row of a step, the blocks of its request that the indexer
            selected. A negative entry is no block. The indexer writes it before `forward`, which reads the step's rows.

    The other arguments are AttentionImplBase's.
    """

    def __init__(self, layer: Layer, *, topk_indices_buffer: torch.Tensor, **arguments: Any) -> None:
        super().__init__(layer, **arguments)
        check_int32(NAME, topk_indices_buffer, ("HK", "max tokens", "k"))
        if len(topk_indices_buffer) != layer.num_kv_heads:
            got = f"shape {tuple(topk_indices_buffer.shape)}"
            raise ContractError(NAME, got, f"num_kv_heads ({layer.num_kv_heads}) in its first dimension")
        self.topk_indices_buffer = topk_indices_buffer

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
        self._check_metadata(attn_metadata)
        step = selecting(attn_metadata, self.topk_indices_buffer)
        return super().forward(query, key, value, kv_cache, step, output=output, lse=lse)


class MiniMaxM3SparseBackend(AttentionBackend):
    name = "MINIMAX_M3_SPARSE"
    impl = MiniMaxM3SparseImpl
    builder = BatchBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        return triton_capabilities(
            cls.name,
            attn_types={**dict.fromkeys(AttentionType, No("vLLM's backend is for decoders alone")), AttentionType.DECODER: YES},
            dtypes=Only((torch.float16, torch.bfloat16), "vLLM declares no other dtype"),
            head_sizes=Only((128,), "vLLM declares no other"),
            block_sizes=Only((BLOCK,), "a block of the cache is a block that is selected"),
            layouts=Only((Layout.CONTENT_PACKED,), "vLLM's kernels take K and V from one row"),
            kv_cache_dtypes=Only(FLOAT8_DTYPES, "vLLM declares no other quantized cache that this project has"),
            scales=Only(("tensor",), "vLLM's kernels take one scale of K and one of V"),
            output_dtypes=Only((), "vLLM's layer quantizes no output"),
            rules={
                "selection_unit": YES,
                **dict.fromkeys(_WITHOUT_PARAMETER, No("vLLM's layer has no parameter for it")),
                "q_scale": No("vLLM's Triton kernels take no float8 queries"),
                "head_size_v": No("vLLM's kernels take K and V of one width"),
                **dict.fromkeys(("non_causal", "per_request_causal"), No("vLLM's kernels are causal")),
                "lse": No("vLLM's kernels return none"),
                "batch_invariant": No("vLLM's backend does not declare it"),
                "rope": No("vLLM's layer rotates before the cache write"),
                "over_ranks": NOT_OVER_RANKS,
            },
            combinations=(
                Combination(
                    property=f"a selection of other units than {BLOCK} tokens",
                    applies=lambda config, _: config.value_of("selection_unit") not in (None, BLOCK),
                    reason="vLLM's kernels read blocks of these",
                ),
                Combination(
                    property="attention to all keys",
                    applies=lambda config, _: not config.asks("selection_unit"),
                    reason="vLLM's model chooses this backend for layers with an indexer alone",
                ),
            ),
        )
