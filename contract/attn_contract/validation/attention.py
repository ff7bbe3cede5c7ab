"""Paged and dense attention."""

import torch

from attn_contract.arguments import check_dense_last, check_type
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layer import FLOAT8_DTYPES, Layer
from attn_contract.rules import active_rules, check_together, held_rules
from attn_contract.validation.shapes import (
    check_cache,
    check_float,
    check_heads,
    check_key_value,
    check_lse,
    check_rotated_dtype,
    given,
)
from attn_contract.validation.tensors import check_tensors
from attn_contract.validation.values import (
    check_block_table,
    check_keys_are_own,
    check_lengths,
    check_logit_values,
    check_scale_values,
    check_selected,
    check_slots,
)


def check_attention_tensors(
    inputs: dict[str, torch.Tensor], layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None
) -> None:
    """Check the devices, gradients and memory of a call's tensors. Calls of one signature may differ in all of these.

    Args:
        inputs: q with the cache, or q, k and v, by name.
    """
    check_type("layer", layer, Layer, "a Layer")
    check_type("batch", batch, Batch, "a Batch")
    check_tensors({**inputs, **layer.tensors}, given(out=out, lse=lse), step=batch)


def check_paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    *,
    values: bool,
) -> KVCacheView:
    """Check a call of attention that reads a KV cache (DECODER, ENCODER_DECODER).

    Args:
        q: [T, H, D] float32, float16 or bfloat16, or the cache's float8 with a `layer.q_scale`; finite in the rows of requests.
        kv_cache: shaped as the layer's layout says. K and V of a key that some query of the request sees are finite; all else
            that the cache holds may be NaN or infinite.
        out: [T, H, v_head_size] or [T, H * v_head_size] of q's dtype, or of a float8 type with an output_scale; None: the
            caller allocates it in `dtype_of_output`. With a float8 q it is of any of these types.
        lse: [H, T] float32; None: the caller does not want it, or allocates it.
        values: True if to check lengths, blocks, slots, biases and scales, too: the `validate` of the implementation.
    """
    check_type("validate", values, bool, "a bool")
    check_attention_tensors({"q": q, "kv_cache": kv_cache}, layer, batch, out, lse)
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that reads the KV cache; use varlen_attention")
    check_rules_of_step(layer, batch)
    _check_selection(layer, batch, kv_cache)
    _check_query(q, layer, batch, out, lse)
    check_rotated_dtype("q", q.dtype, layer)
    view = check_cache(kv_cache, layer, q.dtype)
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: this layer reads the KV cache")
    if layer.attn_type is AttentionType.ENCODER_DECODER and batch.causal is not False:
        raise ContractError(
            "causal", _describe(batch.causal), "False for ENCODER_DECODER: each query sees all the encoder's tokens"
        )
    if values:
        check_lengths(batch)
        check_block_table(batch.block_table, layer.num_keys(batch.seq_lens), view)
        if batch.slot_mapping is not None:
            check_slots(batch.slot_mapping, view)
        check_selected(layer, batch)
        check_logit_values(layer, batch)
        check_scale_values(layer.tensors)
    return view


def check_varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    *,
    values: bool,
) -> None:
    """Check a call of attention over dense keys and values (ENCODER, ENCODER_ONLY).

    Dense attention is causal by its window: with `window=(left, 0)` a query sees no later key. So the expanded prefill of MLA
    is ENCODER_ONLY with window (-1, 0), although its model is a decoder.

    Args:
        q: [T, H, D] float32, float16 or bfloat16, finite in the rows of requests.
        k, v: [T_kv, HK, D] and [T_kv, HK, v_head_size] of q's dtype, finite in the rows of requests.
        out, lse: as in check_paged_attention.
        values: True if to check lengths, biases and scales, too: the `validate` of the implementation.
    """
    check_type("validate", values, bool, "a bool")
    check_attention_tensors({"q": q, "k": k, "v": v}, layer, batch, out, lse)
    if layer.layout is not None:
        raise ContractError("layer.attn_type", layer.attn_type, "ENCODER or ENCODER_ONLY; use paged_attention")
    check_rules_of_step(layer, batch)
    _check_query(q, layer, batch, out, lse)
    _check_keys_of_step(k, v, q, layer, batch)
    for name in ("block_table", "slot_mapping", "selected"):
        if getattr(batch, name) is not None:
            raise ContractError(name, "a tensor", f"None: {layer.attn_type} has no KV cache")
    if batch.causal is not False:
        raise ContractError("causal", _describe(batch.causal), f"False for {layer.attn_type.name}: it is bidirectional")
    if values:
        check_keys_are_own(batch, check_lengths(batch))
        check_logit_values(layer, batch)
        check_scale_values(layer.tensors)


def check_own_tokens(
    k: torch.Tensor, v: torch.Tensor, q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None
) -> None:
    """Check the keys [T_kv, HK, D] and values [T_kv, HK, v_head_size] of a step's own tokens.

    A prefill may read them instead of the cache.

    This comes on top of check_paged_attention, which checks everything else of the call.
    """
    check_tensors({"q": q, "k": k, "v": v}, given(out=out))
    _check_keys_of_step(k, v, q, layer, batch)


def check_rules_of_step(layer: Layer, batch: Batch) -> None:
    """Check that the layer may have the rules of a step.

    Raises:
        ContractError: its attention type has no such rule, or one of its rules excludes it.
    """
    for name, rule in held_rules(batch).items():
        rule.check_defined(getattr(batch, name), layer.attn_type)
    non_causal = ("non_causal",) if layer.attn_type is AttentionType.DECODER and batch.causal is not True else ()
    check_together({*active_rules(layer, batch), *non_causal})


def _check_selection(layer: Layer, batch: Batch, kv_cache: torch.Tensor) -> None:
    if (layer.selection_unit is None) != (batch.selected is None):
        if batch.selected is None:
            raise ContractError("selected", None, f"a tensor: the layer has a selection_unit ({layer.selection_unit})")
        raise ContractError("selected", "a tensor", "None: the layer has no selection_unit")
    if layer.selection_unit is not None and layer.layout is not None:
        _, slots = layer.layout.packing_multiples(kv_cache.element_size())
        if layer.selection_unit % slots:
            expected = f"a multiple of {slots} (16 bytes) in layout {layer.layout}"
            raise ContractError("selection_unit", layer.selection_unit, expected)
    if batch.selected is not None and len(batch.selected) not in (1, layer.num_kv_heads):
        got, heads = f"shape {tuple(batch.selected.shape)}", layer.num_kv_heads
        raise ContractError("selected", got, f"1 or num_kv_heads ({heads}) in its first dimension")


def _check_query(q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
    check_heads("q", q, "T", layer.num_heads, layer.head_size)
    if layer.q_scale is None:
        check_float("q", q)
    elif q.dtype != layer.kv_cache_dtype:
        raise ContractError("q", q.dtype, f"{layer.kv_cache_dtype}, as the cache: there is a q_scale")
    check_dense_last("q", q)
    if batch.num_actual_tokens > len(q):
        raise ContractError("num_actual_tokens", batch.num_actual_tokens, f"at most the {len(q)} rows of q")
    _check_out(out, q, layer)
    if lse is not None:
        check_lse("lse", lse, q)


def _check_out(out: torch.Tensor | None, q: torch.Tensor, layer: Layer) -> None:
    float8 = "float8_e4m3fn or float8_e4m3fnuz: there is an output_scale"
    if out is None:
        if layer.output_scale is not None:
            raise ContractError("out", None, f"a tensor of {float8}")
        return
    shapes = ((len(q), layer.num_heads, layer.v_head_size), (len(q), layer.num_heads * layer.v_head_size))
    if tuple(out.shape) not in shapes:
        raise ContractError("out", f"shape {tuple(out.shape)}", f"shape {shapes[0]} or {shapes[1]}")
    if layer.output_scale is None and layer.q_scale is not None:
        check_float("out", out)
    elif layer.output_scale is None and out.dtype != q.dtype:
        raise ContractError("out", out.dtype, f"{q.dtype}, as q has")
    if layer.output_scale is not None and out.dtype not in FLOAT8_DTYPES:
        raise ContractError("out", out.dtype, float8)
    check_dense_last("out", out)


def dtype_of_output(q: torch.Tensor, layer: Layer) -> torch.dtype:
    """The dtype of an output that the caller does not give: q's.

    Raises:
        ContractError: q is float8, which says none.
    """
    if layer.q_scale is not None:
        raise ContractError("out", None, "a tensor: a float8 q does not say the output's dtype")
    return q.dtype


def _check_keys_of_step(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor, layer: Layer, batch: Batch) -> None:
    """Check that k [T_kv, HK, D] and v [T_kv, HK, v_head_size] have a row for every token of the step."""
    check_key_value(k, v, layer, q.dtype)
    check_heads("k", k, "T_kv", layer.num_kv_heads, layer.head_size)
    if len(k) < batch.num_actual_tokens:
        raise ContractError("k", f"{len(k)} rows", f"at least num_actual_tokens ({batch.num_actual_tokens})")


def _describe(causal: bool | torch.Tensor) -> str:
    return f"a tensor of {len(causal)} flags" if isinstance(causal, torch.Tensor) else repr(causal)
