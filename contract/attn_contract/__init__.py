"""What both sides obey: layers, batches, KV cache layouts, the border checks and the op schemas. No arithmetic."""

from attn_contract.batch import Batch
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, QUANTIZED_DTYPES, AttentionType, Layer
from attn_contract.layouts import (
    KVCacheView,
    Layout,
    PhysicalOrder,
    check_shared_allocation,
    same_elements,
    same_footprint,
)

__all__ = [
    "FLOAT8_DTYPES",
    "FLOAT_DTYPES",
    "QUANTIZED_DTYPES",
    "AttentionType",
    "Batch",
    "ContractError",
    "KVCacheView",
    "Layer",
    "Layout",
    "PhysicalOrder",
    "UnsupportedError",
    "check_shared_allocation",
    "same_elements",
    "same_footprint",
]
