"""aiter.ops.attention: paged decode of one query token per request, by HIP and by assembly kernels."""

from typing import Any

import torch
from attn_fuzz.documented_aiter.softmax import attend, capped, paged_rows, per_query_head


def paged_attention_v1(
    *,
    out: torch.Tensor,
    workspace_buffer: torch.Tensor,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    scale: float,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    max_context_len: int,
    alibi_slopes: torch.Tensor | None,
    kv_cache_dtype: str,
    kv_cache_layout: str,
    logits_soft_cap: float,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
    partition_size: int,
    mtp: int,
    sliding_window: int,
    **not_modelled: Any,
) -> None:
    """Row r of the query is request r's, the last key its own; the last `sliding_window` keys are seen, or all for 0."""
    assert not_modelled["fp8_out_scale"] is None
    assert mtp == 1
    if kv_cache_layout == "HND":
        key_cache, value_cache = key_cache.transpose(1, 2), value_cache.transpose(1, 2)
    num_requests, num_heads, head_size = query.shape
    assert num_requests, "HIP launches no grid without programs"
    assert head_size % 64 == 0
    assert 256 % key_cache.shape[1] == 0
    assert key_cache.stride() == value_cache.stride(), "K's strides are taken for V's"
    assert (kv_cache_dtype == "auto") == (key_cache.dtype == query.dtype)
    parts = num_requests * num_heads * -(-max_context_len // partition_size)
    assert workspace_buffer.nbytes >= parts * (head_size * query.element_size() + 2 * 4)
    for r in range(num_requests):
        length = int(context_lens[r])
        assert length <= max_context_len
        k = per_query_head(paged_rows(key_cache, block_tables[r], length) * k_scale, num_heads)
        v = per_query_head(paged_rows(value_cache, block_tables[r], length) * v_scale, num_heads)
        behind = length - 1 - torch.arange(length)
        scores = torch.einsum("hd,khd->hk", query[r].float(), k)[:, None] * scale
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * behind
        visible = (behind < (sliding_window or length))[None, :]
        out[r : r + 1], _ = attend(capped(scores, logits_soft_cap), visible, v, None)


def pa_fwd_asm(
    *,
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables_stride0: int,
    max_qlen: int,
    out_: torch.Tensor,
    **not_modelled: Any,
) -> torch.Tensor:
    """Row r of Q is request r's, the last key its own; K is [NB, HK, D/x, BS, x], V [NB, HK, BS/x, D, x]; scale 1 / sqrt(D)."""
    assert not any(not_modelled[name] is not None for name in ("K_QScale", "V_QScale", "qo_indptr", "kernelName"))
    assert max_qlen == 1
    assert block_tables_stride0 == block_tables.stride(0)
    num_requests, num_heads, head_size = Q.shape
    assert num_requests, "HIP launches no grid without programs"
    assert num_heads // K.shape[1] <= 16, "its kernels have tiles of 16 rows"
    assert Q.is_contiguous()
    assert out_.is_contiguous()
    assert (head_size, K.shape[3]) == (128, 16)
    assert Q.dtype == K.dtype == V.dtype
    keys = K.permute(0, 3, 1, 2, 4).flatten(3)
    values = V.permute(0, 2, 4, 1, 3).flatten(1, 2)
    for r in range(num_requests):
        length = int(context_lens[r])
        k = per_query_head(paged_rows(keys, block_tables[r], length), num_heads)
        v = per_query_head(paged_rows(values, block_tables[r], length), num_heads)
        scores = torch.einsum("hd,khd->hk", Q[r].float(), k)[:, None] * head_size**-0.5
        out_[r : r + 1], _ = attend(scores, torch.ones(1, length, dtype=torch.bool), v, None)
    return out_
