"""The contract that the reference and the kernels both obey. There is no arithmetic of attention here.

`Layer` and `Batch` describe a call, and `rules` what a call may ask for beyond plain attention. `KVCacheView` says where the
elements of a cache lie, and `Capabilities` what a backend serves. `validation` has the argument checks, `ops` the torch ops.
"""

from attn_contract.attention_config import AttentionConfig
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.capabilities import (
    ANY,
    YES,
    Answer,
    Capabilities,
    Combination,
    Multiples,
    No,
    Only,
    Refusal,
)
from attn_contract.errors import ContractError, MiscompiledError, UnsupportedError
from attn_contract.indexer import IndexCacheView, Indexer, IndexLayout, IndexScore, ScaleFormat
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, QUANTIZED_DTYPES, Layer
from attn_contract.layouts import Layout, PhysicalOrder
from attn_contract.rules import RULES, Rule
from attn_contract.shared_allocations import check_shared_allocation, same_elements, same_footprint

__all__ = [
    "ANY",
    "FLOAT8_DTYPES",
    "FLOAT_DTYPES",
    "QUANTIZED_DTYPES",
    "RULES",
    "YES",
    "Answer",
    "AttentionConfig",
    "AttentionType",
    "Batch",
    "Capabilities",
    "Combination",
    "ContractError",
    "IndexCacheView",
    "IndexLayout",
    "IndexScore",
    "Indexer",
    "KVCacheView",
    "Layer",
    "Layout",
    "MiscompiledError",
    "Multiples",
    "No",
    "Only",
    "PhysicalOrder",
    "Refusal",
    "Rule",
    "ScaleFormat",
    "UnsupportedError",
    "check_shared_allocation",
    "same_elements",
    "same_footprint",
]
