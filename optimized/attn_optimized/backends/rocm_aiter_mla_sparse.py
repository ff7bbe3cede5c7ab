"""ROCM_AITER_MLA_SPARSE: latent attention (MLA) to the tokens that an indexer selected (DeepSeek-V3.2, GLM-5).

The name is vLLM's, and so is its promise: what is served here, vLLM's backend of that name serves too (as of vLLM 0.33). It
differs in two things. Where a row sees no more keys than an indexer selects, vLLM expands a prefill; here every row is
absorbed. vLLM takes a selected id of -1 for slot 0 of the cache, if it stands among the first min(k, p + 1); here it is no
token, anywhere.
"""

import dataclasses
from typing import Any, NoReturn

import torch
from attn_contract import (
    ANY,
    YES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    Combination,
    ContractError,
    Layer,
    Multiples,
    No,
    Only,
    UnsupportedError,
)
from attn_contract.arguments import check_int32

import attn_optimized
from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, AttentionMetadataBuilder, MLAAttentionImpl
from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.backends.rocm_aiter_mla import UNPADDED_HEADS
from attn_optimized.backends.topk_indices import selecting
from attn_optimized.backends.triton_mla import MlaMetadata
from attn_optimized.backends.triton_mla.declaration import TOO_WIDE, WIDEST, mla_capabilities
from attn_optimized.backends.triton_mla.metadata import MlaDecodeMetadata

NAME = "ROCM_AITER_MLA_SPARSE"


class SparseMlaMetadataBuilder(AttentionMetadataBuilder[MlaMetadata]):
    """Every request is a decode: a row that selects other tokens has no use for expanded keys of its own tokens only.

    Raises:
        UnsupportedError: another `attn_type` than DECODER.
    """

    metadata = MlaMetadata

    def __init__(self, attn_type: AttentionType) -> None:
        super().__init__(attn_type)
        if attn_type is not AttentionType.DECODER:
            raise UnsupportedError(NAME, f"{attn_type} attention", "only decoders have a latent cache", "TRITON_ATTN")

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> MlaMetadata:
        step = common_attn_metadata.batch(self.attn_type)
        return MlaMetadata(
            step=step,
            query_start_loc_cpu=common_attn_metadata.query_start_loc_cpu,
            seq_lens_cpu=common_attn_metadata.seq_lens_cpu,
            decode=MlaDecodeMetadata(batch=step, rows=slice(0, step.num_actual_tokens)),
            prefill=None,
        )


class RocmAiterMlaSparseImpl(MLAAttentionImpl[MlaMetadata]):
    """A layer on the Triton kernels.

    Args:
        topk_indices_buffer: [max tokens, k] int32: for each row of a step, the positions in its request that the indexer
            selected, for all heads. A negative entry is no position. The indexer writes it before `forward_mqa`, which reads
            the step's rows. A layer without an indexer is given the buffer of the layer whose selection it takes (GLM-5.2).

    The other arguments are AttentionImplBase's.

    Raises:
        UnsupportedError: k is no multiple of 128.
    """

    def __init__(self, layer: Layer, *, topk_indices_buffer: torch.Tensor, **arguments: Any) -> None:
        super().__init__(layer, **arguments)
        check_int32("topk_indices_buffer", topk_indices_buffer, ("max tokens", "k"))
        self._refuse(dataclasses.replace(self.config, top_k=topk_indices_buffer.shape[1]))
        self.topk_indices_buffer = topk_indices_buffer[None]

    def forward_mqa(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._check_metadata(attn_metadata)
        self._check_step(query, attn_metadata.step, output, lse)
        step = selecting(attn_metadata.step, self.topk_indices_buffer)
        view = self._own_view(kv_cache)
        return attn_optimized.paged_attention(query, view, self.layer, step, out=output, validate=self.validate)

    def forward_mha(self, *_: Any, **__: Any) -> NoReturn:
        raise ContractError("attn_metadata.prefill", None, f"prefills: for {NAME} every row of a step is a decode's")


class RocmAiterMlaSparseBackend(AttentionBackend):
    name = NAME
    impl = RocmAiterMlaSparseImpl
    builder = SparseMlaMetadataBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        ignored = No("vLLM's backend declares none, and would ignore it silently")
        return mla_capabilities(
            cls.name,
            available=YES,
            architectures=Only(
                ("gfx942", "gfx950", "gfx1250", "sm", "interpreter"), "of AMD's, vLLM takes AITER on CDNA 3 and later"
            ),
            head_sizes=Multiples(1, "a tile holds whole rows", at_most=WIDEST),
            block_sizes=ANY,
            top_ks=Multiples(128, "vLLM's kernel converts so many selected ids at a time, and its backend drops what is over"),
            rules={
                "selection_unit": YES,
                "sinks": YES,
                "window": ignored,
                "logits_soft_cap": ignored,
                "alibi_slopes": ignored,
                "q_scale": No("vLLM's backend quantizes queries itself, and this one keeps them as they are"),
                "non_causal": No("vLLM's backend does not declare it"),
                "lse": No("vLLM's backend returns none, but beside sinks"),
                "batch_invariant": No("vLLM's backend does not declare it"),
                "over_ranks": No("vLLM's backend sets supports_dcp to False"),
            },
            combinations=(*_COMBINATIONS, TOO_WIDE, UNPADDED_HEADS),
        )


def _has_sinks_elsewhere(config: AttentionConfig, architecture: str | None) -> bool:
    return config.asks("sinks") and architecture == "gfx1250"


_COMBINATIONS = (
    Combination(
        property="blocks of neither 1 slot nor a multiple of 16",
        applies=lambda config, _: config.block_size != 1 and (config.block_size or 0) % 16 != 0,
        reason="vLLM declares no other",
    ),
    Combination(
        property="a selection of other units than tokens",
        applies=lambda config, _: config.value_of("selection_unit") not in (None, 1),
        reason="vLLM's kernel takes each selected id for a token's",
    ),
    Combination(
        property="latent attention to all keys",
        applies=lambda config, _: not config.asks("selection_unit"),
        reason="vLLM chooses this backend for layers with an indexer alone",
    ),
    Combination(
        property="sinks on gfx1250",
        applies=_has_sinks_elsewhere,
        reason="vLLM declares them for gfx942 and gfx950",
    ),
)
