"""The weight of a rank's output in the output of all ranks."""

import torch
from attn_contract import FLOAT_DTYPES, ContractError
from attn_contract.arguments import check_dims, check_int, check_tensor


def weighted_part(out: torch.Tensor, lses: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's share of the merged output: the merged output is the sum of all shares.

    Args:
        out: [T, H, D], the rank's output.
        lses: [N, H, T] float32, natural logs of all ranks. -inf, +inf and NaN stand for a rank without a key.
        rank: this one.

    Returns:
        [T, H, D] float32, and the LSE of the merged output, [H, T]. Where a rank has no key its share is 0, whatever out holds.

    Raises:
        ContractError: an argument is of another type, dtype or shape, or there is no such rank.
    """
    check_tensor("out", out)
    check_dims("out", out, ("T", "H", "D"))
    if out.dtype not in FLOAT_DTYPES:
        raise ContractError("out", out.dtype, "float32, float16 or bfloat16")
    check_tensor("lses", lses)
    if lses.dtype != torch.float32:
        raise ContractError("lses", lses.dtype, "float32")
    check_dims("lses", lses, ("ranks", "H", "T"))
    if lses.shape[1:] != (out.shape[1], out.shape[0]):
        raise ContractError("lses", tuple(lses.shape), f"(ranks, {out.shape[1]}, {out.shape[0]}), as out has heads and rows")
    if lses.device != out.device:
        raise ContractError("lses", lses.device, f"the device of out ({out.device})")
    check_int("rank", rank, minimum=0)
    if rank >= len(lses):
        raise ContractError("rank", rank, f"one of {len(lses)} ranks, from 0")
    lses = torch.where(lses.isfinite(), lses, -torch.inf)
    merged_lse = lses.logsumexp(0)
    has_keys = lses[rank] > -torch.inf
    # not exp(lse - merged_lse): the rounding of a large LSE would scale the whole output
    weight = torch.where(has_keys, lses.softmax(0)[rank], 0.0)
    share = weight.T[..., None] * out.float()
    return torch.where(has_keys.T[..., None], share, 0.0), merged_lse
