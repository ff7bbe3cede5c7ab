"""Targets `planted_backends:NAME`: backends that declare what they cannot do."""

import dataclasses

from attn_contract import YES, Capabilities
from attn_fuzz.targets.backends import BackendLayers, backend_target, declared_by, fa_sizes, installed
from attn_fuzz.targets.triton import TRITON
from attn_optimized.backends.rocm_aiter_fa import AiterFlashAttentionBackend, AiterFlashAttentionImpl
from attn_optimized.backends.rocm_attn import RocmAttentionBackend, RocmAttentionImpl
from attn_optimized.backends.triton_attn import TritonAttentionBackend, TritonAttentionImpl
from planted_aiter import documented, rounding


def claiming(declared: Capabilities, rule: str) -> Capabilities:
    return dataclasses.replace(declared, rules={**declared.rules, rule: YES})


class IgnoresChunks(RocmAttentionImpl):
    """An implementation that never hands its kernel chunked_local."""

    def __init__(self, layer, **options):
        super().__init__(layer, **options)
        self.layer = dataclasses.replace(self.layer, chunked_local=None)


class ClaimsChunks(RocmAttentionBackend):
    impl = IgnoresChunks

    @classmethod
    def capabilities(cls, aiter) -> Capabilities:
        return claiming(super().capabilities(aiter), "chunked_local")


IgnoresChunks.backend = ClaimsChunks


class LosesSinksInDecode(TritonAttentionImpl):
    """A decode kernel that knows no sinks (vLLM #43817)."""

    def forward(self, query, key, value, kv_cache, attn_metadata, *, output, lse=None):
        layer = self.layer
        self._check_metadata(attn_metadata)
        if attn_metadata.max_query_len == 1:
            self.layer = dataclasses.replace(layer, sinks=None)
        super().forward(query, key, value, kv_cache, attn_metadata, output=output, lse=lse)
        self.layer = layer
        return output


class ClaimsSinks(TritonAttentionBackend):
    impl = LosesSinksInDecode


LosesSinksInDecode.backend = ClaimsSinks


class ClaimsRope(AiterFlashAttentionBackend):
    """ROCM_AITER_FA as it was: its prefill attends to keys that the cache write has not rotated."""

    @classmethod
    def capabilities(cls, aiter) -> Capabilities:
        return claiming(super().capabilities(aiter), "rope")


class RotatesOnlyTheCache(AiterFlashAttentionImpl):
    backend = ClaimsRope


ClaimsRope.impl = RotatesOnlyTheCache


_CHUNKS, _SINKS = (BackendLayers(load, installed) for load in (lambda: ClaimsChunks, lambda: ClaimsSinks))
_ROPE = BackendLayers(lambda: ClaimsRope, documented)

CLAIMS_CHUNKS = backend_target("claims-chunks", _CHUNKS, support=declared_by(_CHUNKS, TRITON.support))
CLAIMS_SINKS = backend_target("claims-sinks", _SINKS, support=declared_by(_SINKS, TRITON.support))
CLAIMS_ROPE = backend_target(
    "claims-rope",
    _ROPE,
    support=declared_by(_ROPE, fa_sizes),
    rounding=rounding,
    refuses=False,
    sanitizes=False,
)
