"""Attention as it is defined, in plain PyTorch: slow, obvious, and the standard that the fast kernels are judged by.

Start with `attn_reference.attention` and `masks`. Their docstrings are the specification: what attention computes, and which
keys a query sees. `masks` and `logits` hold the rules one by one; `kv_cache` reads and writes the cache, `merge` joins partial
results, and `context_parallel` deals keys to ranks; `latent` says how MLA is this attention, and `indexer` how sparse attention
chooses its keys; `quantization`, `rotary` and `rounding` define every bit. Importing the package makes its functions the
CPU implementation of the torch ops `attn_parity::*`: a model that is moved to the CPU runs them without a change.
"""

import sys

import torch
from attn_contract.ops import register

from attn_reference import context_parallel
from attn_reference.attention import (
    IMPLEMENTED_RULES,
    Attention,
    Request,
    attend,
    paged_attention,
    paged_requests,
    varlen_attention,
    varlen_requests,
)
from attn_reference.indexer import index_logits, select, write_index_cache
from attn_reference.kv_cache import gather_kv_cache, write_kv_cache, write_latent_cache
from attn_reference.masks import visible
from attn_reference.merge import merge_attn_parts, merge_attn_states
from attn_reference.quantization import dequantize, e8m0_numbers, e8m0_scales, group_scales, quantize, row_scales
from attn_reference.rotary import rope_and_write_kv_cache

__all__ = [
    "IMPLEMENTED_RULES",
    "Attention",
    "Request",
    "attend",
    "context_parallel",
    "dequantize",
    "e8m0_numbers",
    "e8m0_scales",
    "gather_kv_cache",
    "group_scales",
    "index_logits",
    "merge_attn_parts",
    "merge_attn_states",
    "paged_attention",
    "paged_requests",
    "quantize",
    "rope_and_write_kv_cache",
    "row_scales",
    "select",
    "varlen_attention",
    "varlen_requests",
    "visible",
    "write_index_cache",
    "write_kv_cache",
    "write_latent_cache",
]

# The dispatcher outlives the module: after a reload it would warn that each kernel is registered twice.
if not torch._C._dispatch_has_kernel_for_dispatch_key("attn_parity::paged_attention", "CPU"):
    register(sys.modules[__name__], "CPU")
