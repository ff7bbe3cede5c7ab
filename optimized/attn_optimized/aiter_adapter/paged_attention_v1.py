"""AITER's paged_attention_v1: a HIP kernel for one query token per request over a paged cache."""

import torch
from attn_contract import YES, Batch, Layer, Layout, No
from attn_contract.validation import check_paged_attention

from attn_optimized.aiter_adapter.features import PAGED_ATTENTION_BLOCK_SIZES, PAGED_ATTENTION_HEAD_SIZES
from attn_optimized.aiter_adapter.installation import Aiter
from attn_optimized.aiter_adapter.key_values import key_value_rows
from attn_optimized.aiter_adapter.refusals import NO_ARGUMENT, NO_SUCH_MASK, cache, dtype, one_token, refuse, rules, size

_NAME = "paged_attention_v1"
_RULES = {
    "window": YES,
    "logits_soft_cap": YES,
    "alibi_slopes": YES,
    "sinks": No(NO_ARGUMENT),
    "sink_tokens": No(NO_SUCH_MASK),
    "chunked_local": No(NO_SUCH_MASK),
    "bidirectional_ranges": No(NO_SUCH_MASK),
    "ranges_clamped": YES,  # it says how ranges meet a window, and there are no ranges
    "qq_bias": No(NO_ARGUMENT),
}
PARTITION_SIZE = 256


def paged_attention_v1(
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
    """Decode by AITER's HIP kernel, one query token per request; arguments as those of `paged_attention`.

    What is converted: a window (left, right) becomes its number of keys, `left + 1`, or 0 if unlimited; the only query stands
    at the last key, so a right edge and a causal flag say nothing; no soft cap is 0; fixed scales are tensors [1], ones where
    the cache is not quantized. Each partition of keys divides by its sum plus 1e-6.

    Args:
        aiter: the AITER to call; see find_aiter.
        q: [T, H, D] float16 or bfloat16, heads packed.
        kv_cache: rows in any layout but the packed ones; of q's dtype, or float8 with one k_scale and one v_scale.
        layer, batch: DECODER, `max_query_len` of 1 and as many rows as requests.
        out: [T, H, D] or [T, H * D], contiguous.
        lse: must be None.
        validate: check the values in tensors too, which waits for the device. Without it a request without a query,
            beside a row of padding, looks like one query token.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: AITER or one of the arguments is missing, or the kernel does not do it. Nothing was written.
    """
    view = check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    window, cap, alibi = layer.window[0] >= 0, layer.logits_soft_cap is not None, layer.alibi_slopes is not None
    refuse(
        _NAME,
        *one_token(layer, batch, values=validate),
        *rules(_RULES, layer, batch),
        (lse is not None, "the LSE", "it returns none"),
        (cap and window, "a soft cap with a window", "it caps what the window has masked, which makes it visible"),
        (cap and alibi, "a soft cap with ALiBi", "it caps the biased logit instead of the score"),
        (layer.output_scale is not None, "a float8 output", "its fp8_out_scale has not been shown to mean the same"),
        dtype(q.dtype),
        cache(layer, (None, "tensor"), "it reads float8 with one k_scale and one v_scale"),
        (not has_packed_heads(q), "heads of q that are not packed", "it steps over q by rows alone"),
        (not out.is_contiguous(), "an output that is not contiguous", "it writes dense rows"),
        size("head size", layer.head_size, PAGED_ATTENTION_HEAD_SIZES),
        size("block size", view.block_size, PAGED_ATTENTION_BLOCK_SIZES),
        instead="unified_attention or TRITON_ATTN",
    )
    k, v = key_value_rows(kv_cache, layer, _NAME)
    is_hnd = layer.layout in (Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_HND, Layout.CONTENT_PACKED)
    if is_hnd:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    assert batch.block_table is not None
    if batch.num_requests == 0:
        return out
    unscaled = torch.ones(1, device=q.device)
    aiter.call(
        _NAME,
        out=out.view(q.shape),
        workspace_buffer=workspace(q, batch.num_requests, batch.max_seq_len),
        query=q[: batch.num_requests],
        key_cache=k,
        value_cache=v,
        scale=layer.scale,
        block_tables=batch.block_table,
        cu_query_lens=batch.query_start_loc,
        context_lens=batch.seq_lens,
        max_context_len=batch.max_seq_len,
        alibi_slopes=layer.alibi_slopes,
        kv_cache_dtype="auto" if layer.kv_cache_dtype is None else "fp8",
        kv_cache_layout="HND" if is_hnd else "NHD",
        logits_soft_cap=layer.logits_soft_cap or 0.0,
        k_scale=unscaled if layer.k_scale is None else layer.k_scale.reshape(1),
        v_scale=unscaled if layer.v_scale is None else layer.v_scale.reshape(1),
        partition_size=PARTITION_SIZE,
        **({"sliding_window": layer.window[0] + 1} if window else {}),
    )
    return out


def has_packed_heads(q: torch.Tensor) -> bool:
    """True if the heads of each row of q [T, H, D] lie one after the other. A stride over one head says nothing."""
    return q.shape[1] == 1 or q.stride(1) == q.shape[2]


def workspace(q: torch.Tensor, num_requests: int, max_seq_len: int) -> torch.Tensor:
    """Scratch memory of the kernel, as bytes: an output of q's dtype, a largest logit and a sum for each request, head and
    partition of the longest sequence. A window does not make it smaller (ROCm/aiter#3297)."""
    partitions = -(-max_seq_len // PARTITION_SIZE)
    states = num_requests * q.shape[1] * partitions
    return torch.empty(states * (q.shape[2] * q.element_size() + 2 * 4), dtype=torch.uint8, device=q.device)
