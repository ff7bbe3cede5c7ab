"""Is an output right? A bound on every element's error, derived from the case's own numbers.

The oracle computes in float64 on the stored values that the kernel reads. Per row, with s the logits, m their maximum (sink
included), w the softmax weights, l the denominator relative to m, o the output, u = eps / 2 of a dtype and eta half its
smallest normal or subnormal step, an output element may differ from o_c by

    u_out (|o_c| + the rest) + eta_out                   output rounding
    + lam u_P norm2(w v_c)                               P rounded to V's dtype before P.V
    + lam (eta_P / l) norm2(t_c)                         P underflow; t = v, but for a quantized cache
    + sum_j w_j |v_jc - o_c| e_j                         error of logit j times exact sensitivity; e_j is eps_j, see below
    + lam u32 sqrt(B + 2 T + S) sum_j w_j |v_jc|         float32 accumulation: B terms in a row, T tiles, S splits
    eps_j = u32 (lam sqrt(D) A2_j + 2 |s_j| + 2 |s_j - m| + 4 + r_j),  A2_j = |scale| sqrt(sum (q k_j)^2)

and the LSE by sum_j w_j e_j + u32 (lam sqrt(B + 2 T + S) + |lse|): it moves with each logit by that logit's weight. Here
e_j = (exp(eps_j) - 1) / sum_i w_i exp(-eps_i), which is eps_j but for logits of 10^4 or more: a logit that is off by eps_j
multiplies its weight by exp(eps_j) at most, and all of them divide the denominator by no more than that sum. The terms of P and
of accumulation take weights that are as large as this makes them.

Rounding errors of generic numbers are independent, and lam = 6 leaves each element a chance of 3e-8 (Hoeffding). Structured
numbers make errors correlate: HARD is the same bound without statistics, norm2 becomes a sum of magnitudes, sqrt(D) A2 becomes
(D + 2) A with A_j = |scale| sum |q k_j|, and lam sqrt(B + 2 T + S) becomes 2 (B + 2 T + S). A breach of HARD is always a bug.

r_j is what a logit's further steps round, with z = scale q.k_j the score before them; it is 0 where s is z. Errors go through
a cap undiminished at most, since the slope of tanh is at most 1.

    2 |z_j|     with a cap or a bias: z is scaled to the exponential's base before s is, and s may be far smaller
    2 |z_j|     with a quantized cache: its scale of K joins the layer's in one or two roundings more
    8 c         the cap by one exponential, 1 - 2 / (exp(2x) + 1) or (1 - t) / (1 + t) with t = exp(-|2x|), x = z / c: an error
                of 2 u32 in the exponential's value and |2x| u32 in its argument, times a slope that decays as exp(-|2x|); three
                more roundings of numbers up to 2; and c times that
    3 b_j       the biases: each is computed, scaled to the base and added; b is the sum of their magnitudes, which may cancel

A quantized value v = t sigma is read exactly as t, and a weight is multiplied by the scale sigma of its token and head,
relative to the largest of the tile's, before it is rounded to V's dtype: u_P becomes u_P + 3 u32 for that quotient and two
products, and a weight that underflows loses eta_P of t times the largest scale.
A scale that all tokens share may instead multiply the output, in two more roundings and without that loss: 2 u32 |o_c|, and
t is the larger of v and v / sigma.

A kernel may instead round the dequantized K and V to q's dtype first (`Rounding.rounds_dequantized`): that is u_P once more for
V, and u_P instead of u32 in a further term lam A2_j of eps_j.

With an output_scale, out is read back as stored times scale: u_out = 2^-4 and eta_out is half a subnormal step times the scale;
o is clamped to the range as the stored number is, which brings no two numbers further apart. u32 for the quotient is in
2 u32 |o_c|.

B is the keys of a tile where a tile is summed before it joins the accumulator, and all keys where a dot adds each product to
the accumulator in turn, as float32 dots do on GPUs: thousands of nearly equal weights then round the same way.

The sensitivity is bounded by Cauchy and Schwarz, sum w e |v - o| <= sqrt(sum w e) sqrt(sum w e (v - o)^2), which needs
matrix products only. A sink is one more key whose value is 0.

Where q is 0, every weight is 1 over their number, and sums of small integers are exact: such a case is compared bit by bit.
So it is with a cap (of 0 it is 0), with a tree of drafts (0 or hidden), with fixed scales, which are then powers of two, and
through an output_scale, whose quotient is defined bitwise. ALiBi, a random qq_bias, a sink other than 0 and scales of tokens'
own, which are no powers of two, leave it to the bound.

Sources: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (IMA J. Numer. Anal. 2021);
Higham and Mary, "A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 2019).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec
import torch
from attn_contract import Layer
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_reference import Attention, Request, attend, dequantize, paged_requests, quantize, varlen_requests
from attn_reference.attention import ROWS_AT_ONCE

MAX_SCORES = 1 << 26
LAMBDA = 6.0
U32 = 2.0**-24
UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float8_e4m3fn: 2.0**-4,
    torch.float8_e4m3fnuz: 2.0**-4,
}
# GPUs may flush float32 and bfloat16 subnormals to zero; half of float16's smallest subnormal is 2^-25
UNDERFLOW = {
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-126,
    torch.float8_e4m3fn: 2.0**-10,
    torch.float8_e4m3fnuz: 2.0**-11,
}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.int8: 127.0}
CAP_ROUNDINGS = 8
# an eps beyond this bounds nothing; its exponential must stay finite, since weights of 0 are multiplied by it
LARGEST_EPS = 64.0


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Where a kernel rounds: what a target declares so that the judge can be as strict as the kernel is precise.

    Args:
        keys_per_tile: keys of one step of the online softmax.
        dot_is_chained: a dot adds its products to the accumulator one after the other, instead of summing the tile first.
        splits: parts that the keys are split into, at most.
        rounds_dequantized: K and V of a quantized cache are rounded to q's dtype before the dots, not read exactly.
        exact_division: the output is the correctly rounded quotient when numerator and denominator are exact; cases of exact
            numbers are then compared bitwise.
    """

    keys_per_tile: int
    dot_is_chained: bool = False
    splits: int = 1
    rounds_dequantized: bool = False
    exact_division: bool = False

    def __post_init__(self) -> None:
        if self.keys_per_tile < 1 or self.splits < 1:
            raise ValueError(f"Rounding: got {self.keys_per_tile} keys_per_tile and {self.splits} splits, expected at least 1")


class Difference(msgspec.Struct, frozen=True):
    """The worst element of one request's rows in one tensor."""

    request: int
    tensor: Literal["out", "lse"]
    row: int
    head: int
    dim: int | None
    got: float
    expected: float
    bound: float
    rows: int
    """How many rows of the request differ."""

    def __str__(self) -> str:
        where = f"row {self.row}, head {self.head}" + (f", dim {self.dim}" if self.dim is not None else "")
        return (
            f"{self.tensor} of request {self.request} at {where}: got {self.got:.9g}, expected {self.expected:.9g} "
            f"+- {self.bound:.2g}"
        )


class Judgement(msgspec.Struct, frozen=True):
    """What the judge found in one step's outputs.

    Attributes:
        differences: the worst element of each request and tensor that is wrong.
        ratio: the largest error / bound of a finite output.
        kind: what is wrong with the first of them.
        breaks_hard: whether the bound without statistics is broken too, as it always is by what is not a matter of a bound.
        of_bound: error / bound of every element, of "out" [T, H, D] and where there is one of "lse" [T, H]; 0 in rows of no
            request; infinite where numbers that are compared bitwise differ, or one is NaN.
        bitwise: whether `out` was compared bitwise.
        statistical_ratio: of a live call (`attn_fuzz.check`), as `ratio` by the bound with statistics, whichever decided.
    """

    differences: tuple[Difference, ...]
    ratio: float
    kind: Literal["agree", "value", "nan", "bitwise", "unwritten", "lse"]
    breaks_hard: bool
    of_bound: dict[str, torch.Tensor]
    bitwise: bool
    statistical_ratio: float | None = None

    @property
    def agrees(self) -> bool:
        return self.kind == "agree"

    @property
    def message(self) -> str:
        """One line for a person; empty if they agree."""
        return str(self.differences[0]) if self.differences else ""

    def raise_for_differences(self) -> None:
        """Raise DisagreementError unless they agree."""
        if not self.agrees:
            raise DisagreementError(self)


class DisagreementError(AssertionError):
    """An output is not what the reference says; `judgement` has the worst element of each request."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__("\n".join(map(str, judgement.differences)))
        self.judgement = judgement


def judge(case: Case, step: Step, rounding: Rounding) -> Judgement:
    """Compare a step's `out` and `lse` with the oracle's, row by row of every request."""
    exact = rounding.exact_division and has_exact_sums(case)
    return judge_call(step, step.out, step.lse, rounding, generic=case.values.kind == "random", exact=exact)


def judge_call(
    call: Call | Step,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    rounding: Rounding,
    *,
    generic: bool = False,
    exact: bool = False,
) -> Judgement:
    """Compare the outputs of one call with the oracle's, row by row of every request.

    Args:
        call: what was attended to.
        out: [T, H, D] or [T, H * D] of q's dtype, or float8 with an output_scale.
        lse: [H, T] float32, or None.
        rounding: of what attended.
        generic: whether the numbers are independent of each other, so that statistics apply; else HARD decides.
        exact: whether every weight is 1 over their number and every sum exact, so that `out` is compared bitwise.

    Raises:
        ContractError: the call contradicts the contract.
    """
    layer = call.layer
    out = out if out.dim() == 3 else out.unflatten(1, (layer.num_heads, layer.head_size))
    of_bound = {"out": torch.zeros(out.shape, dtype=torch.float64, device=out.device)}
    if lse is not None:
        of_bound["lse"] = torch.zeros(out.shape[:2], dtype=torch.float64, device=out.device)
    compared: list[_Compared] = []
    for request in requests(call):
        stored = out[request.rows]
        oracle = _Oracle(request, layer, stored.dtype, rounding, call.q.dtype)
        hard = None if exact and lse is None else oracle.hard_bound()
        bound = oracle.statistical_bound(hard) if generic and hard is not None else hard
        if exact:
            right = _read(_stored_as(oracle.exact_out, stored.dtype, layer), layer)
            compared.append(_Compared(request, "out", _read(stored, layer), right, torch.zeros_like(right), None))
        elif bound is not None and hard is not None:
            compared.append(_Compared(request, "out", _read(stored, layer), oracle.out, bound.out, hard.out))
        if lse is not None and bound is not None and hard is not None:
            compared.append(_Compared(request, "lse", lse[:, request.rows].T.double(), oracle.lse, bound.lse, hard.lse))
    for part in compared:
        of_bound[part.tensor][part.request.rows] = part.of_bound
    # one look at the device, and a closer one only where it is needed
    largest = torch.stack([ratio.amax() if ratio.numel() else ratio.new_zeros(()) for ratio in of_bound.values()]).amax()
    wrong = [part for part in compared if part.is_wrong()] if float(largest) > 1 else []
    finite = [ratio[ratio.isfinite()] for ratio in of_bound.values()] if wrong else [largest.reshape(1)]
    return Judgement(
        differences=tuple(part.difference() for part in wrong),
        ratio=max((float(ratio.max()) for ratio in finite if ratio.numel()), default=0.0),
        kind=wrong[0].kind(out) if wrong else "agree",
        breaks_hard=any(part.breaks_hard() for part in wrong),
        of_bound=of_bound,
        bitwise=exact,
    )


@dataclass(frozen=True)
class _Compared:
    """One request's rows of one tensor beside the oracle's, [q, H, D] or [q, H] in float64. Without a `hard` bound they are
    compared bitwise."""

    request: Request
    tensor: Literal["out", "lse"]
    got: torch.Tensor
    right: torch.Tensor
    bound: torch.Tensor
    hard: torch.Tensor | None

    @property
    def error(self) -> torch.Tensor:
        """Infinite where either is NaN, and 0 where both are the same infinity."""
        return torch.where(self.got == self.right, 0.0, (self.got - self.right).abs().nan_to_num(nan=torch.inf))

    @property
    def of_bound(self) -> torch.Tensor:
        return torch.where(self.error == 0, 0.0, (self.error / self.bound).nan_to_num(nan=torch.inf, posinf=torch.inf))

    def is_wrong(self) -> bool:
        return bool((self.of_bound > 1).any())

    def breaks_hard(self) -> bool:
        return self.hard is None or bool((self.error > self.hard).any())

    def difference(self) -> Difference:
        """The worst of the wrong elements; those that are not finite come first."""
        place = torch.unravel_index(self.of_bound.argmax(), self.got.shape)
        row, head, *dim = (int(index) for index in place)
        return Difference(
            request=self.request.index,
            tensor=self.tensor,
            row=self.request.rows.start + row,
            head=head,
            dim=dim[0] if dim else None,
            got=float(self.got[place]),
            expected=float(self.right[place]),
            bound=float(self.bound[place]),
            rows=int((self.of_bound > 1).flatten(1).any(1).sum()),
        )

    def kind(self, out: torch.Tensor) -> Literal["value", "nan", "bitwise", "unwritten", "lse"]:
        """What is wrong with the worst of them; `out` as the target left it."""
        if self.tensor == "lse":
            return "lse"
        worst = self.difference()
        element = out[worst.row, worst.head, worst.dim]
        if torch.equal(bits(element.reshape(1)), bits(canary((1,), out.dtype, out.device))):
            return "unwritten"
        if self.hard is None:
            return "bitwise"
        return "value" if abs(worst.got) < float("inf") else "nan"


def check_scores(case: Case) -> None:
    """Raise CaseError where the reference's scores would not fit in memory; without an oracle nobody computes them."""
    scores = case.num_heads * max((min(r.query_len, ROWS_AT_ONCE) * r.seq_len for r in case.requests), default=0)
    if scores > MAX_SCORES:
        raise CaseError(f"case: the reference would hold {scores} scores at once, expected at most {MAX_SCORES}")


def judge_finite(step: Step) -> Judgement:
    """What can be said without an oracle: each owned row is written, and holds finite numbers; an LSE may be -inf."""
    out = step.out.reshape(-1, step.layer.num_heads, step.layer.head_size)
    outputs: dict[Literal["out", "lse"], torch.Tensor] = {"out": out} if step.lse is None else {"out": out, "lse": step.lse.T}
    differences: list[Difference] = []
    kind = "agree"
    for tensor, got in outputs.items():
        wrong = ~got.float().isfinite() if tensor == "out" else got.isnan() | (got == torch.inf)
        rows = wrong.flatten(1).any(1)
        for index, (start, end) in enumerate(itertools.pairwise(step.batch.query_start_loc.tolist())):
            if differences or not rows[start:end].any():
                continue
            row, head, *dim = wrong[start:end].nonzero()[0].tolist()
            element = got[(start + row, head, *dim)]
            is_written = bits(element.reshape(1)) != bits(canary((1,), got.dtype, got.device))
            kind = "lse" if tensor == "lse" else "nan" if is_written else "unwritten"
            differences.append(
                Difference(
                    request=index,
                    tensor=tensor,
                    row=start + row,
                    head=head,
                    dim=dim[0] if dim else None,
                    got=float(element),
                    expected=0.0,
                    bound=float(torch.finfo(got.dtype).max),
                    rows=int(rows[start:end].sum()),
                )
            )
    return Judgement(tuple(differences), 0.0, kind, breaks_hard=True, of_bound={}, bitwise=False)


def has_exact_sums(case: Case) -> bool:
    """Whether every weight of a case is 1 over their number, and every sum of values exact."""
    equal_weights = case.sinks in (None, "off", "zero") and not case.alibi_slopes and case.qq_bias != "random"
    return case.values.kind == "exact" and equal_weights and not (case.cache is not None and case.cache.scales_tokens)


def requests(call: Call | Step) -> Iterator[Request]:
    """The rows of every request with the float64 keys and values that they see, read by the reference."""
    if call.kv_cache is not None:
        return paged_requests(call.q, call.kv_cache, call.layer, call.batch, torch.float64)
    assert call.k is not None
    assert call.v is not None
    return varlen_requests(call.q, call.k, call.v, call.layer, call.batch, torch.float64)


class _Bound(NamedTuple):
    """Of `out` [q, H, D] and of the LSE [q, H], in float64."""

    out: torch.Tensor
    lse: torch.Tensor


class _Oracle:
    """What is right for one request's rows, in float64, and how far from it a kernel may be.

    Attributes:
        out: [q, H, D], as an output of its dtype can be.
        lse: [q, H].
    """

    def __init__(self, request: Request, layer: Layer, out_dtype: torch.dtype, rounding: Rounding, dtype: torch.dtype) -> None:
        self.request, self.layer, self.out_dtype, self.rounding, self.dtype = request, layer, out_dtype, rounding, dtype
        self.state = state = attend(request, layer)
        group = layer.num_heads // layer.num_kv_heads
        seen = request.visible.any(0)[:, None]
        key, value = (
            torch.where(seen, x.transpose(0, 1).repeat_interleave(group, 0), 0.0) for x in (request.key, request.value)
        )
        self.query, self.key, self.value = request.query.transpose(0, 1), key, value  # [H, q, D], [H, k, D] twice
        self.shown = _clamped(state.out.transpose(0, 1), out_dtype, layer)  # [H, q, D]
        sinks = layer.sinks.double() if layer.sinks is not None else None
        sink = torch.full_like(self.shown[:, :1, 0], -torch.inf) if sinks is None else sinks[:, None]
        width = state.weights.shape[-1]
        hidden = torch.where(request.visible, state.logits, -torch.inf)
        highest = hidden.amax(-1) if width else sink.expand(self.shown.shape[:2])
        m = torch.maximum(highest, sink)  # [H, q]
        self.sink, self.m = sink, torch.where(m.isinf(), 0.0, m)
        self.denominator = torch.exp(torch.where(state.lse.isinf(), 0.0, state.lse - self.m))
        self.out, self.lse = self.shown.transpose(0, 1), state.lse.T

    @property
    def exact_out(self) -> torch.Tensor:
        """[q, H, D] float32, where every weight is 1: numerator and denominator are exact, and their quotient is rounded."""
        count = self.denominator.float()[..., None]
        sums = (self.request.visible.double() @ self.value).float()
        return torch.where(count > 0, sums / count, 0.0).transpose(0, 1)

    def hard_bound(self) -> _Bound:
        """The bound that no rounding can break."""
        products = self.query.abs() @ self.key.abs().transpose(1, 2)
        d, scale = self.query.shape[-1], abs(self.layer.scale)
        return self._bound(
            U32 * ((d + 2) * scale * products + self._shift) + self._u_stored * scale * products,
            lambda weights: weights @ self.value.abs(),
            self._stored.sum(1, keepdim=True),
            2.0 * self._steps,
        )

    def statistical_bound(self, hard: _Bound) -> _Bound:
        """The bound that independent roundings break once in many millions, or HARD where that is lower."""
        products = LAMBDA * ((self.query**2) @ (self.key**2).transpose(1, 2)).sqrt()
        d, scale = self.query.shape[-1], abs(self.layer.scale)
        bound = self._bound(
            U32 * (d**0.5 * scale * products + self._shift) + self._u_stored * scale * products,
            lambda weights: LAMBDA * ((weights**2) @ (self.value**2)).sqrt(),
            LAMBDA * (self._stored**2).sum(1, keepdim=True).sqrt(),
            LAMBDA * self._steps**0.5,
        )
        return _Bound(torch.minimum(bound.out, hard.out), torch.minimum(bound.lse, hard.lse))

    @cached_property
    def _steps(self) -> int:
        keys = self.key.shape[1]
        terms = keys if self.rounding.dot_is_chained else self.rounding.keys_per_tile
        return terms + 2 * -(-keys // self.rounding.keys_per_tile) + self.rounding.splits

    @cached_property
    def _logits(self) -> torch.Tensor:
        return torch.where(self.request.visible, self.state.logits, 0.0)

    @cached_property
    def _shift(self) -> torch.Tensor:
        further = _further_steps(self.request, self.state, self.layer)
        return 2 * self._logits.abs() + 2 * (self._logits - self.m[..., None]).abs() + 4 + further

    @cached_property
    def _stored(self) -> torch.Tensor:
        return _magnitudes_stored(self.value, self.layer)

    @property
    def _u_stored(self) -> float:
        rounds = self.layer.kv_cache_dtype is not None and self.rounding.rounds_dequantized
        return UNIT_ROUNDOFF[self.dtype] if rounds else 0.0

    def _bound(
        self,
        eps: torch.Tensor,
        rounded: Callable[[torch.Tensor], torch.Tensor],
        underflowed: torch.Tensor,
        accumulation: float,
    ) -> _Bound:
        """Args: eps of each logit; the norm of w v that rounding w costs, by w; the norm of t; how many u32 a sum costs."""
        layer, state, value = self.layer, self.state, self.value
        w, out = state.weights, state.out.transpose(0, 1)
        is_quantized, is_scaled = layer.kv_cache_dtype is not None, layer.output_scale is not None
        sink_at = torch.where(self.sink.isinf(), 0.0, self.sink)
        sink_eps = U32 * (2 * sink_at.abs() + 2 * (sink_at - self.m).abs() + 4)
        sink_weight = torch.where(self.sink.isinf(), 0.0, torch.exp(sink_at - self.m) / self.denominator)
        e = torch.expm1(torch.where(self.request.visible, eps, 0.0).clamp(max=LARGEST_EPS))
        sink_e = torch.expm1(sink_eps.clamp(max=LARGEST_EPS))
        least = (w / (1 + e)).sum(-1) + sink_weight / (1 + sink_e)
        least = torch.where(least > 0, least, 1.0)[..., None]  # 0 of a row that sees nothing
        largest = w * (1 + e) / least
        we, sink_we = w * e / least, (sink_weight * sink_e)[..., None] / least
        total = we.sum(-1, keepdim=True)
        spread = (we @ value**2 - 2 * out * (we @ value) + out**2 * total).clamp(min=0)
        sensitivity = (total * spread).sqrt() + sink_we * out.abs()
        error = (
            (UNIT_ROUNDOFF[self.dtype] + self._u_stored + 3 * U32 * is_quantized) * rounded(largest)
            + UNDERFLOW[self.dtype] / self.denominator[..., None] * underflowed
            + sensitivity
            + U32 * accumulation * (largest @ value.abs())
            + 2 * U32 * (is_quantized + is_scaled) * out.abs()
        )
        # what is rounded at the end is the output with all these errors
        eta_out = UNDERFLOW[self.out_dtype] * (layer.output_scale.double() if layer.output_scale is not None else 1.0)
        error = error + UNIT_ROUNDOFF[self.out_dtype] * (self.shown.abs() + error) + eta_out
        lse = (total + sink_we)[..., 0] + U32 * (accumulation + torch.where(state.lse.isinf(), 0.0, state.lse).abs())
        return _Bound(error.transpose(0, 1), lse.T)


def _further_steps(request: Request, state: Attention, layer: Layer) -> torch.Tensor | float:
    """r: roundings of a logit beyond those of a scaled product, [H, q, k] in units of u32; anything where invisible."""
    scores, further = state.scores.abs(), 0.0
    if layer.kv_cache_dtype is not None:
        further = further + 2 * scores
    if layer.logits_soft_cap is not None or state.bias is not None:
        further = further + 2 * scores
    if layer.logits_soft_cap is not None:
        further = further + CAP_ROUNDINGS * layer.logits_soft_cap
    if state.bias is not None:
        bias = state.bias
        if layer.alibi_slopes is not None:
            keys = torch.arange(bias.shape[-1], device=bias.device)
            distance = (request.query_positions[:, None] - keys).abs()
            alibi = layer.alibi_slopes.double()[:, None, None] * distance
            bias = alibi.abs() + (bias + alibi).abs()
        further = further + 3 * bias.abs()
    return further


def _magnitudes_stored(value: torch.Tensor, layer: Layer) -> torch.Tensor:
    """abs(t) of values [H, k, D]; with a scale for each token, times the head's largest scale."""
    if layer.kv_cache_dtype is None or not value.numel():
        return value.abs()
    if layer.v_scale is None:
        # a row's scale is proportional to its largest magnitude
        largest = value.abs().amax(-1, keepdim=True)
        return torch.where(largest > 0, value.abs() / largest * largest.amax(1, keepdim=True), 0.0)
    scale = layer.v_scale.double().reshape(-1, 1, 1)
    return value.abs() / scale.expand(layer.num_kv_heads, 1, 1).repeat_interleave(len(value) // layer.num_kv_heads, 0).clamp(
        max=1
    )


def _stored_as(out: torch.Tensor, dtype: torch.dtype, layer: Layer) -> torch.Tensor:
    """A float32 output as it is written."""
    return out.to(dtype) if layer.output_scale is None else quantize(out, layer.output_scale, dtype)


def _read(out: torch.Tensor, layer: Layer) -> torch.Tensor:
    """An output as it was written, in float64."""
    return out.double() if layer.output_scale is None else dequantize(out.contiguous(), layer.output_scale, torch.float64)


def _clamped(out: torch.Tensor, dtype: torch.dtype, layer: Layer) -> torch.Tensor:
    """The nearest that an output of this type can be."""
    if layer.output_scale is None:
        return out
    largest = LARGEST[dtype] * layer.output_scale.double()
    return out.clamp(-largest, largest)
