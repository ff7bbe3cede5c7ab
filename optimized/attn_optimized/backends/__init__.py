"""Attention backends, by vLLM's names. Each declares once what it can do, and refuses the rest with the reason."""

from attn_optimized.backends.base import (
    AttentionBackend,
    AttentionImpl,
    AttentionImplBase,
    AttentionMetadataBuilder,
    MLAAttentionImpl,
)
from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.backends.minimax_m3_sparse import MiniMaxM3SparseBackend
from attn_optimized.backends.rocm_aiter_fa import AiterFlashAttentionBackend
from attn_optimized.backends.rocm_aiter_mla import RocmAiterMlaBackend, RocmAiterTritonMlaBackend
from attn_optimized.backends.rocm_aiter_mla_sparse import RocmAiterMlaSparseBackend
from attn_optimized.backends.rocm_aiter_unified_attn import RocmAiterUnifiedAttentionBackend
from attn_optimized.backends.rocm_attn import RocmAttentionBackend
from attn_optimized.backends.triton_attn import TritonAttentionBackend
from attn_optimized.backends.triton_attn_diffkv import TritonAttentionDiffKVBackend
from attn_optimized.backends.triton_mla import TritonMlaBackend

BACKENDS: dict[str, type[AttentionBackend]] = {
    backend.name: backend
    for backend in (
        RocmAttentionBackend,
        AiterFlashAttentionBackend,
        RocmAiterUnifiedAttentionBackend,
        TritonAttentionBackend,
        TritonAttentionDiffKVBackend,
        RocmAiterMlaBackend,
        TritonMlaBackend,
        RocmAiterTritonMlaBackend,
        RocmAiterMlaSparseBackend,
        MiniMaxM3SparseBackend,
    )
}

__all__ = [
    "BACKENDS",
    "AttentionBackend",
    "AttentionImpl",
    "AttentionImplBase",
    "AttentionMetadataBuilder",
    "CommonAttentionMetadata",
    "MLAAttentionImpl",
]
