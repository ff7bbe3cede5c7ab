"""aiter.ops.attention: paged decode of one query token per request."""

from typing import Any

import torch

from aiter_2026_08.softmax import attend, capped, paged_rows, per_query_head


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
