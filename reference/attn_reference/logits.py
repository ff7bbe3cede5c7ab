"""What happens to a scaled dot product on its way to the softmax: one function per rule.

Their order is in `attn_reference.attention`: the cap first, then what is added.
"""

import torch
from attn_contract import Layer


def soft_cap(scores: torch.Tensor, cap: float) -> torch.Tensor:
    """`cap * tanh(score / cap)`: within [-cap, cap], nearly unchanged where it is small (Gemma 2, arXiv:2408.00118).

    torch's tanh saturates. Written as a quotient of exponentials it overflows from abs(score / cap) = 88 on (vLLM #56578).
    """
    return cap * torch.tanh(scores / cap)


def logit_bias(
    layer: Layer,
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    qq_bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """What is added to the capped logits, in the dtype of the arithmetic.

    Args:
        layer: of which num_heads and alibi_slopes count.
        query_positions: [q_len] integers.
        key_positions: [k_len] integers.
        qq_bias: [q_len, k_len], as `place_qq_bias` gives it, or None.

    Returns:
        [H, q_len, k_len], or None where nothing is added.
    """
    bias = None if qq_bias is None else qq_bias.to(dtype).expand(layer.num_heads, -1, -1)
    if layer.alibi_slopes is None:
        return bias
    distances = alibi(query_positions, key_positions, layer.alibi_slopes.to(dtype))
    return distances if bias is None else distances + bias


def alibi(query_positions: torch.Tensor, key_positions: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """`-slope * abs(j - p)`: each head discounts keys by their distance (Press et al., arXiv:2108.12409).

    Args:
        query_positions: [q_len] integers.
        key_positions: [k_len] integers.
        slopes: [H], in the dtype of the arithmetic.

    Returns:
        [H, q_len, k_len] of slopes' dtype.
    """
    distance = (key_positions[None, :] - query_positions[:, None]).abs()
    return -slopes[:, None, None] * distance


def place_qq_bias(
    qq_bias: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor, context_len: int
) -> torch.Tensor:
    """A step's bias between its queries, laid over all keys of a request (tree drafts; vLLM's and AITER's `qq_bias`).

    Args:
        qq_bias: [Q, Q] float32, of query i and key j of this step's own tokens, which stand at position context_len + j.
        query_positions: [q_len] integers.
        key_positions: [k_len] integers.
        context_len: seq_len - q_len of the request; negative where it has more queries than keys.

    Returns:
        [q_len, k_len] float32: 0 for the keys of the context, which stand before those of the step.
    """
    i, j = query_positions[:, None] - context_len, key_positions[None, :] - context_len
    return torch.where(j >= 0, qq_bias[i, j.clamp(min=0)], 0)
