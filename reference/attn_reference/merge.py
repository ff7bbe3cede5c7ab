"""Attention over two disjoint sets of keys, recombined into attention over their union.

From the output o and the LSE of each part, those of the union are

    lse = log(exp(lse_a) + exp(lse_b))        o = exp(lse_a - lse) * o_a + exp(lse_b - lse) * o_b

(Milakov & Gimelshein, arXiv:1805.02867; Dao et al., FlashAttention, arXiv:2205.14135). Split-KV decode, cascade attention and
chunked context all rest on this identity. A sink logit joins exactly one of the parts.
"""

import torch
from attn_contract.validation import check_merge_attn_states

from attn_reference.rounding import rounded


def merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Merge two attention states.

    The arithmetic is float64 and its result is rounded once; merging is associative up to that rounding. A part that saw no key
    (its lse is -inf) does not count, whatever its out holds, NaN included (vLLM #39148): the other part is then returned
    exactly. Where both parts saw no key, out is 0 and lse -inf.

    Args:
        out_a, out_b: [T, H, D], of one dtype.
        lse_a, lse_b: [H, T] float32, natural logarithms.
        out: [T, H, D], written if given; may be out_a or out_b.
        lse: [H, T] float32, written if given; may be lse_a or lse_b.

    Returns:
        out, allocated if it was not given.

    Raises:
        ContractError: an argument contradicts the contract.
    """
    check_merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse)
    merged_lse = torch.logaddexp(lse_a.double(), lse_b.double())
    merged = _share(out_a, lse_a, merged_lse) + _share(out_b, lse_b, merged_lse)
    if out is None:
        out = torch.empty_like(out_a)
    out.copy_(rounded(merged, out.dtype))
    if lse is not None:
        lse.copy_(rounded(merged_lse, lse.dtype))
    return out


def _share(out: torch.Tensor, lse: torch.Tensor, merged_lse: torch.Tensor) -> torch.Tensor:
    """[T, H, D] float64: what one part adds to the merged output."""
    weight = torch.exp(lse.double() - merged_lse)
    # An empty part is selected away: its weight may be exp(-inf + inf), and 0 * NaN is NaN.
    return torch.where((lse > -torch.inf).T[..., None], weight.T[..., None] * out.double(), 0)
