"""Attention over a paged KV cache and over dense tokens: checks, output tensors and launches."""

import math

import torch
from attn_contract import Batch, Layer
from attn_contract.validation import check_paged_attention, check_varlen_attention

from attn_optimized.device import architecture_of
from attn_optimized.kernels.paged_attention import paged_attention_kernel
from attn_optimized.kernels.varlen_attention import varlen_attention_kernel
from attn_optimized.launch import AttentionTiles, attention_grid, attention_tiles, in_units, window_bounds
from attn_optimized.strides import kv_cache_strides


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """Attention of a ragged batch of queries over the KV cache: DECODER (prefill, extend, decode) and ENCODER_DECODER.

    Online softmax over tiles of keys as in FlashAttention-2 (Dao, arXiv 2307.08691), pages looked up key by key as in
    PagedAttention (Kwon et al., arXiv 2309.06180). Dots and softmax are float32; weights are rounded to the cache's dtype
    before they meet the values.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense.
        kv_cache: as `layer.layout` says, of q's dtype. It holds this step's keys and values already: see write_kv_cache.
        layer, batch: what is fixed for the layer, and what changes every step. Sinks of another dtype than float32 cost a
            conversion in every call.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out. Queries that see no key give 0, and an LSE of -inf or their sink.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    tiles, grid = _tiles(q, layer, batch)
    out = q.new_empty(q.shape) if out is None else out
    if math.prod(grid) == 0:
        return out
    out_rows = out.view(q.shape) if out.dim() == 2 else out
    assert layer.layout is not None
    assert batch.block_table is not None
    cache = kv_cache_strides(kv_cache, layer.layout)
    strides = in_units(
        q.element_size(),
        stride_out_row=out_rows.stride(0),
        stride_out_head=out_rows.stride(1),
        stride_q_row=q.stride(0),
        stride_q_head=q.stride(1),
        stride_kv=cache.kv,
        stride_block=cache.block,
        stride_slot=cache.slot,
        stride_kv_head=cache.head,
    )
    causal = batch.causal if isinstance(batch.causal, torch.Tensor) else None
    sinks = None if layer.sinks is None else layer.sinks.float()
    left, right = window_bounds(layer.window, causal=batch.causal is True)
    with torch.cuda.device_of(q):
        paged_attention_kernel[grid](
            out_rows,
            _or_any(lse, batch, torch.float32),
            q,
            kv_cache,
            _or_any(sinks, batch, torch.float32),
            batch.query_start_loc,
            batch.seq_lens,
            batch.block_table,
            _or_any(causal, batch, torch.bool),
            int(lse is not None),
            int(sinks is not None),
            int(causal is not None),
            layer.scale,
            left,
            right,
            batch.num_requests,
            tiles.queries,
            layer.num_heads // layer.num_kv_heads,
            cache.block_size,
            stride_lse_head=0 if lse is None else lse.stride(0),
            stride_table=batch.block_table.stride(0),
            **strides,
            **tiles.options,
        )
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
    validate: bool = False,
) -> torch.Tensor:
    """Bidirectional attention of each request over its own tokens, no cache: ENCODER and ENCODER_ONLY.

    The same algorithm and arithmetic as `paged_attention`.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense, as that of k and v.
        k, v: [T_kv, HK, D] of q's dtype; request r's keys are the rows `query_start_loc[r]` to `query_start_loc[r + 1] - 1`.
        layer, batch: what is fixed for the layer, and what changes every step; `seq_lens` are the query lengths.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_varlen_attention(q, k, v, layer, batch, out, lse, values=validate)
    tiles, grid = _tiles(q, layer, batch)
    out = q.new_empty(q.shape) if out is None else out
    if math.prod(grid) == 0:
        return out
    out_rows = out.view(q.shape) if out.dim() == 2 else out
    strides = in_units(
        q.element_size(),
        stride_out_row=out_rows.stride(0),
        stride_out_head=out_rows.stride(1),
        stride_q_row=q.stride(0),
        stride_q_head=q.stride(1),
        stride_k_row=k.stride(0),
        stride_k_head=k.stride(1),
        stride_v_row=v.stride(0),
        stride_v_head=v.stride(1),
    )
    sinks = None if layer.sinks is None else layer.sinks.float()
    left, right = window_bounds(layer.window, causal=False)
    with torch.cuda.device_of(q):
        varlen_attention_kernel[grid](
            out_rows,
            _or_any(lse, batch, torch.float32),
            q,
            k,
            v,
            _or_any(sinks, batch, torch.float32),
            batch.query_start_loc,
            int(lse is not None),
            int(sinks is not None),
            layer.scale,
            left,
            right,
            batch.num_requests,
            tiles.queries,
            layer.num_heads // layer.num_kv_heads,
            stride_lse_head=0 if lse is None else lse.stride(0),
            **strides,
            **tiles.options,
        )
    return out


def _tiles(q: torch.Tensor, layer: Layer, batch: Batch) -> tuple[AttentionTiles, tuple[int, int]]:
    """The tiles of a launch, and its grid."""
    tiles = attention_tiles(
        architecture_of(q.device, q.dtype),
        itemsize=q.element_size(),
        head_size=layer.head_size,
        group=layer.num_heads // layer.num_kv_heads,
        max_query_len=batch.max_query_len,
    )
    grid = attention_grid(
        tiles, num_tokens=batch.num_actual_tokens, num_requests=batch.num_requests, num_kv_heads=layer.num_kv_heads
    )
    return tiles, grid


def _or_any(tensor: torch.Tensor | None, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """What a kernel gets for an optional tensor, beside the flag that says whether it is there: some memory, if it is not.

    None instead would compile every kernel anew for each combination.
    """
    return batch.query_start_loc.view(dtype) if tensor is None else tensor
