"""aiter.ops.triton.attention.unified_attention."""

from typing import Any

import torch
from attn_fuzz.documented_aiter.softmax import attend, capped, paged_rows, per_query_head

_TILE_KEYS = 64


def unified_attention(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: torch.Tensor,
    softcap: float,
    q_descale: torch.Tensor | None,
    k_descale: torch.Tensor | None,
    v_descale: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    output_scale: torch.Tensor | None,
    qq_bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
    **not_modelled: Any,
) -> None:
    """Causal attention; `1 + window_size[0]` keys are seen, or all for 0; ALiBi counts from the context's end.

    A prefill looks up the blocks of whole tiles of 64 keys, so the memory of the table must not end before. A Gluon kernel
    looks the first block up of a request without keys, too. Each program looks its request up among the lengths, so there is
    one at least.
    """
    assert len(seqused_k), "a program finds its request before the first length"
    assert causal, "Only causal attention is supported"
    assert q_descale is None
    assert not any(not_modelled[name] for name in ("q_scales", "shuffled_kv_cache", "skip_reduce"))
    window = 1 + window_size[0]
    num_heads = q.shape[1]
    for r in range(len(seqused_k)):
        rows = slice(int(cu_seqlens_q[r]), int(cu_seqlens_q[r + 1]))
        num_queries, num_keys = rows.stop - rows.start, int(seqused_k[r])
        assert num_queries <= max_seqlen_q
        looked_up = max(1, -(-num_keys // _TILE_KEYS) * _TILE_KEYS // k.shape[1])
        assert looked_up <= _elements_behind(block_table[r]), "a tile's last keys are looked up past the block table's memory"
        keys = paged_rows(k, block_table[r], num_keys) * (1.0 if k_descale is None else k_descale)
        values = paged_rows(v, block_table[r], num_keys) * (1.0 if v_descale is None else v_descale)
        context_len = num_keys - num_queries
        key = torch.arange(num_keys)
        behind = context_len + torch.arange(num_queries)[:, None] - key[None, :]
        visible = behind >= 0
        if window > 0:
            visible &= behind < window
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), per_query_head(keys, num_heads)) * softmax_scale
        scores = capped(scores, softcap)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes[:, None, None] * (key - context_len)
        if qq_bias is not None:
            assert qq_bias.stride(0) == qq_bias.shape[1], "the row stride is taken for the width"
            own = key >= context_len
            bias = qq_bias[:num_queries, (key - context_len)[own]]
            scores[:, :, own] += bias
            visible[:, own] &= bias > -torch.inf  # what nobody sees may be NaN
        attended, _ = attend(scores, visible, per_query_head(values, num_heads), sinks)
        if output_scale is not None:
            largest = torch.finfo(out.dtype).max
            attended = (attended / output_scale).clamp(-largest, largest)
        out[rows] = attended.to(out.dtype)


def _elements_behind(row: torch.Tensor) -> int:
    """How many elements the memory of a tensor holds from its first one on."""
    return row.untyped_storage().nbytes() // row.element_size() - int(row.storage_offset())
