"""Schemas of the torch ops `attn_parity::*`: one op, two devices.

`attn_reference` registers the CPU implementations, `attn_optimized` those of CUDA and HIP; a model moved to the CPU then runs
the reference without a change of its code. Every op writes into the tensors it is given and returns nothing.
"""

from enum import StrEnum
from types import ModuleType
from typing import TypeVar

import torch

from attn_contract.arguments import check_dims, check_tensor
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.layer import AttentionType, Layer
from attn_contract.layouts import Layout

_LAYER = "float scale, str attn_type, int[] window, Tensor? sinks"
_BATCH = "Tensor query_start_loc, Tensor seq_lens, int max_query_len, int max_seq_len, int num_actual_tokens"
_QUERY_DIMS = ("T", "num_heads", "head_size")
_Name = TypeVar("_Name", bound=StrEnum)

_library = torch.library.Library("attn_parity", "DEF")
_library.define(
    f"paged_attention(Tensor q, Tensor kv_cache, str layout, {_LAYER}, {_BATCH}, Tensor block_table, "
    "bool? causal, Tensor? causal_per_request, Tensor(a!) out, Tensor(b!)? lse) -> ()"
)
_library.define(f"varlen_attention(Tensor q, Tensor k, Tensor v, {_LAYER}, {_BATCH}, Tensor(a!) out, Tensor(b!)? lse) -> ()")
_library.define("write_kv_cache(Tensor k, Tensor v, Tensor(a!) kv_cache, str layout, Tensor slot_mapping) -> ()")
_library.define(
    "merge_attn_states(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, Tensor(a!) out, Tensor(b!)? lse) -> ()"
)
for _name in ("paged_attention", "varlen_attention", "write_kv_cache", "merge_attn_states"):
    torch.library.register_fake(f"attn_parity::{_name}", lambda *args: None)


def register(implementation: ModuleType, dispatch_key: str) -> None:
    """Make a package's four functions the ops of a device.

    Args:
        implementation: has `paged_attention`, `varlen_attention`, `write_kv_cache` and `merge_attn_states` with the
            signatures of `attn_reference`.
        dispatch_key: "CPU", or "CUDA" (HIP's devices dispatch there too).
    """

    def paged_attention(
        q, kv_cache, layout, scale, attn_type, window, sinks, query_start_loc, seq_lens, max_query_len, max_seq_len,
        num_actual_tokens, block_table, causal, causal_per_request, out, lse,
    ) -> None:  # fmt: skip
        kv_layout = _named(Layout, "layout", layout)
        check_dims("q", q, _QUERY_DIMS)
        check_dims("kv_cache", kv_cache, kv_layout.dims)
        if (causal is None) == (causal_per_request is None):
            both = f"{causal}, and {'no' if causal is None else 'a'} causal_per_request"
            raise ContractError("causal", both, "either a bool or causal_per_request")
        layer = Layer(
            num_heads=q.shape[1],
            num_kv_heads=kv_cache.shape[kv_layout.dims.index("head")],
            head_size=q.shape[2],
            scale=scale,
            attn_type=_named(AttentionType, "attn_type", attn_type),
            window=tuple(window),
            sinks=sinks,
            layout=kv_layout,
        )
        batch = Batch(
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            num_actual_tokens=num_actual_tokens,
            causal=causal if causal_per_request is None else causal_per_request,
            block_table=block_table,
        )
        check_tensor("out", out)
        implementation.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

    def varlen_attention(
        q, k, v, scale, attn_type, window, sinks, query_start_loc, seq_lens, max_query_len, max_seq_len,
        num_actual_tokens, out, lse,
    ) -> None:  # fmt: skip
        check_dims("q", q, _QUERY_DIMS)
        check_dims("k", k, ("T_kv", "num_kv_heads", "head_size"))
        layer = Layer(
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_size=q.shape[2],
            scale=scale,
            attn_type=_named(AttentionType, "attn_type", attn_type),
            window=tuple(window),
            sinks=sinks,
        )
        batch = Batch(
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            num_actual_tokens=num_actual_tokens,
            causal=False,
        )
        check_tensor("out", out)
        implementation.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)

    def write_kv_cache(k, v, kv_cache, layout, slot_mapping) -> None:
        implementation.write_kv_cache(k, v, kv_cache, _named(Layout, "layout", layout), slot_mapping)

    def merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse) -> None:
        check_tensor("out", out)
        implementation.merge_attn_states(out_a, lse_a, out_b, lse_b, out=out, lse=lse)

    for kernel in (paged_attention, varlen_attention, write_kv_cache, merge_attn_states):
        torch.library.impl(f"attn_parity::{kernel.__name__}", dispatch_key, lib=_library)(kernel)


def _named(kind: type[_Name], argument: str, value: str) -> _Name:
    if value not in set(kind):
        raise ContractError(argument, repr(value), f"one of {', '.join(kind)}")
    return kind(value)
