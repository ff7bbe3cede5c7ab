"""Schemas of the torch ops `attn_parity::*`: one op, two devices.

`attn_reference` registers the CPU implementations, `attn_optimized` those of CUDA and HIP; a model moved to the CPU then runs
the reference without a change of its code. Every op writes into the tensors it is given and returns nothing.
"""

from collections.abc import Iterable
from enum import StrEnum
from types import ModuleType
from typing import Any, TypeVar

import torch

from attn_contract.arguments import check_dims, check_tensor
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT_DTYPES, Layer
from attn_contract.layouts import Layout
from attn_contract.rules import Rule, held_rules

# A SymInt may change from step to step without a new compilation; an int would be a constant of the compiled graph.
_BATCH = "Tensor query_start_loc, Tensor seq_lens, SymInt max_query_len, SymInt max_seq_len, SymInt num_actual_tokens"
_OUTPUTS = "Tensor(a!) out, Tensor(b!)? lse"
# as a schema writes the types of rules
_TYPES = {
    tuple[int, int]: "int[]",
    int: "int",
    int | None: "int?",
    float | None: "float?",
    bool: "bool",
    torch.Tensor | None: "Tensor?",
}


def _option(rule: Rule) -> str:
    off = list(rule.off) if isinstance(rule.off, tuple) else rule.off
    return f"{_TYPES[rule.type]} {rule.name}={off}"


def _options(rules: Iterable[Rule]) -> str:
    return ", ".join(map(_option, rules))


_LAYER_RULES, _STEP_RULES = tuple(held_rules(Layer).values()), tuple(held_rules(Batch).values())
_DENSE_RULES = tuple(rule for rule in _LAYER_RULES if AttentionType.ENCODER in rule.attn_types)
_SCALES = "Tensor? k_scale=None, Tensor? v_scale=None"
_SCALE_CACHES = "Tensor? k_scale_cache=None, Tensor? v_scale_cache=None"
_WRITTEN_SCALE_CACHES = "Tensor(c!)? k_scale_cache=None, Tensor(d!)? v_scale_cache=None"
_OUTPUT = "Tensor? output_scale=None, bool batch_invariant=False"
_QUERY_DIMS = ("T", "num_heads", "head_size")
_KEY_DIMS = ("T_kv", "num_kv_heads", "head_size")
_Name = TypeVar("_Name", bound=StrEnum)

_SCHEMAS = {
    "paged_attention": (
        f"Tensor q, Tensor kv_cache, str layout, int num_kv_heads, float scale, str attn_type, {_BATCH}, Tensor block_table, "
        f"bool? causal, Tensor? causal_per_request, {_OUTPUTS}, *, {_options(_LAYER_RULES + _STEP_RULES)}, {_SCALES}, "
        f"{_SCALE_CACHES}, {_OUTPUT}"
    ),
    "varlen_attention": (
        f"Tensor q, Tensor k, Tensor v, float scale, str attn_type, {_BATCH}, {_OUTPUTS}, *, {_options(_DENSE_RULES)}, "
        f"{_OUTPUT}"
    ),
    "write_kv_cache": (
        f"Tensor k, Tensor v, Tensor(a!) kv_cache, str layout, Tensor slot_mapping, *, {_SCALES}, {_WRITTEN_SCALE_CACHES}"
    ),
    "rope_and_write_kv_cache": (
        "Tensor(a!) q, Tensor k, Tensor v, Tensor positions, Tensor cos_sin_cache, bool is_neox, Tensor(b!) kv_cache, "
        f"str layout, Tensor slot_mapping, *, {_SCALES}, {_WRITTEN_SCALE_CACHES}"
    ),
    "merge_attn_states": "Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, Tensor(a!) out, Tensor(b!)? lse",
}
_library = torch.library.Library("attn_parity", "DEF")
for _name, _arguments in _SCHEMAS.items():
    _library.define(f"{_name}({_arguments}) -> ()")
    torch.library.register_fake(f"attn_parity::{_name}", lambda *args, **options: None)


def register(implementation: ModuleType, dispatch_key: str) -> None:
    """Make a package's five functions the ops of a device.

    Args:
        implementation: has `paged_attention`, `varlen_attention`, `write_kv_cache`, `rope_and_write_kv_cache` and
            `merge_attn_states` with the signatures of `attn_reference`, and `batch_invariant` for the first two.
        dispatch_key: "CPU", or "CUDA" (HIP's devices dispatch there too).
    """

    def paged_attention(
        q, kv_cache, layout, num_kv_heads, scale, attn_type, query_start_loc, seq_lens, max_query_len, max_seq_len,
        num_actual_tokens, block_table, causal, causal_per_request, out, lse, *, batch_invariant=False, **options,
    ) -> None:  # fmt: skip
        check_dims("q", q, _QUERY_DIMS)
        if (causal is None) == (causal_per_request is None):
            both = f"{causal}, and {'no' if causal is None else 'a'} causal_per_request"
            raise ContractError("causal", both, "either a bool or causal_per_request")
        step = {rule.name: options.pop(rule.name, rule.off) for rule in _STEP_RULES}
        layer = _layer(
            q, num_kv_heads, scale, attn_type, options,
            layout=_named(Layout, "layout", layout), kv_cache_dtype=_kv_cache_dtype(kv_cache),
        )  # fmt: skip
        batch = Batch(
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            num_actual_tokens=num_actual_tokens,
            causal=causal if causal_per_request is None else causal_per_request,
            block_table=block_table,
            **step,
        )
        check_tensor("out", out)
        implementation.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse, batch_invariant=batch_invariant)

    def varlen_attention(
        q, k, v, scale, attn_type, query_start_loc, seq_lens, max_query_len, max_seq_len, num_actual_tokens, out, lse, *,
        batch_invariant=False, **options,
    ) -> None:  # fmt: skip
        check_dims("q", q, _QUERY_DIMS)
        check_dims("k", k, _KEY_DIMS)
        layer = _layer(q, k.shape[1], scale, attn_type, options)
        batch = Batch(
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
            num_actual_tokens=num_actual_tokens,
            causal=False,
        )
        check_tensor("out", out)
        implementation.varlen_attention(q, k, v, layer, batch, out=out, lse=lse, batch_invariant=batch_invariant)

    def write_kv_cache(k, v, kv_cache, layout, slot_mapping, **scales) -> None:
        check_dims("k", k, _KEY_DIMS)
        layer = _cached_layer(k.shape[1], k, kv_cache, layout, scales)
        implementation.write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    def rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, is_neox, kv_cache, layout, slot_mapping, **scales
    ) -> None:  # fmt: skip
        check_dims("q", q, _QUERY_DIMS)
        check_dims("k", k, _KEY_DIMS)
        layer = _cached_layer(q.shape[1], k, kv_cache, layout, scales)
        implementation.rope_and_write_kv_cache(
            q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox
        )

    def merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse) -> None:
        check_tensor("out", out)
        implementation.merge_attn_states(out_a, lse_a, out_b, lse_b, out=out, lse=lse)

    kernels = (paged_attention, varlen_attention, write_kv_cache, rope_and_write_kv_cache, merge_attn_states)
    for kernel in kernels:
        torch.library.impl(f"attn_parity::{kernel.__name__}", dispatch_key, lib=_library)(kernel)


def _layer(q: torch.Tensor, num_kv_heads: int, scale: float, attn_type: str, options: dict[str, Any], **cache: Any) -> Layer:
    """The layer of an attention op; an op hands a tuple of ints over as a list."""
    settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return Layer(
        num_heads=q.shape[1],
        num_kv_heads=num_kv_heads,
        head_size=q.shape[2],
        scale=scale,
        attn_type=_named(AttentionType, "attn_type", attn_type),
        **cache,
        **settings,
    )


def _cached_layer(
    num_heads: int, k: torch.Tensor, kv_cache: torch.Tensor, layout: str, scales: dict[str, torch.Tensor | None]
) -> Layer:
    """As much of a layer as a cache write asks for."""
    return Layer(
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        head_size=k.shape[2],
        scale=1.0,
        layout=_named(Layout, "layout", layout),
        kv_cache_dtype=_kv_cache_dtype(kv_cache),
        **scales,  # pyright: ignore[reportArgumentType]
    )


def _kv_cache_dtype(kv_cache: torch.Tensor) -> torch.dtype | None:
    return None if kv_cache.dtype in FLOAT_DTYPES else kv_cache.dtype


def _named(kind: type[_Name], argument: str, value: str) -> _Name:
    if value not in set(kind):
        raise ContractError(argument, repr(value), f"one of {', '.join(kind)}")
    return kind(value)
