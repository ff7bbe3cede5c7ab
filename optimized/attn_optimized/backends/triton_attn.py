"""TRITON_ATTN: this project's Triton kernels, for every attention type, rule, layout and phase."""

import torch
from attn_contract import Batch, Capabilities, ContractError

import attn_optimized
from attn_optimized.aiter_adapter import Aiter
from attn_optimized.backends.base import AttentionBackend, AttentionImpl, BatchBuilder
from attn_optimized.backends.declaring import FLOAT8_QUERIES, triton_capabilities


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
        options = {"batch_invariant": self.config.asks("batch_invariant"), "validate": self.validate}
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
        return triton_capabilities(cls.name, combinations=FLOAT8_QUERIES)
