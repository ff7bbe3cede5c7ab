"""Targets `planted_backends:NAME`: a backend that declares what it cannot do."""

import dataclasses

from attn_contract import YES, Capabilities
from attn_fuzz.targets.backends.layers import BackendLayers, backend_target, declared_by
from attn_fuzz.targets.packages.aiter.backends import fa_sizes
from attn_optimized.backends.rocm_aiter_fa import AiterFlashAttentionBackend, AiterFlashAttentionImpl
from planted_aiter import documented, rounding


class ClaimsRope(AiterFlashAttentionBackend):
    """ROCM_AITER_FA as it was: its prefill attends to keys that the cache write has not rotated."""

    @classmethod
    def capabilities(cls, aiter) -> Capabilities:
        declared = super().capabilities(aiter)
        return dataclasses.replace(declared, rules={**declared.rules, "rope": YES})


class RotatesOnlyTheCache(AiterFlashAttentionImpl):
    backend = ClaimsRope


ClaimsRope.impl = RotatesOnlyTheCache


_ROPE = BackendLayers(lambda: ClaimsRope, documented)

CLAIMS_ROPE = backend_target(
    "claims-rope",
    _ROPE,
    description="a backend that rotates only what it writes",
    support=declared_by(_ROPE, fa_sizes),
    rounding=rounding,
    refuses=False,
    sanitizes=False,
)
