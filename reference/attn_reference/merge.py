"""Attention over disjoint sets of keys, recombined into attention over their union.

From the output o_r and the LSE of each part r, those of the union are

    lse = log(sum_r exp(lse_r))        o = sum_r exp(lse_r - lse) * o_r

(Milakov & Gimelshein, arXiv:1805.02867; Dao et al., FlashAttention, arXiv:2205.14135). Split-KV decode, cascade attention,
chunked context and context parallelism all rest on this identity. A sink logit joins exactly one of the parts.

**Empty parts.** A part that saw no key has an LSE of -inf. Kernels also return +inf there (FlashAttention-2), or NaN: a softmax
over no keys has no such values, so both mean the same. An empty part does not count, whatever its output holds, NaN included
(vLLM #39148). Where all parts are empty, the output is 0 and the LSE -inf.

**The largest numbers.** A finite LSE is at most 2^126 in magnitude. The number of parts times the largest magnitude of their
outputs is at most 2^100. Beyond that, the result is undefined.

The arithmetic is float64 and its result is rounded once; merging is associative up to that rounding.
"""

import math

import torch
from attn_contract.validation import LseBase, check_merge_attn_parts, check_merge_attn_states, check_scale_values

from attn_reference.quantization import quantize
from attn_reference.rounding import rounded


def merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    prefill_tokens_with_context: int | None = None,
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Merge two attention states, such as those of a cached prefix and of a step's own keys.

    Args:
        out_a, out_b: [T, H, D], of one dtype.
        lse_a, lse_b: [H, T] float32, natural logarithms.
        out: [T, H, D] of the parts' dtype, or float8 if there is an output_scale; written if given; may be out_a or out_b.
        lse: [H, T] float32, written if given; may be lse_a or lse_b.
        prefill_tokens_with_context: the rows from this one on have no prefix: part a is empty there, whatever it holds. None:
            no such rows. (The name is vLLM's.)
        output_scale: [] or [1] float32: `out` is of a float8 type and holds the merged output / scale.

    Returns:
        out, allocated if it was not given. One part that is not empty comes back exactly, unless it is quantized.

    Raises:
        ContractError: an argument contradicts the contract. Nothing is written then.
    """
    check_merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse, prefill_tokens_with_context, output_scale)
    has_prefix = torch.ones_like(lse_a, dtype=torch.bool)
    if prefill_tokens_with_context is not None:
        has_prefix[:, prefill_tokens_with_context:] = False
    lses = torch.stack([torch.where(has_prefix, lse_a.double(), -torch.inf), lse_b.double()])
    out = torch.empty_like(out_a) if out is None else out
    return _merge(torch.stack([out_a.double(), out_b.double()]), lses, out, lse, output_scale)


def merge_attn_parts(
    outs: torch.Tensor,
    lses: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    lse_base: LseBase = "e",
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Merge N attention states, such as those of the ranks that share a request's cache.

    Args:
        outs: [N, T, H, D] float32, float16 or bfloat16, N at least 1.
        lses: [N, H, T] float32, any strides.
        out: [T, H, D] of outs' dtype, or float8 if there is an output_scale; memory of its own, written if given.
        lse: [H, T] float32, a natural logarithm whatever `lse_base` is; memory of its own, written if given.
        lse_base: "2" if `lses` are logarithms of base 2, as FlashInfer returns them.
        output_scale: as for `merge_attn_states`.

    Returns:
        out, allocated if it was not given.

    Raises:
        ContractError: an argument contradicts the contract. Nothing is written then.
    """
    check_merge_attn_parts(outs, lses, out, lse, lse_base, output_scale)
    out = torch.empty_like(outs[0]) if out is None else out
    return _merge(outs.double(), lses.double() * (math.log(2) if lse_base == "2" else 1), out, lse, output_scale)


def _merge(
    outs: torch.Tensor,
    lses: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    output_scale: torch.Tensor | None,
) -> torch.Tensor:
    """Merge outs [N, T, H, D] float64 by lses [N, H, T] float64, natural logarithms."""
    if output_scale is not None:
        check_scale_values({"output_scale": output_scale})
    is_empty = ~torch.isfinite(lses)
    lses = torch.where(is_empty, -torch.inf, lses)
    merged_lse = torch.logsumexp(lses, dim=0)
    # exp(lse_r - lse) as a softmax: two LSEs of 2^126 are equal to their merged one in float64, and each would weigh 1.
    # An empty part is selected away: where all are empty, its weight is NaN, and 0 * NaN is NaN.
    weights = torch.where(is_empty, 0, torch.softmax(lses, 0)).mT[..., None]
    shares = torch.where(is_empty.mT[..., None], 0, weights * outs)
    merged = shares.sum(0)
    out.copy_(rounded(merged, out.dtype) if output_scale is None else quantize(merged, output_scale, out.dtype))
    if lse is not None:
        lse.copy_(rounded(merged_lse, lse.dtype))
    return out
