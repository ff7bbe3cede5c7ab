"""ROCM_AITER_MLA and ROCM_AITER_TRITON_MLA: what vLLM 0.33's backends of these names serve. Neither can be built here.

Both decode on AITER's assembly kernels, which only a GPU of CDNA 3 or later runs: this project has not run them, and
nothing here can interpret them. An adapter that was never run would be a promise without a proof, so there is none. They differ
in their prefill alone: AITER's flash attention of its C++ kernels, or of its Triton ones.
"""

from typing import Any, NoReturn

import torch
from attn_contract import ANY, YES, AttentionConfig, Capabilities, Combination, No, Only

from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, MLAAttentionImpl
from attn_optimized.backends.triton_mla import MlaMetadata, MlaMetadataBuilder
from attn_optimized.backends.triton_mla.declaration import mla_capabilities

NO_ADAPTER = No(
    "this project has no adapter to AITER's assembly kernels of latent attention: nothing to install "
    "changes that, and vLLM's own backend of this name may serve the layer"
)
_PADDED_HEADS, _HEADS = 128, 16


class RocmAiterMlaImpl(MLAAttentionImpl[MlaMetadata]):
    """No layer is ever made: the constructor refuses every one, with the reasons of the declaration."""

    def forward_mqa(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(NO_ADAPTER)

    def forward_mha(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(NO_ADAPTER)


def _has_unpadded_heads(config: AttentionConfig) -> bool:
    return config.group_size > _PADDED_HEADS and config.group_size % _HEADS != 0


UNPADDED_HEADS = Combination(
    property=f"more than {_PADDED_HEADS} heads that are no multiple of {_HEADS}",
    applies=lambda config, _: _has_unpadded_heads(config),
    reason=f"the kernels take multiples of {_HEADS}, and vLLM pads to them up to {_PADDED_HEADS}",
)


class RocmAiterMlaBackend(AttentionBackend):
    name = "ROCM_AITER_MLA"
    impl = RocmAiterMlaImpl
    builder = MlaMetadataBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        return mla_capabilities(
            cls.name,
            available=NO_ADAPTER,
            architectures=Only(("gfx942", "gfx950", "gfx1250"), "AITER needs ROCm, and vLLM takes it on CDNA 3 and later"),
            head_sizes=ANY,
            block_sizes=ANY,  # vLLM's builder lists the slots of tokens one by one
            rules={
                "non_causal": YES,
                "q_scale": No("no adapter hands it one"),
                "batch_invariant": No("vLLM's backend does not declare it"),
            },
            combinations=_COMBINATIONS,
        )


_COMBINATIONS = (
    UNPADDED_HEADS,
    Combination(
        property="steps that are not causal, but on gfx950",
        applies=lambda config, architecture: config.asks("non_causal") and architecture not in (None, "gfx950"),
        reason="AITER has no such assembly kernels for other architectures",
    ),
    Combination(
        property="steps that are not causal, in float16 with a cache of float16",
        applies=lambda config, _: _is_non_causal_float16(config),
        reason="AITER's kernel would abort, and vLLM's backend refuses it",
    ),
)


def _is_non_causal_float16(config: AttentionConfig) -> bool:
    return config.asks("non_causal") and config.dtype == torch.float16 and config.kv_cache_dtype is None


class RocmAiterTritonMlaImpl(RocmAiterMlaImpl):
    pass


class RocmAiterTritonMlaBackend(RocmAiterMlaBackend):
    name = "ROCM_AITER_TRITON_MLA"
    impl = RocmAiterTritonMlaImpl
