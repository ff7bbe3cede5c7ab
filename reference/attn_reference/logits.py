"""Logits of the softmax, made of scaled dot products: one function per rule, and the three that compose them.

`logit_bias` says what is added, `to_logits` applies the cap and then the bias, and `with_sink` adds one logit to each row. The
formulas are in `attn_reference.attention`.
"""

import torch
from attn_contract import Batch, Layer

LOGIT_RULES = frozenset({"logits_soft_cap", "alibi_slopes", "qq_bias", "sinks"})
"""The fields of Layer and Batch that this module implements: those of a logit but q_scale, which is part of a query."""


def to_logits(scores: torch.Tensor, bias: torch.Tensor | None, layer: Layer) -> torch.Tensor:
    """Scaled dot products [H, query_len, k_len], capped, then biased: steps 2 and 3.

    Args:
        bias: as `logit_bias` gives it.
        layer: its logits_soft_cap is used.
    """
    capped = scores if layer.logits_soft_cap is None else soft_cap(scores, layer.logits_soft_cap)
    return capped if bias is None else capped + bias


def logit_bias(
    query_positions: torch.Tensor, key_positions: torch.Tensor, layer: Layer, batch: Batch, request: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """The biases that step 3 adds to the capped logits of a request.

    Args:
        query_positions: [query_len] integers.
        key_positions: [k_len] integers.
        layer, batch: their alibi_slopes and qq_bias.
        request: r, the index of the request in the batch.
        dtype: the dtype of the arithmetic and of the result.

    Returns:
        [H, query_len, k_len], or None where nothing is added.
    """
    biases = []
    if layer.alibi_slopes is not None:
        biases.append(alibi(query_positions, key_positions, layer.alibi_slopes.to(dtype)))
    if batch.qq_bias is not None:
        placed = place_qq_bias(query_positions, key_positions, batch, request).to(dtype)
        biases.append(placed.expand(layer.num_heads, -1, -1))
    return sum(biases[1:], start=biases[0]) if biases else None


def with_sink(logits: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[H, query_len, k_len + 1]: the logits of each row, then the sink of its head: -inf where the layer has none."""
    num_heads, query_len, _ = logits.shape
    sink = logits.new_full((num_heads,), -torch.inf) if layer.sinks is None else layer.sinks.to(logits.dtype)
    return torch.cat([logits, sink[:, None, None].expand(-1, query_len, 1)], dim=-1)


def soft_cap(scores: torch.Tensor, cap: float) -> torch.Tensor:
    """`cap * tanh(score / cap)`: within [-cap, cap], nearly unchanged where it is small (Gemma 2, arXiv:2408.00118).

    torch's tanh saturates. Written as a quotient of exponentials, it overflows from abs(score / cap) = 88 on (vLLM #56578).
    """
    return cap * torch.tanh(scores / cap)


def alibi(query_positions: torch.Tensor, key_positions: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """`-slope * abs(j - p)`: each head discounts keys by their distance (Press et al., arXiv:2108.12409).

    Args:
        query_positions: [query_len] integers.
        key_positions: [k_len] integers.
        slopes: [H], in the dtype of the arithmetic.

    Returns:
        [H, query_len, k_len] of slopes' dtype.
    """
    distance = (key_positions[None, :] - query_positions[:, None]).abs()
    return -slopes[:, None, None] * distance


def place_qq_bias(query_positions: torch.Tensor, key_positions: torch.Tensor, batch: Batch, request: int) -> torch.Tensor:
    """A step's bias between its own tokens, laid over all keys of a request (tree drafts; vLLM's and AITER's `qq_bias`).

    Row i and column i of `batch.qq_bias` belong to the request's token at position context_len + i.

    Args:
        query_positions: [query_len] integers.
        key_positions: [k_len] integers.
        batch: has a qq_bias.
        request: r, the index of the request in the batch.

    Returns:
        [query_len, k_len] float32: 0 for the keys of the context, which stand before those of the step.
    """
    assert batch.qq_bias is not None
    query_len = batch.query_start_loc[request + 1] - batch.query_start_loc[request]
    context_len = batch.seq_lens[request] - query_len  # negative where the request has more queries than keys
    i, j = query_positions[:, None] - context_len, key_positions[None, :] - context_len
    return torch.where(j >= 0, batch.qq_bias[i, j.clamp(min=0)], 0)
