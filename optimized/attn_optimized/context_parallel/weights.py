"""The weight of a rank's output in the output of all ranks."""

import torch


def weighted_part(out: torch.Tensor, lses: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's share of the merged output: the merged output is the sum of all shares.

    Args:
        out: [T, H, D], the rank's output.
        lses: [N, H, T] float32, natural logs of all ranks. -inf, +inf and NaN stand for a rank without a key.
        rank: this one.

    Returns:
        [T, H, D] float32, and the LSE of the merged output, [H, T]. Where a rank has no key its share is 0, whatever out holds.
    """
    lses = torch.where(lses.isfinite(), lses, -torch.inf)
    merged_lse = lses.logsumexp(0)
    has_keys = lses[rank] > -torch.inf
    weight = torch.where(has_keys, torch.exp(lses[rank] - merged_lse), 0.0)
    share = weight.T[..., None] * out.float()
    return torch.where(has_keys.T[..., None], share, 0.0), merged_lse
