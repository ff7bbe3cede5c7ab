"""What both sides obey: layers, batches, KV cache layouts, the border checks and the op schemas. No arithmetic."""

from attn_contract.batch import Batch
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.layer import FLOAT_DTYPES, AttentionType, Layer
from attn_contract.layouts import KVCacheView, Layout, same_elements, same_footprint

__all__ = [
    "FLOAT_DTYPES",
    "AttentionType",
    "Batch",
    "ContractError",
    "KVCacheView",
    "Layer",
    "Layout",
    "UnsupportedError",
    "same_elements",
    "same_footprint",
]
