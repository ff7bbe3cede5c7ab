"""The softmax of one request: what the three functions share."""

import torch


def attend(
    scores: torch.Tensor, visible: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [Q, H, D] and natural-log LSE [H, Q] from scores [H, Q, K], visibility [Q, K] and values [K, H, D], float32."""
    logits = scores.masked_fill(~visible, -torch.inf)
    columns = logits
    if sinks is not None:
        columns = torch.cat([sinks.float()[:, None, None].expand(*logits.shape[:2], 1), logits], dim=2)
    if not columns.shape[2]:
        return torch.zeros(logits.shape[1], logits.shape[0], v.shape[2]), torch.full(logits.shape[:2], -torch.inf)
    lse = columns.logsumexp(dim=2)
    weights = (logits - lse[..., None]).exp().nan_to_num(nan=0.0)
    seen = torch.where(visible.any(0)[:, None, None], v, 0.0)
    return torch.einsum("hqk,khd->qhd", weights, seen), lse


def capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(scores / cap) if cap else scores


def per_query_head(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[K, H, D] float32 of [K, HK, D]."""
    return rows.float().repeat_interleave(num_heads // rows.shape[1], dim=1)


def paged_rows(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """[length, HK, D] of the blocks of one request; cache [NB, BS, HK, D]."""
    blocks = table[: -(-length // cache.shape[1])].long()
    return cache[blocks].float().flatten(0, 1)[:length]
