"""Triton kernels of the attention contract, for CUDA and ROCm GPUs, and for CPUs under Triton's interpreter."""

import sys

try:
    import triton  # noqa: F401
except ModuleNotFoundError as error:
    reason = "attn_optimized needs triton: pip install 'attn-parity[cpu]', or a torch build for GPUs, which brings it"
    raise ModuleNotFoundError(reason, name=error.name) from error

from attn_contract import ops

from attn_optimized.attention import paged_attention, plan_of, varlen_attention
from attn_optimized.cascade import cascade_attention
from attn_optimized.indexer import index_logits, select, write_index_cache
from attn_optimized.kv_cache import rope_and_write_kv_cache, write_kv_cache
from attn_optimized.latent_cache import write_latent_cache
from attn_optimized.merge import merge_attn_parts, merge_attn_states
from attn_optimized.repeats import Repeats

__all__ = [
    "cascade_attention",
    "index_logits",
    "merge_attn_parts",
    "merge_attn_states",
    "paged_attention",
    "plan_of",
    "rope_and_write_kv_cache",
    "select",
    "varlen_attention",
    "write_index_cache",
    "write_kv_cache",
    "write_latent_cache",
]

ops.register(sys.modules[__name__], "CUDA", Repeats)
