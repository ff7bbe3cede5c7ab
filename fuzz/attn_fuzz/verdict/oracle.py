"""The right outputs of one request in float64, and a bound for every element's error, derived from the request's own numbers.

The oracle computes in float64 on the stored values that the kernel reads. Per row, with s the logits, m their maximum (sink
included), w the softmax weights, l the denominator relative to m, o the output, u = eps / 2 of a dtype and eta half its
smallest normal or subnormal step, an output element may differ from o_c by

    u_out (|o_c| + the rest) + eta_out                   output rounding
    + lam u_P norm2(w v_c)                               P rounded to V's dtype before P.V
    + lam (eta_P / l) norm2(t_c)                         P underflow; t = v, but for a quantized cache
    + sum_j w_j |v_jc - o_c| e_j                         error of logit j times exact sensitivity; e_j is eps_j, see below
    + lam u32 sqrt(B + 2 T + S) sum_j w_j |v_jc|         float32 accumulation: B terms in a row, T tiles, S splits
    eps_j = u32 (lam sqrt(D) A2_j + 2 |s_j| + 2 |s_j - m| + 4 + r_j),  A2_j = |scale| sqrt(sum (q k_j)^2)

and the LSE by sum_j w_j e_j + u32 (lam sqrt(B + 2 T + S) + |lse|), because the LSE moves with each logit by that logit's
weight. Here e_j = (exp(eps_j) - 1) / sum_i w_i exp(-eps_i), which is nearly eps_j unless logits are 10^4 or more: a logit that
is off by eps_j multiplies its weight by exp(eps_j) at most, and all logits together divide the denominator by no more than that
sum. The terms of P and of accumulation take the largest weights that these errors allow.

A sink that is the maximum m and has an eps_m above 1 (from 2^23 on) would leave no bound that way. But an error that all
logits share changes no weight, and it moves the LSE by itself. So the error of such a sink counts as one of all logits, less
that of each key: eps of the sink becomes 0, each eps_j becomes eps_j + eps_m, and the LSE's bound grows by
eps_m = u32 (2 |m| + 4). Roundings of the LSE itself that are elsewhere small beside those of accumulation count, too: where m
is kept in base 2, the constant and the product that bring it back are 2 u32 |lse|, and each merge of parts may go both ways
again, 4 u32 |lse|. So without merges 5 u32 |lse| bounds an LSE of 2^126. Keys whose logits are at most half of such a sink
have weight 0 with any of these errors.

Rounding errors of generic numbers are independent, and lam = 6 leaves each element a chance of 3e-8 (Hoeffding). Structured
numbers make errors correlate: HARD is the same bound without statistics, norm2 becomes a sum of magnitudes, sqrt(D) A2 becomes
(D + 2) A with A_j = |scale| sum |q k_j|, and lam sqrt(B + 2 T + S) becomes 2 (B + 2 T + S). A breach of HARD is always a bug.

r_j counts the roundings of a logit's further steps. z = scale q.k_j is the score before these steps; r_j is 0 if there are
none. A cap does not enlarge errors, since the slope of tanh is at most 1.

    2 |z_j|     with a cap or a bias: z is scaled to the exponential's base before s is, and s may be far smaller
    2 |z_j|     with a quantized cache: the scale of K multiplies the layer's scale or the score, in one or two more roundings
    2 |z_j|     with a float8 query: its scale multiplies the layer's scale or the score, too; q itself is read exactly
    8 c         the cap by one exponential, 1 - 2 / (exp(2x) + 1) or (1 - t) / (1 + t) with t = exp(-|2x|), x = z / c: an error
                of 2 u32 in the exponential's value and |2x| u32 in its argument, times a slope that decays as exp(-|2x|); three
                more roundings of numbers up to 2; all of this times c. A kernel may have another formula for small x
                (`Rounding.small_tanh`): where (1 - t) / (1 + t) begins, at x = 1/8, its error is below 12 u32 x, so that
                8 min(c, 2 |z_j|) bounds all of it
    3 b_j       the biases: each bias is computed, scaled to the base and added; b is the sum of the biases' magnitudes, since
                biases may cancel

A quantized value v = t sigma is read exactly as t. A weight is multiplied by the scale sigma of its token and head, relative to
the largest scale of the tile, before the weight is rounded to V's dtype. So u_P becomes u_P + 3 u32, for this quotient and two
products, and a weight that underflows loses eta_P of t times the largest scale. If all tokens share a scale, it may multiply
the output instead, in two more roundings and without that loss: 2 u32 |o_c|. Then t is the larger of v and v / sigma.

A kernel may instead round the dequantized K and V to q's dtype first (`Rounding.rounds_dequantized`). This adds u_P once more
for V, and a further term lam A2_j to eps_j, with u_P instead of u32.

A kernel may multiply bfloat16 numbers as float16 ones, scaled so that the largest of a row is 2^14 or more
(`Rounding.float16_dots`). Then eta_P is 2^-39, and eps_j has one more term, 2^-39 |scale| max_d |q_d| sum_d |k_jd|: each
element of q may lose 2^-39 of the largest.

A kernel may round q and the weights to the float8 of the cache (`Rounding.float8_dots`). Then u_P and eta_P are those of this
dtype, and eps_j has two more terms, u lam A2_j and eta |scale| sum_d |k_jd|, for q, unless q was float8 before. Some kernels
round the weights so only beside a float8 q, where they dequantize nothing (`Rounding.float8_weights`); any other kernel is
taken to multiply float8 queries, keys and values as float16 numbers, which holds all of them exactly: u_P and eta_P are those
of float16.

A kernel may cut q and the weights to int8 where the cache is int8 (`Rounding.int8_dots`). An element of q loses no more than
itself, and no more than c = max(max_d |q_d|, 1e-6) / 127: eps_j has one more term |scale| sum_d min(|q_d|, c) |k_jd|. A weight
times its value's scale, w_j a_j / 127 with a_j = max_c |v_jc|, loses no more than itself, and no more than 1/127 of the largest
of its tile. Relative to what the row sums up at the end that is at most max(max_i w_i a_i, 127e-6 / l) / 127, whatever the
tile. So the output may lose sum_j min(w_j a_j, max(max_i w_i a_i, 127e-6 / l) / 127) |v_jc| / a_j, in place of u_P and eta_P.
Sums of products of int8 are exact, and 8 u32 bound the way there and back. Losses all point toward 0, and those of one tile
share a step: they are no independent errors, so the statistical bound has the same two terms.

A kernel may truncate the weights (`Rounding.truncates_weights`) and the output (`Rounding.truncates_output`). A weight then
loses between 0 and 2 u_P of itself: a share that is expected, of at most u_P, and what is at most u_P off this share. What is
expected of all weights does not cancel, and is at most u_P sum_j w_j |v_jc|. The output loses up to 2 u_out.

Where the outputs of M parts of the keys are rounded to q's dtype and then merged, one after the other
(`Rounding.merged_parts`), each of them is at most sum_j w_j |v_jc| over its share of the weights. Rounding the parts, and what
the merges but the last give, costs (M - 1) u_P sum_j w_j |v_jc|, and eta_P for each part but one.

A kernel may divide the weights by the denominator of the keys so far before it rounds them (`Rounding.normalizes_first`). Then
a weight that underflows loses eta_P, of which later tiles take a share, and not eta_P / l.

What a kernel keeps in 16 bits or float8 in place of float32 adds the terms of docs/reference/judge.md, "Coarser than float32".
Errors of the running maximum join eps_j, and divide l by their exponential where eta / l stands: l is relative to the kernel's
own m. Of sums, T is the number of tiles that hold keys of the row: a tile without any adds 0 and has the factor 1.

With an output_scale, the stored out is multiplied by the scale when it is read back: u_out = 2^-4, and eta_out is half a
subnormal step times the scale. o is clamped to the range as the stored number is; clamping brings no two numbers further apart.
The u32 of the quotient is a part of 2 u32 |o_c|.

If the products of a tile are summed before the sum joins the accumulator, B is the number of keys of a tile. If a dot adds each
product to the accumulator in turn, as float32 dots do on GPUs, B is the number of all keys: thousands of nearly equal weights
then round in the same direction.

The sensitivity is bounded by the inequality of Cauchy and Schwarz, sum w e |v - o| <= sqrt(sum w e) sqrt(sum w e (v - o)^2),
which needs only matrix products. A sink counts as one more key, whose value is 0. And the sum is at most the largest of
|v_jc - o_c|, because weights that are off are weights: they make no output that is not between the values.

Where q is 0, all weights of a row are equal, and sums of small integers are exact. Such a case is compared bit by bit, also
with a cap (the cap of 0 is 0), with a tree of drafts (whose biases are 0 or hide a key), with fixed scales (which are then
powers of two), and with an output_scale (whose quotient is defined bitwise). With ALiBi, a random qq_bias, a sink other than 0,
or scales of tokens (which are no powers of two), such a case is compared within the bound.

Sources: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (IMA J. Numer. Anal. 2021);
Higham and Mary, "A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 2019).
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from attn_contract import Layer
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.tensors import Step
from attn_fuzz.verdict.rounding import (
    LARGEST,
    MIN_OF_INT8,
    U32,
    CallRounding,
    Rounding,
    further_roundings,
    shared_scale,
    value_scale,
)
from attn_reference import Attention, Request, attend, dequantize, paged_requests, quantize, varlen_requests

LAMBDA = 6.0
# the log of the largest weight: a larger one bounds nothing, and sums of its products must stay finite
MAX_LOG = 64.0
# the largest error of a maximum: beyond it all weights may underflow
MAX_SHIFT = 500.0
# a sink that is the maximum and has a larger eps counts as an error that all logits share
SHARED_EPS = 1.0


def requests(call: Call | Step) -> Iterator[Request]:
    """The rows of every request, with the keys and values that they see in float64, as the reference reads them.

    Of the requests that `Step.dense_keys` names, this step's keys and values are those of k and v.
    """
    if call.kv_cache is not None:
        found = paged_requests(call.q, call.kv_cache, call.layer, call.batch, torch.float64)
        dense = call.dense_keys if isinstance(call, Step) else ()
        return (_with_dense_keys(request, call) if dense and dense[request.index] else request for request in found)
    assert call.k is not None
    assert call.v is not None
    return varlen_requests(call.q, call.k, call.v, call.layer, call.batch, torch.float64)


def _with_dense_keys(request: Request, call: Call | Step) -> Request:
    assert call.k is not None
    assert call.v is not None
    own = min(len(request.query), len(request.key))  # a query without a key of its own comes first
    rows = slice(request.rows.stop - own, request.rows.stop)
    context = len(request.key) - own
    key, value = (
        torch.cat([cached[:context], dense[rows].to(cached)])
        for cached, dense in ((request.key, call.k), (request.value, call.v))
    )
    return dataclasses.replace(request, key=key, value=value)


class Bound(NamedTuple):
    """The largest allowed error of each element of `out` [q, H, D] and of the LSE [q, H], in float64."""

    out: torch.Tensor
    lse: torch.Tensor


class _Weights(NamedTuple):
    """The largest change of a row's softmax weights by errors of logits.

    Args:
        largest: [H, q, k], the largest number that each weight can become.
        errors: [H, q, k], w_j e_j.
        sink_error: [H, q, 1], w e of the sink; 0 without a sink.
        total_error: [H, q, 1], sum_j w_j e_j of the keys.
        shared: [H, q], an error that all logits share, which changes no weight.
    """

    largest: torch.Tensor
    errors: torch.Tensor
    sink_error: torch.Tensor
    total_error: torch.Tensor
    shared: torch.Tensor


class Oracle:
    """The right outputs of one request's rows in float64, and how far from them a kernel's outputs may be.

    Attributes:
        out: [q, H, D], clamped to the range of the output's dtype.
        lse: [q, H].
    """

    def __init__(self, request: Request, layer: Layer, out_dtype: torch.dtype, rounding: Rounding, dtype: torch.dtype) -> None:
        self.request, self.layer = request, layer
        self.rounding = CallRounding(rounding=rounding, layer=layer, dtype=dtype, out_dtype=out_dtype)
        self.state = state = attend(request, layer)
        group = layer.num_heads // layer.num_kv_heads
        seen = request.seen.T[..., None]
        self.query = request.query.transpose(0, 1)  # [H, q, D]
        self.key, self.value = (  # [H, k, D] each
            torch.where(seen, x.transpose(0, 1), 0.0).repeat_interleave(group, 0) for x in (request.key, request.value)
        )
        self.stored_out = clamped(state.out.transpose(0, 1), out_dtype, layer)  # [H, q, D]
        self.sink = torch.full_like(self.stored_out[:, :1, 0], -torch.inf)  # [H, 1]
        if layer.sinks is not None:
            self.sink = layer.sinks.double()[:, None]
        visible_logits = torch.where(request.visible, state.logits, -torch.inf)
        has_keys = state.weights.shape[-1] > 0
        highest = visible_logits.amax(-1) if has_keys else self.sink.expand(self.stored_out.shape[:2])
        maximum = torch.maximum(highest, self.sink)  # m [H, q]
        self.maximum = torch.where(maximum.isinf(), 0.0, maximum)
        self.finite_lse = torch.where(state.lse.isinf(), 0.0, state.lse)  # [H, q], 0 in a row that sees nothing
        self.denominator = torch.exp(self.finite_lse - self.maximum)  # l [H, q]
        self.out, self.lse = self.stored_out.transpose(0, 1), state.lse.T

    @property
    def exact_out(self) -> torch.Tensor:
        """[q, H, D] float32, if all weights are 1: numerator and denominator are exact, and only the quotient is rounded."""
        count = self.denominator.float()[..., None]
        sums = (self.request.visible.double() @ self.value).float()
        return torch.where(count > 0, sums / count, 0.0).transpose(0, 1)

    def hard_bound(self) -> Bound:
        """The bound that no rounding can break."""
        head_size, scale = self.query.shape[-1], abs(self.layer.scale)
        magnitudes = self.query.abs() @ self.key.abs().transpose(1, 2)  # A_j / |scale|
        return self._bound(
            eps=scale * (self._dot_unit * (head_size + 2) + self.rounding.of_operands) * magnitudes
            + U32 * self._steps_of_logits
            + self._further_errors,
            norm=lambda weights, magnitudes: magnitudes,
            stored_norm=self._stored_magnitudes.sum(1, keepdim=True),
            accumulation=2.0 * self._terms,
        )

    def statistical_bound(self, hard: Bound) -> Bound:
        """The bound that independent roundings break once in many millions, or HARD where that is lower."""
        head_size, scale = self.query.shape[-1], abs(self.layer.scale)
        magnitudes = LAMBDA * ((self.query**2) @ (self.key**2).transpose(1, 2)).sqrt()  # lam A2_j / |scale|
        bound = self._bound(
            eps=scale * (self._dot_unit * head_size**0.5 + self.rounding.of_operands) * magnitudes
            + U32 * self._steps_of_logits
            + self._further_errors,
            norm=lambda weights, magnitudes: LAMBDA * ((weights**2) @ self._squared_value).sqrt(),
            stored_norm=LAMBDA * (self._stored_magnitudes**2).sum(1, keepdim=True).sqrt(),
            accumulation=LAMBDA * self._terms**0.5,
        )
        return Bound(torch.minimum(bound.out, hard.out), torch.minimum(bound.lse, hard.lse))

    @property
    def _dot_unit(self) -> float:
        return self.rounding.rounding.dot_unit

    @cached_property
    def _terms(self) -> int:
        """B + 2 T + S"""
        return self.rounding.terms(self._places)

    @cached_property
    def _places(self) -> int:
        """The keys of the request, or the places of a selection if it has more: entries that name no unit have some, too."""
        units = self.request.selected
        keys, unit = self.key.shape[1], self.layer.selection_unit
        return keys if units is None or unit is None else max(keys, units.shape[-1] * unit)

    @cached_property
    def _steps_of_logits(self) -> torch.Tensor:
        """[H, q, k]: 2 |s_j| + 2 |s_j - m| + 4 + r_j"""
        small_tanh = self.rounding.rounding.small_tanh
        further = further_roundings(self.state.scores.abs(), self._biases, self.layer, small_tanh=small_tanh)
        return 2 * self._logits + 2 * self._distances + 4 + further

    @cached_property
    def _logits(self) -> torch.Tensor:
        """[H, q, k]: |s_j|, 0 of keys that are not seen"""
        return torch.where(self.request.visible, self.state.logits, 0.0).abs()

    @cached_property
    def _distances(self) -> torch.Tensor:
        """[H, q, k]: |s_j - m|"""
        return (torch.where(self.request.visible, self.state.logits, 0.0) - self.maximum[..., None]).abs()

    @cached_property
    def _biases(self) -> torch.Tensor | None:
        return bias_magnitudes(self.request, self.state, self.layer)

    @cached_property
    def _span(self) -> torch.Tensor:
        """[q] or [H, q]: from the first to the last key that a row sees, both included; 0 of a row that sees none. A selection
        may have them in any places."""
        visible, keys = self.request.visible, self.request.visible.shape[-1]
        if self.request.selected is not None:
            return torch.where(visible.any(-1), self._places, 0)
        place = torch.arange(keys, device=visible.device)
        if not keys:
            return visible.sum(-1)
        last, first = torch.where(visible, place, -1).amax(-1), torch.where(visible, place, keys).amin(-1)
        return (last - first + 1).clamp(min=0)

    @cached_property
    def _tiles(self) -> torch.Tensor:
        """[q] or [H, q]: T + S"""
        return self.rounding.tiles(self._span, self._places)

    @cached_property
    def _shift(self) -> torch.Tensor:
        """[H, q]: the error of the maximum, where it is rounded between tiles"""
        sinks = torch.where(self.sink.isinf(), 0.0, self.sink).abs()
        largest = torch.maximum(self._logits.amax(-1), sinks) if self.key.shape[1] else sinks.expand(self.maximum.shape)
        return self.rounding.of_maximum(largest, self._span, self._places)

    @cached_property
    def _further_errors(self) -> torch.Tensor:
        """[H, q, k]: the errors of logits that both bounds share"""
        score = self.state.scores.abs()
        of_steps = self.rounding.of_logits(score, self._logits, self._distances, self._biases)
        return self._lost_of_queries + of_steps + self._shift[..., None] + self.rounding.of_cut_products * score

    @cached_property
    def _lost_of_queries(self) -> torch.Tensor | float:
        """[H, q, k]: |scale| (2^-39 max_d |q_d| + eta) sum_d |k_jd|, or |scale| sum_d min(|q_d|, c) |k_jd| of int8, or 0.0

        Flushed subnormals of K lose |scale| eta sum_d |q_d| more.
        """
        if self.rounding.makes_int8 and self.key.shape[1]:
            magnitudes = self.query.abs()
            step = magnitudes.amax(-1, keepdim=True).clamp(min=MIN_OF_INT8) / LARGEST[torch.int8]
            return abs(self.layer.scale) * torch.minimum(magnitudes, step) @ self.key.abs().transpose(1, 2)
        relative, absolute = self.rounding.of_lost_queries, self.rounding.of_underflown_queries
        if relative == absolute == 0 or self.key.shape[1] == 0:
            return 0.0
        lost, sums = relative * self.query.abs().amax(-1) + absolute, self.key.abs().sum(-1)
        of_keys = self.rounding.of_flushed * self.query.abs().sum(-1)
        return abs(self.layer.scale) * (lost[..., None] * sums[:, None, :] + of_keys[..., None])

    @cached_property
    def _divided_later(self) -> torch.Tensor | float:
        """l exp(-shift) [H, q, 1], or 1 if the rounded weights are divided by it already."""
        if self.rounding.rounding.normalizes_first:
            return 1.0
        return (self.denominator * torch.exp(-self._shift.clamp(max=MAX_SHIFT)))[..., None]

    @cached_property
    def _squared_value(self) -> torch.Tensor:
        return self.value**2

    @cached_property
    def _ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[H, 1, D] each: the least and the largest v_c, or 0, which is the output of a row that sees nothing"""
        values = torch.nn.functional.pad(self.value, (0, 0, 0, 1))
        return values.amin(1, keepdim=True), values.amax(1, keepdim=True)

    @cached_property
    def _stored_magnitudes(self) -> torch.Tensor:
        return _stored_magnitudes(self.value, self.layer)

    def _bound(
        self,
        *,
        eps: torch.Tensor,
        norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        stored_norm: torch.Tensor,
        accumulation: float,
    ) -> Bound:
        """The bound of the module's docstring, from the four terms in which HARD and the statistical bound differ.

        Args:
            eps: [H, q, k], eps_j of each logit.
            norm: lam norm2(w v_c) [H, q, D] of weights [H, q, k] and the sum of the products' magnitudes; HARD: that sum.
            stored_norm: [H, 1, D], lam norm2(t_c); HARD: the sum of the magnitudes of t_c.
            accumulation: lam sqrt(B + 2 T + S); HARD: 2 (B + 2 T + S).
        """
        least, largest = self._ends
        weights, rounding, out = self._perturbed(eps), self.rounding, self.state.out.transpose(0, 1)
        magnitudes = torch.minimum(weights.largest @ self.value.abs(), torch.maximum(-least, largest))  # sum_j w_j |v_jc|
        of_outputs, of_sums = rounding.of_outputs(self._tiles)[..., None], self._of_sums[..., None]
        share = (
            # u_P of weights that are truncated
            rounding.of_cut_weights
            # lam u32 sqrt(B + 2 T + S)
            + self._dot_unit * accumulation
            # (M - 1) u_out
            + rounding.of_parts
            # the loss of a weight that saturates
            + rounding.of_saturated_weights(self._shift)[..., None]
        )
        rest = (
            # lam u_P norm2(w v_c)
            rounding.of_weights * norm(weights.largest, magnitudes)
            # the share that is lost of sum_j w_j |v_jc|
            + share * magnitudes
            # lam (eta_P / l) norm2(t_c), or without l
            + rounding.of_lost_weights / self._divided_later * stored_norm
            # sum_j min(w_j a_j, max(max_i w_i a_i, 127e-6 / l) / 127) |v_jc| / a_j of weights in int8
            + self._cut_to_int8(weights.largest)
            # sum_j w_j |v_jc - o_c| e_j
            + self._sensitivity(weights)
            # 2 u32 |o_c| for each scale that multiplies the output
            + rounding.of_scales * out.abs()
            # eta of each value that is flushed
            + rounding.of_flushed
        )
        # the error of sums in 16 bits: a share of their summands, and (3 (T + S) + 2) eta / l
        rest = rest + of_outputs * (magnitudes + rest) + self._lost_in_sums(stored_norm)
        # the error of a denominator in 16 bits
        rest = rest + of_sums * (out.abs() + rest)
        # u_out (|o_c| + the rest) + eta_out: the output is rounded at the end, with all these errors in it
        error = rest + rounding.of_output * (self.stored_out.abs() + rest) + rounding.of_underflow
        # sum_j w_j e_j + u32 (lam sqrt(B + 2 T + S) + |lse|)
        lse = (weights.total_error + weights.sink_error)[..., 0] + U32 * (accumulation + self.finite_lse.abs())
        # a denominator in 16 bits: its logarithm is rounded, and so is the sum of the logarithm and m
        lse = lse + self._of_sums + rounding.unit_roundoff("sums") * (self.finite_lse.abs() + self.denominator.log().abs())
        # for a sink whose error all logits share: that error, and the roundings from and to base 2
        lse = lse + weights.shared + U32 * rounding.of_base_2 * torch.where(weights.shared > 0, self.finite_lse.abs(), 0.0)
        return Bound(error.transpose(0, 1), lse.T)

    def _perturbed(self, eps: torch.Tensor) -> _Weights:
        """The weights if each logit is off by eps_j [H, q, k], and the sink by the error of its scaling to the base."""
        weights = self.state.weights
        sink = torch.where(self.sink.isinf(), 0.0, self.sink)
        sink_weight = torch.where(self.sink.isinf(), 0.0, torch.exp(sink - self.maximum) / self.denominator)
        sink_eps = U32 * (2 * sink.abs() + 2 * (sink - self.maximum).abs() + 4) + self._shift
        sink_eps = sink_eps + self.rounding.of_logits(sink.abs(), sink.abs(), (sink - self.maximum).abs(), None)
        counts_for_all = (self.sink >= self.maximum) & (sink_eps > SHARED_EPS)
        shared = torch.where(counts_for_all, sink_eps, 0.0)
        eps, sink_eps = eps + shared[..., None], sink_eps - shared
        eps, sink_eps = torch.where(self.request.visible, eps, 0.0), sink_eps[..., None]
        # ln w_j, also of weights that are 0 in float64: an eps_j may be as large as the distance from m
        logs = torch.where(weights > 0, weights.log(), self.state.logits - self.maximum[..., None])
        sink_log = sink_weight.log()[..., None]
        # ln sum_i w_i exp(-eps_i): the least denominator, relative to the right one
        least = torch.cat([logs - eps, sink_log - sink_eps], -1).logsumexp(-1, keepdim=True)
        least = torch.where(least.isinf(), 0.0, least)  # in a row that sees nothing
        largest = torch.exp((logs + eps - least).clamp(max=MAX_LOG))
        errors = -torch.expm1(-eps) * largest
        return _Weights(
            largest=largest,
            errors=errors,
            sink_error=-torch.expm1(-sink_eps) * torch.exp((sink_log + sink_eps - least).clamp(max=MAX_LOG)),
            total_error=errors.sum(-1, keepdim=True),
            shared=shared,
        )

    @cached_property
    def _of_sums(self) -> torch.Tensor:
        """[H, q]: the relative error of the denominator"""
        total = self.denominator * torch.exp(-self._shift.clamp(max=MAX_SHIFT))
        return self.rounding.of_sums(self._tiles, self._span, total) + torch.zeros_like(total)

    def _lost_in_sums(self, stored_norm: torch.Tensor) -> torch.Tensor:
        """[H, q, D]: (3 (T + S) + 2) eta max(1, sigma) / l of an output, (T + S) eta / l of each weight that is rescaled"""
        scale = value_scale(self.layer)
        largest = 1.0 if scale is None else scale.double().max().clamp(min=1)
        tiles, eta = self._tiles[..., None], max(self.rounding.underflow("outputs"), self.rounding.underflow("products"))
        of_factors = max(self.rounding.underflow("outputs"), self.rounding.underflow("sums"))
        return (eta * largest * (3 * tiles + 2) + of_factors * tiles * stored_norm) / self._divided_later

    def _cut_to_int8(self, weights: torch.Tensor) -> torch.Tensor | float:
        """[H, q, D]: the loss of the output if weights [H, q, k], times the scales of their values, become int8."""
        if not self.rounding.makes_int8 or not self.value.numel():
            return 0.0
        codes, largest = LARGEST[torch.int8], self.value.abs().amax(-1)  # a [H, k]
        scaled = weights * largest[:, None]
        step = scaled.amax(-1, keepdim=True).clamp(min=codes * MIN_OF_INT8 / self._divided_later) / codes
        shares = torch.where(largest > 0, 1 / largest, 0.0)[..., None] * self.value.abs()
        return torch.minimum(scaled, step) @ shares

    def _sensitivity(self, weights: _Weights) -> torch.Tensor:
        """[H, q, D]: sqrt(sum w e) sqrt(sum w e (v - o)^2), and |o| times the sink's w e: a sink is a key whose value is 0."""
        value, out, errors = self.value, self.state.out.transpose(0, 1), weights.errors
        # sum_j w_j e_j (v_jc - o_c)^2, multiplied out
        squares = (errors @ self._squared_value - 2 * out * (errors @ value) + out**2 * weights.total_error).clamp(min=0)
        by_weights = (weights.total_error * squares).sqrt() + weights.sink_error * out.abs()
        # any weights give an output between the least and the largest value
        least, largest = self._ends
        return torch.minimum(by_weights, torch.maximum(out - least, largest - out))


def bias_magnitudes(request: Request, state: Attention, layer: Layer) -> torch.Tensor | None:
    """b [H, q, k]: the sum of the magnitudes of all biases of a score. None if there is no bias.

    Where a key is not visible, the number means nothing.
    """
    bias = state.bias
    if bias is None:
        return None
    if layer.alibi_slopes is not None:  # ALiBi may cancel a bias between drafts
        keys = torch.arange(bias.shape[-1], device=bias.device)
        distance = (request.query_positions[:, None] - keys).abs()
        alibi = layer.alibi_slopes.double()[:, None, None] * distance
        bias = alibi.abs() + (bias + alibi).abs()
    return bias.abs()


def _stored_magnitudes(value: torch.Tensor, layer: Layer) -> torch.Tensor:
    """|t| of values [H, k, D]. If each token has a scale, |t| is multiplied by the largest scale of the head."""
    if layer.kv_cache_dtype is None or not value.numel():
        return value.abs()
    if value_scale(layer) is None:
        # a row's scale is proportional to its largest magnitude
        largest = value.abs().amax(-1, keepdim=True)
        return torch.where(largest > 0, value.abs() / largest * largest.amax(1, keepdim=True), 0.0)
    return value.abs() / shared_scale(layer)[:, None, None]


def as_stored(out: torch.Tensor, dtype: torch.dtype, layer: Layer) -> torch.Tensor:
    """A float32 output as a kernel writes it: rounded to its dtype, or quantized by the layer's output_scale."""
    return out.to(dtype) if layer.output_scale is None else quantize(out, layer.output_scale, dtype)


def as_read(out: torch.Tensor, layer: Layer) -> torch.Tensor:
    """A stored output in float64, times the layer's output_scale."""
    return out.double() if layer.output_scale is None else dequantize(out.contiguous(), layer.output_scale, torch.float64)


def clamped(out: torch.Tensor, dtype: torch.dtype, layer: Layer) -> torch.Tensor:
    """The numbers, clamped to the range of a quantized output of this dtype. Without an output_scale nothing is clamped."""
    if layer.output_scale is None:
        return out
    largest = LARGEST[dtype] * layer.output_scale.double()
    return out.clamp(-largest, largest)
