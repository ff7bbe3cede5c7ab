"""Argument checks: one for each operation.

Shapes, dtypes, strides and numbers of the host are always checked. Values in tensors are checked with `values=True`: to read
them from a device means to wait for the device, so implementations that ship read none unless they are asked to. Each check
raises ContractError, which names the first argument that is wrong, and all checks run before anything is written. The check of
a call with a cache returns the cache's view, read back from its shape and strides.
"""

from attn_contract.validation.attention import (
    check_attention_tensors,
    check_own_tokens,
    check_paged_attention,
    check_rules_of_step,
    check_varlen_attention,
    dtype_of_output,
)
from attn_contract.validation.cache import (
    check_gather_kv_cache,
    check_rope_and_write_kv_cache,
    check_write_kv_cache,
    check_write_latent_cache,
    check_write_tensors,
)
from attn_contract.validation.indexer import check_index_logits, check_select, check_write_index_cache
from attn_contract.validation.merge import LseBase, check_merge_attn_parts, check_merge_attn_states
from attn_contract.validation.values import check_layer_logits, check_lengths, check_scale_values

__all__ = [
    "LseBase",
    "check_attention_tensors",
    "check_gather_kv_cache",
    "check_index_logits",
    "check_layer_logits",
    "check_lengths",
    "check_merge_attn_parts",
    "check_merge_attn_states",
    "check_own_tokens",
    "check_paged_attention",
    "check_rope_and_write_kv_cache",
    "check_rules_of_step",
    "check_scale_values",
    "check_select",
    "check_varlen_attention",
    "check_write_index_cache",
    "check_write_kv_cache",
    "check_write_latent_cache",
    "check_write_tensors",
    "dtype_of_output",
]
