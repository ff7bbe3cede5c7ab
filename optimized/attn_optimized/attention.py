"""Attention over a paged KV cache and over dense tokens: checks, output tensors and launches."""

from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_contract.validation import check_paged_attention, check_varlen_attention

from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.launch import AttentionPlan, attention_plan, distance, in_units, row_grid, row_tiles
from attn_optimized.quantization import stored_format
from attn_optimized.strides import kv_cache_strides, scale_strides, token_scales


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Attention of a ragged batch of queries over the KV cache: DECODER (prefill, extend, decode) and ENCODER_DECODER.

    Online softmax over tiles of keys as in FlashAttention-2 (Dao, arXiv 2307.08691), pages looked up key by key as in
    PagedAttention (Kwon et al., arXiv 2309.06180), the keys of few queries split over the device as in Flash-Decoding (Dao et
    al., 2023). Dots and softmax are float32; weights are rounded to q's dtype before they meet the values.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense.
        kv_cache: as `layer.layout` says, of q's dtype or `layer.kv_cache_dtype`. It holds this step's keys and values already:
            see write_kv_cache.
        layer, batch: what is fixed for the layer, and what changes every step. Sinks of another dtype than float32 cost a
            conversion in every call.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything. Of q's dtype, or float8 with `layer.output_scale`.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        batch_invariant: give a request bit by bit the same output whatever else is in the batch, and however its prefill is cut
            into steps of whole tiles (`attention_tiles(...).queries`). Keys are then never split, and tiles never small: few
            long requests do not fill a GPU.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out. Queries that see no key give 0, and an LSE of -inf or their sink.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    plan = plan_of(q, layer, batch, batch_invariant=batch_invariant)
    out = q.new_empty(q.shape) if out is None else out
    if plan.num_programs:
        attend(plan, q, paged_keys(kv_cache, layer, plan), layer, batch, out, lse)
    return out


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Bidirectional attention of each request over its own tokens, no cache: ENCODER and ENCODER_ONLY.

    The same kernel as `paged_attention`'s.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense, as that of k and v.
        k, v: [T_kv, HK, D] of q's dtype; request r's keys are the rows `query_start_loc[r]` to `query_start_loc[r + 1] - 1`.
        layer, batch: what is fixed for the layer, and what changes every step; `seq_lens` are the query lengths.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything. Of q's dtype, or float8 with `layer.output_scale`.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        batch_invariant: give a request bit by bit the same output whatever else is in the batch.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_varlen_attention(q, k, v, layer, batch, out, lse, values=validate)
    plan = plan_of(q, layer, batch, batch_invariant=batch_invariant)
    out = q.new_empty(q.shape) if out is None else out
    if plan.num_programs:
        attend(plan, q, _dense_keys(k, v), layer, batch, out, lse)
    return out


def plan_of(q: torch.Tensor, layer: Layer, batch: Batch, *, batch_invariant: bool = False) -> AttentionPlan:
    """How a call is launched: its tiles, programs and splits. Reads shapes and host values only.

    Raises:
        UnsupportedError: as `paged_attention` does.
    """
    return attention_plan(
        architecture_of(q.device, q.dtype),
        compute_units=compute_units_of(q.device),
        itemsize=q.element_size(),
        head_size=layer.head_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        num_tokens=batch.num_actual_tokens,
        num_requests=batch.num_requests,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        batch_invariant=batch_invariant,
    )


class Keys(NamedTuple):
    """K and V as the attention kernel takes them."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    block_size: int
    strides: dict[str, int]
    constants: dict[str, Any]


class Parts(NamedTuple):
    """The softmax's state for parts of the keys: scratch memory between two kernels. Rows that see no key of a part stay
    unwritten in `acc`."""

    acc: torch.Tensor
    """[parts, rows, H, D] float32: sums of weighted values"""
    row_max: torch.Tensor
    """[parts, H, rows] float32: largest logits"""
    row_sum: torch.Tensor
    """[parts, H, rows] float32: sums of weights, relative to row_max"""

    @classmethod
    def empty(cls, num_parts: int, q: torch.Tensor, batch: Batch) -> "Parts":
        num_rows, (_, num_heads, head_size) = batch.num_actual_tokens, q.shape
        state = (num_parts, num_heads, num_rows)
        return cls(
            q.new_empty((num_parts, num_rows, num_heads, head_size), dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
        )


def paged_keys(kv_cache: torch.Tensor, layer: Layer, plan: AttentionPlan) -> Keys:
    """K and V of a cache."""
    stored, kv_format = stored_format(kv_cache, plan.architecture)
    cache = kv_cache_strides(kv_cache, layer)
    scales = token_scales(kv_cache, layer)
    k_scale, v_scale = scales or (layer.k_scale, layer.v_scale)
    strides = {
        "stride_kv": cache.kv,
        "stride_block": cache.block,
        "stride_k_slot": cache.slot,
        "stride_k_head": cache.head,
        "stride_v_slot": cache.slot,
        "stride_v_head": cache.head,
    }
    constants = {
        "PAGED": True,
        "INTERIOR": cache.interior,
        "X": 16 // kv_cache.element_size(),
        "KV_FORMAT": kv_format,
        "TOKEN_SCALES": scales is not None,
    }
    return Keys(stored, stored, k_scale, v_scale, cache.block_size, strides, constants)


def _dense_keys(k: torch.Tensor, v: torch.Tensor) -> Keys:
    strides = {
        "stride_kv": 0,
        "stride_block": 0,
        "stride_k_slot": k.stride(0),
        "stride_k_head": k.stride(1),
        "stride_v_slot": v.stride(0),
        "stride_v_head": v.stride(1),
    }
    constants = {"PAGED": False, "INTERIOR": "rows", "X": 1, "KV_FORMAT": "float", "TOKEN_SCALES": False}
    return Keys(k, v, None, None, 1, strides, constants)


def attend(
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    """Run a plan: one launch, or one over split keys and one that reduces the parts."""
    if plan.splits == 1:
        _launch(plan, q, keys, layer, batch, out=out, lse=lse)
    else:
        parts = Parts.empty(plan.splits, q, batch)
        attend_part(plan, q, keys, layer, batch, parts, 0)
        reduce_parts(plan, parts, layer, batch, out, lse)


def attend_part(
    plan: AttentionPlan, q: torch.Tensor, keys: Keys, layer: Layer, batch: Batch, parts: Parts, first_part: int
) -> None:
    """Attend to keys in `plan.splits` parts, the first of them `first_part`."""
    _launch(plan, q, keys, layer, batch, out=parts.acc, lse=parts.row_max, row_sum=parts.row_sum, first_part=first_part)


def reduce_parts(
    plan: AttentionPlan, parts: Parts, layer: Layer, batch: Batch, out: torch.Tensor, lse: torch.Tensor | None
) -> None:
    """Reduce all parts to the output and its LSE."""
    num_parts, num_rows, num_heads, head_size = parts.acc.shape
    stored, out_format = stored_format(_by_head(out, layer), plan.architecture)
    tiles = row_tiles(plan.architecture, head_size=head_size)
    constants = {**tiles.options, "OUT_FORMAT": out_format}
    with torch.cuda.device_of(out):
        reduce_parts_kernel[row_grid(tiles, num_rows * num_heads)](
            stored,
            _or_any(lse, batch, torch.float32),
            parts.acc,
            parts.row_max,
            parts.row_sum,
            _or_any(layer.output_scale, batch, torch.float32),
            batch.query_start_loc,
            int(lse is not None),
            int(layer.output_scale is not None),
            batch.num_requests,
            num_heads,
            num_rows,
            num_parts,
            stride_lse_head=0 if lse is None else lse.stride(0),
            **in_units(out.element_size(), unit="OUT_UNIT", stride_out_row=stored.stride(0), stride_out_head=stored.stride(1)),
            **constants,
        )


def _launch(
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    row_sum: torch.Tensor | None = None,
    first_part: int = 0,
) -> None:
    """Launch the attention kernel: for the output and its LSE, or with a `row_sum` for the parts that all three hold."""
    is_partial = row_sum is not None
    stored, out_format = stored_format(out if is_partial else _by_head(out, layer), plan.architecture)
    causal = batch.causal if isinstance(batch.causal, torch.Tensor) else None
    sinks = None if layer.sinks is None else layer.sinks.float()
    k_scale, v_scale = scale_strides(keys.k_scale), scale_strides(keys.v_scale)
    ranges, qq_bias = batch.bidirectional_ranges, batch.qq_bias
    left, right = layer.window
    # without an edge the window holds the first keys anyway
    sink_tokens = layer.sink_tokens if max(left, right) >= 0 else 0
    constants = {
        **plan.tiles.options,
        **keys.constants,
        "OUT_FORMAT": out_format,
        "HOLES": bool(sink_tokens or layer.chunked_local or ranges is not None or qq_bias is not None),
        "LOGITS": bool(layer.logits_soft_cap or layer.alibi_slopes is not None or qq_bias is not None),
        "PARTIAL": is_partial,
    }
    with torch.cuda.device_of(q):
        attention_kernel[(*plan.grid, plan.splits)](
            stored,
            _or_any(lse, batch, torch.float32),
            _or_any(row_sum, batch, torch.float32),
            q,
            keys.k,
            keys.v,
            _or_any(keys.k_scale, batch, torch.float32),
            _or_any(keys.v_scale, batch, torch.float32),
            _or_any(layer.output_scale, batch, torch.float32),
            _or_any(sinks, batch, torch.float32),
            _or_any(layer.alibi_slopes, batch, torch.float32),
            _or_any(qq_bias, batch, torch.float32),
            _or_any(ranges, batch, torch.int32),
            batch.query_start_loc,
            batch.seq_lens,
            _or_any(batch.block_table, batch, torch.int32),
            _or_any(causal, batch, torch.bool),
            has_lse=int(lse is not None),
            has_sinks=int(sinks is not None),
            has_alibi=int(layer.alibi_slopes is not None),
            has_causal=int(causal is not None),
            has_scales=int(keys.k_scale is not None and not keys.constants["TOKEN_SCALES"]),
            has_output_scale=int(layer.output_scale is not None),
            scale=layer.scale,
            cap=layer.logits_soft_cap or 0.0,
            left=distance(left),
            right=distance(right),
            ahead=0 if batch.causal is True else distance(-1),
            range_left=distance(left if layer.ranges_clamped else -1),
            sink_tokens=sink_tokens,
            chunk=layer.chunked_local or 0,
            num_ranges=0 if ranges is None else ranges.shape[1],
            bias_len=0 if qq_bias is None else len(qq_bias),
            num_requests=batch.num_requests,
            num_tokens=batch.num_actual_tokens,
            queries_per_tile=plan.tiles.queries,
            group=layer.num_heads // layer.num_kv_heads,
            block_size=keys.block_size,
            num_splits=plan.splits,
            first_part=first_part,
            stride_lse_part=lse.stride(0) if lse is not None and is_partial else 0,
            stride_lse_head=0 if lse is None else lse.stride(-2),
            stride_table=0 if batch.block_table is None else batch.block_table.stride(0),
            stride_bias=0 if qq_bias is None else qq_bias.stride(0),
            stride_k_scale_block=k_scale.block,
            stride_k_scale_slot=k_scale.slot,
            stride_k_scale_head=k_scale.head,
            stride_v_scale_block=v_scale.block,
            stride_v_scale_slot=v_scale.slot,
            stride_v_scale_head=v_scale.head,
            **in_units(
                q.element_size(),
                unit="Q_UNIT",
                stride_out_part=stored.stride(0) if is_partial else 0,
                stride_out_row=stored.stride(-3),
                stride_out_head=stored.stride(-2),
                stride_q_row=q.stride(0),
                stride_q_head=q.stride(1),
            ),
            **in_units(keys.k.element_size(), unit="KV_UNIT", **keys.strides),
            **constants,
        )


def _by_head(out: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[T, H, D] of either shape of an output."""
    return out.view(len(out), layer.num_heads, layer.head_size)


def _or_any(tensor: torch.Tensor | None, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """What a kernel gets for an optional tensor, beside the flag that says whether it is there: some memory, if it is not.

    None instead would compile every kernel anew for each combination.
    """
    return batch.query_start_loc.view(dtype) if tensor is None else tensor
