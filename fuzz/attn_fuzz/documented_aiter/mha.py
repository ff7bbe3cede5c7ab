"""aiter.ops.mha: CK's flash attention."""

from typing import Any

import torch
from attn_fuzz.documented_aiter.softmax import attend, capped, per_query_head


def flash_attn_varlen_func(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    logits_soft_cap: float,
    causal: bool,
    window_size: tuple[int, int, int],
    alibi_slopes: torch.Tensor | None,
    return_lse: bool,
    out: torch.Tensor,
    sink_ptr: torch.Tensor | None,
    **not_modelled: Any,
) -> Any:
    """Bottom-right causal attention with inclusive windows. An LSE of a call without any key is +inf."""
    assert not any(not_modelled[name] for name in ("dropout_p", "bias", "block_table", "min_seqlen_q", "return_attn_probs"))
    assert sink_ptr is None or sink_ptr.dtype == torch.float32
    *window, sink_size = window_size
    assert sink_size == 0
    assert len(cu_seqlens_q) > 1, "AITER takes no batch without requests"
    assert 0 < max_seqlen_q >= cu_seqlens_q.diff().max(), "its grid covers so many queries of a request, and is not empty"
    assert max_seqlen_k >= cu_seqlens_k.diff().max()
    # a single query would be at the end, where the flag says nothing: so it is dropped
    causal = causal and (max_seqlen_q > 1 or alibi_slopes is not None)
    left, right = (-1 if edge >= max_seqlen_k else edge for edge in window)
    is_assembly = q.dtype == torch.bfloat16 and q.shape[2] == 128 and (left, right) == (-1, -1) and alibi_slopes is None
    if is_assembly:
        logits_soft_cap, sink_ptr = 0.0, None
    lse = torch.full((q.shape[1], len(q)), torch.inf)
    if max_seqlen_k == 0:
        out.zero_()
        return (out, lse) if return_lse else out
    for r in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[r]), int(cu_seqlens_q[r + 1]))
        keys = slice(int(cu_seqlens_k[r]), int(cu_seqlens_k[r + 1]))
        num_queries, num_keys = rows.stop - rows.start, keys.stop - keys.start
        ahead = torch.arange(num_keys)[None, :] - (torch.arange(num_queries)[:, None] + num_keys - num_queries)
        visible = torch.ones_like(ahead, dtype=torch.bool)
        if causal:
            visible &= ahead <= 0
        if left >= 0:
            visible &= -ahead <= left
        if right >= 0:
            visible &= ahead <= right
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), per_query_head(k[keys], q.shape[1])) * softmax_scale
        scores = capped(scores, logits_soft_cap)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes[:, None, None] * ahead.abs()
        out[rows], lse[:, rows] = attend(scores, visible, per_query_head(v[keys], q.shape[1]), sink_ptr)
    return (out, lse) if return_lse else out
