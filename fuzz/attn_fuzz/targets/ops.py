"""The torch ops `attn_parity::*` as targets: every argument is passed by the name that the op's schema has for it.

On a CPU the ops run the reference, on a GPU the Triton kernels. The target checks registration, schemas, and how
a call's arguments become a Layer and a Batch again.
"""

import dataclasses
from typing import Any

import torch
from attn_contract import Batch, ContractError, Indexer, Layer
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.indexer import (
    EVERY_TERM,
    REFERENCE_INDEXER,
    TRITON_INDEXER,
    IndexerFunctions,
    attention_by,
    unwritten_logits,
    unwritten_selection,
)
from attn_fuzz.targets.merge import EVERY_OPTION, merge_target, parts_target
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING, Support
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON, TRITON_LATENT
from attn_fuzz.verdict.rounding import Rounding


def _call(op: str, *holders: Layer | Batch, **given: Any) -> None:
    """Call an op with `given` and the fields of a Layer or Batch whose names its schema has.

    Raises:
        ContractError: a field has another value than its default, and the op has no argument for the field. The tensors of a
            call say its sizes and its dtypes.
    """
    function = getattr(torch.ops.attn_parity, op).default
    names = {argument.name for argument in function._schema.arguments}
    for holder in holders:
        for field in dataclasses.fields(holder):
            value = getattr(holder, field.name)
            if field.name in names:
                given.setdefault(field.name, list(value) if isinstance(value, tuple) else value)
            elif field.name not in _SAID_BY_TENSORS and value is not field.default and value != field.default:
                raise ContractError(field.name, value, f"{field.default}: the op {op} has no such argument")
    function(**given)


_SAID_BY_TENSORS = {"num_heads", "num_kv_heads", "head_size", "kv_cache_dtype", "layout", "causal"}


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    tensors = {"q": q, "out": out, "lse": lse}
    if kv_cache is None:
        _call("varlen_attention", layer, batch, **tensors, k=k, v=v)
        return
    per_request = isinstance(batch.causal, torch.Tensor)
    causal = {"causal": None if per_request else batch.causal, "causal_per_request": batch.causal if per_request else None}
    _call("paged_attention", layer, dataclasses.replace(batch, slot_mapping=None), **tensors, kv_cache=kv_cache, **causal)


def _write(k, v, kv_cache, layer, slot_mapping) -> None:
    _call("write_kv_cache", k=k, v=v, kv_cache=kv_cache, slot_mapping=slot_mapping, **_of_a_cache(layer))


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    tensors = {"q": q, "k": k, "v": v, "positions": positions, "cos_sin_cache": cos_sin_cache, "kv_cache": kv_cache}
    _call("rope_and_write_kv_cache", **tensors, slot_mapping=slot_mapping, is_neox=is_neox, **_of_a_cache(layer))


def _write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    options = {"layout": layer.layout, "k_scale": layer.k_scale}
    _call("write_latent_cache", kv_c=kv_c, k_pe=k_pe, kv_cache=kv_cache, slot_mapping=slot_mapping, **options)


def _of_a_cache(layer: Layer) -> dict[str, Any]:
    """Keyword arguments of a cache write from its layer."""
    return {name: getattr(layer, name) for name in ("layout", "k_scale", "v_scale", "k_scale_cache", "v_scale_cache")}


def _support(device: str) -> Support:
    return dataclasses.replace(EVERYTHING, max_tokens=128, max_seq_len=512) if device == "cpu" else TRITON.support(device)


def _rounding(device: str) -> Rounding:
    return (REFERENCE_FP32 if device == "cpu" else TRITON).rounding(device)


def _unavailable(device: str) -> str | None:
    return None if device == "cpu" else triton_unavailable(device)


def _merge() -> Any:
    return lambda out_a, lse_a, out_b, lse_b, **given: _call(
        "merge_attn_states", out_a=out_a, lse_a=lse_a, out_b=out_b, lse_b=lse_b, **given
    )


def _merge_parts() -> Any:
    return lambda outs, lses, **given: _call("merge_attn_parts", outs=outs, lses=lses, **given)


def _latent(target: Target) -> Target:
    return dataclasses.replace(
        target,
        description="the torch ops of latent caches: the reference on a CPU, the Triton kernels on a GPU",
        write_latent_cache=_write_latent,
        support=TRITON_LATENT.support,
        rounding=lambda device: (REFERENCE_FP32 if device == "cpu" else TRITON_LATENT).rounding(device),
    )


def _of_index_layer(op: str, indexer: Indexer, batch: Batch | None = None, **tensors: Any) -> None:
    """Call an op with the fields of an indexer, and of a step, whose names its schema has."""
    names = {argument.name for argument in getattr(torch.ops.attn_parity, op).default._schema.arguments}
    holders = [each for each in (indexer, batch) if each is not None]
    fields = [(each, field.name) for each in holders for field in dataclasses.fields(each) if field.name in names]
    _call(op, **{name: getattr(each, name) for each, name in fields}, **tensors)


def _write_index_cache(k, index_cache, indexer: Indexer, slot_mapping) -> None:
    _of_index_layer("write_index_cache", indexer, k=k, index_cache=index_cache, slot_mapping=slot_mapping)


def _index_logits(q, weights, index_cache, indexer: Indexer, batch: Batch) -> torch.Tensor:
    out = unwritten_logits(q, indexer, batch)
    _of_index_layer("index_logits", indexer, batch, q=q, weights=weights, index_cache=index_cache, out=out)
    return out


def _select(logits, indexer: Indexer, batch: Batch) -> torch.Tensor:
    out = unwritten_selection(logits, indexer)
    _of_index_layer("select", indexer, batch, logits=logits, out=out)
    return out


def _indexer(target: Target) -> Target:
    functions = IndexerFunctions(write_index_cache=_write_index_cache, index_logits=_index_logits, select=_select)
    return dataclasses.replace(
        REFERENCE_INDEXER,
        description="the torch ops of an index layer: the reference on a CPU, the Triton kernels on a GPU",
        attention=attention_by(lambda: functions, EVERY_TERM),
        support=lambda device: (REFERENCE_INDEXER if device == "cpu" else TRITON_INDEXER).support(device),
        unavailable=target.unavailable,
        forget=target.forget,
    )


TORCH_OPS = Target(
    name="torch-ops",
    description="the torch ops attn_parity::*: the reference on a CPU, the Triton kernels on a GPU",
    attention=_attention,
    write_kv_cache=_write,
    rope_and_write_kv_cache=_rope,
    support=_support,
    rounding=_rounding,
    unavailable=_unavailable,
    forget=TRITON.forget,
    modes={"latent": _latent, "indexer": _indexer},
)
TORCH_OPS_MERGE = merge_target(
    "torch-ops-merge",
    _merge,
    EVERY_OPTION,
    description="the torch op attn_parity::merge_attn_states: parts of the keys by the reference, merged",
    unavailable=_unavailable,
)
TORCH_OPS_MERGE_PARTS = parts_target(
    "torch-ops-merge-parts",
    _merge_parts,
    description="the torch op attn_parity::merge_attn_parts: parts of the keys by the reference, merged at once",
    unavailable=_unavailable,
)
