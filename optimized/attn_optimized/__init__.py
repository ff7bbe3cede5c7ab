"""Triton kernels of the attention contract, for CUDA and ROCm GPUs, and for CPUs under Triton's interpreter."""

import sys

from attn_contract import ops

from attn_optimized.attention import paged_attention, varlen_attention
from attn_optimized.kv_cache import write_kv_cache
from attn_optimized.merge import merge_attn_states

__all__ = ["merge_attn_states", "paged_attention", "varlen_attention", "write_kv_cache"]

ops.register(sys.modules[__name__], "CUDA")
