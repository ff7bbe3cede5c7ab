"""AITER's Triton unified_attention: causal attention over a paged cache, for steps of any mix of requests."""

import math

import torch
from attn_contract import YES, AttentionType, Batch, Layer, No
from attn_contract.arguments import named
from attn_contract.validation import check_paged_attention

from attn_optimized.aiter_adapter.features import (
    BLOCKS_BESIDE_TILES,
    FOREIGN_CACHE,
    TILES_OF_GFX1250,
    UNIFIED_HEAD_SIZES,
    is_beside_tiles,
    is_foreign_cache,
    is_no_tile_of,
    native_float8,
    unified_block_sizes,
)
from attn_optimized.aiter_adapter.installation import Aiter
from attn_optimized.aiter_adapter.key_values import key_value_rows
from attn_optimized.aiter_adapter.refusals import NO_SUCH_MASK, cache, dtype, refuse, rules, size
from attn_optimized.device import architecture_of

_NAME = "unified_attention"
_ONLY_CAUSAL = "its kernel asserts causal (vLLM #40176)"
_RULES = {
    "window": YES,
    "logits_soft_cap": YES,
    "alibi_slopes": YES,
    "sinks": YES,
    "qq_bias": YES,
    "sink_tokens": No(NO_SUCH_MASK),
    "chunked_local": No(NO_SUCH_MASK),
    "bidirectional_ranges": No(_ONLY_CAUSAL),
    "ranges_clamped": No(_ONLY_CAUSAL),
}
# the keys of a prefill's tile, for any block size
_TILE_KEYS = 64


def unified_attention(
    aiter: Aiter,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """Causal attention of a ragged batch over the KV cache by AITER's kernel; arguments as those of `paged_attention`.

    What is converted: a window (left, right) becomes `1 + left`, 0 if unlimited, and its right edge goes, since a causal query
    sees nothing to its right; no soft cap is 0; K and V are views by strides; qq_bias is made dense, since the kernel takes its
    row stride for its width; a block table that ends with its memory is copied into a wider one, since a tile's last keys are
    looked up before they are masked. ALiBi is anchored at `j - context_len` there, which moves a row's logits together: the
    output is the same without sinks.

    Args:
        aiter: the AITER to call; see find_aiter.
        q: [T, H, D] float16 or bfloat16.
        kv_cache: rows in any layout but X_PACKED, SHUFFLED and CONTENT_PACKED_SCALED; of q's dtype, or float8 with one k_scale
            and one v_scale, of a type that the AITER takes on the device.
        layer, batch: DECODER with `causal=True`.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns.
        lse: must be None.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: AITER or one of the arguments is missing, or the kernel does not do it. Nothing was written.
    """
    view = check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    causal = batch.causal is True or batch.num_requests == 0
    architecture = architecture_of(q.device, q.dtype)
    native = native_float8(aiter, architecture)
    block = f"block size {view.block_size}"
    refuse(
        _NAME,
        (layer.attn_type is not AttentionType.DECODER, f"{layer.attn_type} attention", _ONLY_CAUSAL),
        (not causal, "non-causal attention", _ONLY_CAUSAL),
        *rules(_RULES, layer, batch),
        (lse is not None, "the LSE", "it returns none"),
        (
            layer.alibi_slopes is not None and layer.sinks is not None,
            "ALiBi with sinks",
            "it anchors ALiBi where the context ends, which moves a row's logits and not its sink",
        ),
        dtype(q.dtype),
        cache(layer, (None, "tensor"), "it reads float8 with one k_scale and one v_scale"),
        (
            is_foreign_cache(aiter, architecture, layer.kv_cache_dtype),
            f"a cache of {named(layer.kv_cache_dtype)} on {architecture}",
            f"{FOREIGN_CACHE}, here {named(native)}",
        ),
        size("head size", layer.head_size, UNIFIED_HEAD_SIZES),
        size("block size", view.block_size, unified_block_sizes(aiter)),
        (is_beside_tiles(aiter, view.block_size), block, BLOCKS_BESIDE_TILES),
        (is_no_tile_of(architecture, view.block_size), f"{block} on gfx1250", TILES_OF_GFX1250),
        (
            layer.output_scale is not None and out.dtype != native,
            f"an output of {out.dtype}",
            f"its kernel clamps to the range of {native}, the device's own",
        ),
    )
    k, v = key_value_rows(kv_cache, layer, _NAME)
    assert batch.block_table is not None
    if batch.num_requests == 0 or batch.num_actual_tokens == 0:
        return out
    options = {
        "alibi_slopes": layer.alibi_slopes,
        "sinks": layer.sinks,
        "output_scale": layer.output_scale,
        "qq_bias": None if batch.qq_bias is None else _dense(batch.qq_bias),
    }
    aiter.call(
        _NAME,
        q=q[: batch.num_actual_tokens],
        k=k,
        v=v,
        out=out.view(q.shape)[: batch.num_actual_tokens],
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_q=batch.max_query_len,
        seqused_k=batch.seq_lens,
        max_seqlen_k=batch.max_seq_len,
        softmax_scale=layer.scale,
        causal=True,
        window_size=(layer.window[0], -1 if layer.window[0] < 0 else 0),
        block_table=_readable(batch.block_table, view.block_size),
        softcap=layer.logits_soft_cap or 0.0,
        q_descale=None,
        k_descale=layer.k_scale,
        v_descale=layer.v_scale,
        **{name: value for name, value in options.items() if value is not None},
    )
    return out


def _dense(qq_bias: torch.Tensor) -> torch.Tensor:
    """The bias with its width as the stride of its rows, which `contiguous` does not give to a single row."""
    if qq_bias.stride() == (qq_bias.shape[1], 1):
        return qq_bias
    return qq_bias.clone(memory_format=torch.contiguous_format)


def _readable(block_table: torch.Tensor, block_size: int) -> torch.Tensor:
    """The table with memory after each row for the rest of a tile's blocks; these entries are never followed."""
    more = -(-(_TILE_KEYS - math.gcd(_TILE_KEYS, block_size)) // block_size)
    elements = block_table.untyped_storage().nbytes() // block_table.element_size()
    last = block_table.storage_offset() + (len(block_table) - 1) * block_table.stride(0) + block_table.shape[1]
    if block_table.shape[1] and last + more <= elements:
        return block_table
    return torch.nn.functional.pad(block_table, (0, more + 1))
