"""Attention as it is defined, in plain PyTorch: slow, obvious, and what the fast kernels are judged against.

Start with `attn_reference.attention`; its docstring is the specification. Importing the package makes these functions the CPU
implementation of the torch ops `attn_parity::*`, so a model moved to the CPU runs them without a change.
"""

import sys

import torch
from attn_contract.ops import register

from attn_reference.attention import (
    Attention,
    Request,
    attend,
    paged_attention,
    paged_requests,
    varlen_attention,
    varlen_requests,
    visible,
)
from attn_reference.kv_cache import gather_kv_cache, write_kv_cache
from attn_reference.merge import merge_attn_states

__all__ = [
    "Attention",
    "Request",
    "attend",
    "gather_kv_cache",
    "merge_attn_states",
    "paged_attention",
    "paged_requests",
    "varlen_attention",
    "varlen_requests",
    "visible",
    "write_kv_cache",
]

# A reload comes here again, and the dispatcher, which outlives the module, warns of every kernel registered twice.
if not torch._C._dispatch_has_kernel_for_dispatch_key("attn_parity::paged_attention", "CPU"):
    register(sys.modules[__name__], "CPU")
