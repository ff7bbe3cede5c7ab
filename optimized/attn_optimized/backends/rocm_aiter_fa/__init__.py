"""ROCM_AITER_FA: decoders on AITER's flash attention for prefill and extend, and on its paged kernels for decode.

A step is split into three phases, by lengths that the host knows:

    prefill   no context: flash_attn_varlen_func over this step's own keys, which need no cache
    extend    a context and many query tokens: the same over this step's keys, and over the context in chunks gathered from the
              cache, merged by their LSEs; the sink joins the first alone. With a window, one call over the keys it can reach
    decode    few query tokens: paged_attention_v1 for a single one; unified_attention for more, and with sinks or a window,
              since the other knows no sinks (vLLM #43817)

Prefills, and extends without a window, take a step's keys and values from the dense tensors: an fp8 cache quantizes them for
later steps and not for their own. Decodes, and extends with a window, read them from the cache.
"""

from attn_optimized.backends.rocm_aiter_fa.declaration import AiterFlashAttentionBackend
from attn_optimized.backends.rocm_aiter_fa.impl import AiterFlashAttentionImpl
from attn_optimized.backends.rocm_aiter_fa.metadata import AiterFlashAttentionMetadata, AiterFlashAttentionMetadataBuilder

__all__ = [
    "AiterFlashAttentionBackend",
    "AiterFlashAttentionImpl",
    "AiterFlashAttentionMetadata",
    "AiterFlashAttentionMetadataBuilder",
]
