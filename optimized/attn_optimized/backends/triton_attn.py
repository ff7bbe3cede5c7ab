"""TRITON_ATTN: this project's Triton kernels, for every attention type, rule, layout and phase."""

from typing import Any

import torch
from attn_contract import (
    ANY,
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    QUANTIZED_DTYPES,
    YES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    Combination,
    ContractError,
    Layout,
    Multiples,
    Only,
)

import attn_optimized
from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.backend import AttentionBackend, AttentionImpl, BatchBuilder
from attn_optimized.launch.tiles import MAX_GROUP, MAX_HEAD_SIZE


class TritonAttentionImpl(AttentionImpl[Batch]):
    """A layer on the Triton kernels: one paged kernel for prefill, extend, decode and several query tokens alike."""

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
        self._check_step(query, attn_metadata, output, lse)
        options = {"batch_invariant": self.config.batch_invariant, "validate": self.validate}
        if self.layer.attn_type.reads_cache:
            return attn_optimized.paged_attention(
                query, self._own_view(kv_cache), self.layer, attn_metadata, out=output, lse=lse, **options
            )
        if key is None or value is None:
            raise ContractError(
                "key" if key is None else "value", None, f"a tensor: {self.layer.attn_type} attention has no cache"
            )
        return attn_optimized.varlen_attention(query, key, value, self.layer, attn_metadata, out=output, lse=lse, **options)


class TritonAttentionBackend(AttentionBackend):
    name = "TRITON_ATTN"
    impl = TritonAttentionImpl
    builder = BatchBuilder

    @classmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        return triton_capabilities(cls.name)


TritonAttentionImpl.backend = TritonAttentionBackend


def triton_capabilities(backend: str, **narrower: Any) -> Capabilities:
    """What the project's Triton kernels do, under the name of a backend that may do less."""
    return Capabilities(
        **{
            "backend": backend,
            "available": YES,
            "architectures": ANY,
            "attn_types": dict.fromkeys(AttentionType, YES),
            "dtypes": Only(FLOAT_DTYPES, "its kernels load no other type"),
            "head_sizes": Multiples(1, "a tile holds whole heads", at_most=MAX_HEAD_SIZE),
            "group_sizes": Multiples(1, "a tile holds whole groups of heads", at_most=MAX_GROUP),
            "block_sizes": ANY,
            "layouts": Only(tuple(Layout), "there are no others"),
            "kv_cache_dtypes": Only(QUANTIZED_DTYPES, "its kernels decode no other type"),
            "scales": ANY,
            "output_dtypes": Only(FLOAT8_DTYPES, "its kernels encode no other type"),
            "window": YES,
            "sink_tokens": YES,
            "chunked_local": YES,
            "logits_soft_cap": YES,
            "alibi": YES,
            "sinks": YES,
            "ranges": YES,
            "qq_bias": YES,
            "non_causal": YES,
            "per_request_causal": YES,
            "lse": YES,
            "batch_invariant": YES,
            "rope": YES,
            "combinations": (PACKED_UNITS,),
            **narrower,
        }
    )


def _breaks_packed_units(config: AttentionConfig) -> bool:
    if config.layout is None or not config.layout.is_x_packed or config.block_size is None:
        return False
    x = 16 // (config.kv_cache_dtype or config.dtype).itemsize
    return bool(config.head_size % x or config.block_size % x)


PACKED_UNITS = Combination(
    property="a head or block size that is no multiple of 16 bytes in a packed layout",
    applies=lambda config, _: _breaks_packed_units(config),
    reason="X_PACKED and SHUFFLED cut heads and blocks into units of 16 bytes",
)
