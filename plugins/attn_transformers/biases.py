"""Biases that transformers adds to logits: ALiBi, and additive masks, split into hidden keys and added numbers.

The contract's ALiBi is `-slope * abs(j - p)`. Models of transformers add `slope * (j - c)` instead, where c differs by row,
rounded to the model's dtype. A number added to a whole row leaves its softmax unchanged, unless the row has a sink. So a bias
is ALiBi if it differs from the contract's only by a number for each row and by its own rounding.
"""

import torch
from attn_contract import UnsupportedError

from attn_transformers.reading import Reading

WHO = "attn_transformers"


def split_mask(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The keys that a mask of four dimensions shows, and its addends to their logits; None if it adds nothing.

    Args:
        mask: bool, True for a key that is seen; or floats to add, with -inf or the least number of the dtype for a hidden key.
    """
    if mask.dtype == torch.bool:
        return mask, None
    if not mask.is_floating_point():
        raise UnsupportedError(WHO, f"an attention mask of {mask.dtype}", "it is neither bool nor added to logits")
    # eager attention adds a bias to a mask that hides keys: half of the least number hides a key as well
    seen = mask > torch.finfo(mask.dtype).min / 2
    added = torch.where(seen, mask, 0)
    return seen, added if added.any() else None


def slopes_of(bias: torch.Tensor, seen: torch.Tensor, reading: Reading) -> torch.Tensor:
    """The ALiBi slopes [H] float32 whose bias is the given one, under a reading of the mask.

    Args:
        bias: [B, H, Q, K] floats, on the CPU.
        seen: [B, Q, K] bool, the keys that the reading shows.

    Raises:
        UnsupportedError: the bias is not ALiBi. The contract has no other one that differs by head or reaches the context.
    """
    distances, rises = [], []
    for request in reading.requests:
        queries, keys, p = (torch.tensor(of, device="cpu") for of in (request.queries, request.keys, request.positions))
        at, j = (queries[:, None], keys[None, :]), torch.arange(request.seq_len, device="cpu")
        visible, distance, added = seen[request.row][at], (j - p[:, None]).abs(), bias[request.row][:, *at].double()
        # from the last key that a row sees
        last = visible.shape[1] - 1 - visible.flip(1).int().argmax(1, keepdim=True)
        rise = added - added.gather(2, last.expand(len(added), -1, -1))
        distances.append((distance - distance.gather(1, last))[visible])
        rises.append(rise[:, visible])
    distance, rise = torch.cat(distances), torch.cat(rises, dim=1)
    farthest = distance.abs().argmax()
    slopes = -rise[:, farthest] / distance[farthest] if distance[farthest] else rise.new_zeros(len(rise))
    rounding = 4 * torch.finfo(bias.dtype).eps * bias.abs().amax()
    if ((rise + slopes[:, None] * distance).abs() > rounding).any():
        reason = "it is not ALiBi of the tokens that are seen, and the contract has no other bias for each head"
        raise UnsupportedError(WHO, "this position_bias, or mask that is added to logits,", reason)
    return slopes.float()
