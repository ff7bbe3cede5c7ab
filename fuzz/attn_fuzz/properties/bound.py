"""A bound for the distance of an output from the right output, if the right output is unknown.

`attn_fuzz.verdict.oracle` bounds the error of an element by the row's own weights and logits. Without an oracle both are
unknown, but their largest magnitudes are not. Let n be the number of keys, v_c the largest magnitude of values in channel c,
k_c the largest magnitude of keys in channel c, t the largest magnitude of stored values, and u, eta, B, T and S as in `oracle`.
Then

    |z| <= A = |scale| sum_c |q_c| k_c               a score; if it is capped to c, |z| <= Z = min(A, c), else Z = A
    |s| <= Z + b                                     a logit; b is the largest magnitude of a bias
    |m| <= M = max(Z + b, |sink|)                    the largest logit of a row
    sum_j w_j |v_jc| <= v_c,   |o_c| <= v_c          the weights sum to 1 at most
    sum_j w_j (m - s_j) <= log(n + 1) = L            this sum is at most the entropy of the weights and the sink (lse >= m)
    sum_j w_j |s_j| <= M + L                         by the triangle inequality
    sum_j w_j |b_j| <= M + L + Z                     if there is one bias; with two biases, twice the b of the second one more

The average error of a logit is then at most

    e = u32 ((D + 2) A + 2 (M + L) + 2 L + 4 + r)

with r from the same bounds, and an output differs from the right output by at most

    rest = u_P v_c + eta_P n t + 2 v_c e + 2 u32 (B + 2 T + S) v_c + 2 u32 v_c
    u_out (v_c + rest) + eta_out + rest

since |v_jc - o_c| <= 2 v_c and the denominator relative to m is at least 1. A sink with |sink| (1 - 2^-10) > Z + b + FAR does
not count in the M of an output: either its weight is 0 in float32 or that of each key is, whatever the sink's rounding error.
An LSE differs by at most

    e + u32 (2 (B + 2 T + S) + M + L)

An e that is not small counts as exp(2 e) - 1 in place of 2 e, and never for more than 2: |o_c| <= v_c with any weights. What is
coarser than float32 (`Rounding`) adds the terms of `oracle`, with T and S of all keys.

This bound uses no statistics. It is the HARD bound with each sum replaced by an upper bound of the sum.
"""

from collections.abc import Callable

import torch
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties.relation import ErrorBound, Outputs, request_rows
from attn_fuzz.verdict.rounding import (
    U32,
    CallRounding,
    Rounding,
    further_roundings,
    shared_scale,
    value_scale,
)
from attn_reference import gather_kv_cache
from attn_reference.attention import query_numbers

FAR = 256.0
"""exp of less than -FAR is 0 in float32, and is 0 with any error of the exponent that is below half of FAR, too."""


def error_bound(rounding: Callable[[str], Rounding]) -> ErrorBound:
    """The bound of a target.

    Args:
        rounding: returns where the target rounds on a device type.
    """

    def of_step(step: Step) -> Outputs:
        """[rows, H, D] and [rows, H] float64, for the rows that requests own."""
        rows, layer = int(step.batch.query_start_loc[-1]), step.layer
        out = torch.zeros((rows, layer.num_heads, layer.v_head_size), dtype=torch.float64, device=step.q.device)
        lse = torch.zeros((rows, layer.num_heads), dtype=torch.float64, device=step.q.device)
        for r, (start, end) in enumerate(request_rows(step.batch)):
            if start < end:
                out[start:end], lse[start:end] = _of_request(step, r, slice(start, end), rounding(step.q.device.type))
        return Outputs(out, lse)

    return of_step


def _of_request(step: Step, r: int, rows: slice, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor]:
    """[q, H, D] and [q, H]: the bound of request r's rows. Comments give the symbols of the module's docstring."""
    layer = step.layer
    rounds = CallRounding(rounding=rounding, layer=layer, dtype=step.q.dtype, out_dtype=step.out.dtype)
    group = layer.num_heads // layer.num_kv_heads
    key, value = keys_and_values(step, r, rows)
    n, d = len(key), layer.head_size

    # [H, D]; slots that no query sees may be NaN, and do not count
    largest_key, largest_value = (
        x.abs().nan_to_num(nan=0.0).amax(0).double().repeat_interleave(group, 0)
        if n
        else torch.zeros((layer.num_heads, x.shape[-1]), dtype=torch.float64, device=step.q.device)
        for x in (key, value)
    )
    # [q, H]
    query = query_numbers(step.q[rows], layer, torch.float64).abs()
    product = abs(layer.scale) * torch.einsum("qhd,hd->qh", query, largest_key)
    # 2^-39 |scale| max_c |q_c| sum_c k_c, or 0
    lost_of_query = rounds.of_lost_queries * query.amax(-1) + rounds.of_underflown_queries
    lost = abs(layer.scale) * (lost_of_query * largest_key.sum(-1) + rounds.of_flushed * query.sum(-1))
    score = product if layer.logits_soft_cap is None else product.clamp(max=layer.logits_soft_cap)
    bias, further_bias = biases_of(step, max(n, rows.stop - rows.start))
    sink = torch.zeros_like(bias) if layer.sinks is None else layer.sinks.double().abs().nan_to_num(posinf=0.0)
    largest = torch.maximum(score + bias, sink)
    spread = torch.log(torch.tensor(n + 1.0, dtype=torch.float64, device=step.q.device))

    selected = step.batch.selected
    places = n if selected is None else max(n, selected.shape[2] * (layer.selection_unit or 1))
    span = torch.full_like(largest, places)
    tiles = rounds.tiles(span, places)  # T + S
    shift = rounds.of_maximum(largest, span, places)

    dot_unit = rounds.rounding.dot_unit

    def logit_error(most: torch.Tensor) -> torch.Tensor:
        """e, where no logit that counts is larger than `most`."""
        biases = most + spread + score + 2 * further_bias if bias.any() else None
        further = further_roundings(product, biases, layer, small_tanh=rounds.rounding.small_tanh)
        rounded = dot_unit * (d + 2) * product + U32 * (2 * (most + spread) + 2 * spread + 4 + further)
        coarse = rounds.of_logits(torch.maximum(product, sink), most + spread, spread, biases) + shift
        return rounded + (rounds.of_operands + rounds.of_cut_products) * product + lost + coarse

    is_far = sink * (1 - 2.0**-10) > score + bias + FAR
    logit, logit_of_out = logit_error(largest), logit_error(torch.where(is_far, score + bias, largest))

    # u_P v_c + 2 u32 (B + 2 T + S) v_c + 2 u32 v_c, and 2 v_c e + eta_P n t
    constant = rounds.of_weights + rounds.of_cut_weights + dot_unit * 2 * rounds.terms(places) + rounds.of_scales
    underflowed = rounds.of_lost_weights * n * _largest_stored(step, largest_value)
    saturated, of_sums = rounds.of_saturated_weights(shift)[..., None], rounds.of_sums(tiles, span, shift.neg().exp())
    moved = torch.expm1(2 * logit_of_out.clamp(max=1)).clamp(max=2)[..., None]  # 2 e, or 2 where e is large
    rest = largest_value * (constant + saturated + moved) + underflowed * shift.exp()[..., None] + rounds.of_flushed
    # of sums in 16 bits, as in `oracle`, with l = exp(-shift)
    eta, factors = (max(rounds.underflow("outputs"), rounds.underflow(name)) for name in ("products", "sums"))
    lost_in_sums = eta * (3 * tiles + 2)[..., None] + factors * tiles[..., None] * n * largest_value
    rest = rest + rounds.of_outputs(tiles)[..., None] * (largest_value + rest) + lost_in_sums * shift.exp()[..., None]
    rest = rest + (of_sums + torch.zeros_like(shift))[..., None] * (largest_value + rest)
    # u_out (v_c + rest) + eta_out + rest
    out = rounds.of_output * (largest_value + rest) + rounds.of_underflow + rest
    lse = logit + U32 * (2 * rounds.terms(places) + largest + spread) + of_sums
    return out, lse + rounds.unit_roundoff("sums") * (largest + 2 * spread)


def keys_and_values(step: Step, r: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """[keys, HK, D] float32 of a request."""
    if step.kv_cache is None:
        assert step.k is not None
        assert step.v is not None
        return step.k[rows].float(), step.v[rows].float()
    assert step.batch.block_table is not None
    num_keys = step.layer.num_keys(int(step.batch.seq_lens[r]))
    return gather_kv_cache(step.kv_cache, step.layer, step.batch.block_table[r], num_keys, torch.float32)


def biases_of(step: Step, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[H] float64: the largest magnitude of all that is added to a logit, and of qq_bias's part if there is ALiBi too."""
    layer, qq_bias = step.layer, step.batch.qq_bias
    none = torch.zeros(layer.num_heads, dtype=torch.float64, device=step.q.device)
    alibi = none if layer.alibi_slopes is None else layer.alibi_slopes.double().abs() * reach
    if qq_bias is None:
        return alibi, none
    queries = int(step.batch.query_start_loc.diff().max())  # bounds and padding may be larger, and hold anything
    finite = qq_bias[:queries, :queries].double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    drafts = none + finite.abs().max() if finite.numel() else none
    return alibi + drafts, drafts if layer.alibi_slopes is not None else none


def _largest_stored(step: Step, largest_value: torch.Tensor) -> torch.Tensor:
    """t, the largest magnitude that multiplies a weight that underflows.

    It is v, or v / scale if that is larger. If each token has a scale, it is the largest v of the head.
    """
    layer = step.layer
    if layer.kv_cache_dtype is None:
        return largest_value
    if value_scale(layer) is None:
        return largest_value.amax(-1, keepdim=True)
    return largest_value / shared_scale(layer)[:, None]
