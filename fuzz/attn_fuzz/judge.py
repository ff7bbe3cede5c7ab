"""Is an output right? A bound on every element's error, derived from the case's own numbers.

The oracle computes in float64 on the stored values that the kernel reads. Per row, with s the logits, m their maximum (sink
included), w the softmax weights, l the denominator relative to m, o the output, u = eps / 2 of a dtype and eta half its
smallest normal or subnormal step, an output element may differ from o_c by

    u_out (|o_c| + the rest) + eta_out                   output rounding
    + lam u_P norm2(w v_c)                               P rounded to V's dtype before P.V
    + lam (eta_P / l) norm2(t_c)                         P underflow; t = v, but for a quantized cache
    + sum_j w_j |v_jc - o_c| eps_j                       error of logit j times exact sensitivity
    + lam u32 sqrt(B + 2 T + S) sum_j w_j |v_jc|         float32 accumulation: B terms in a row, T tiles, S splits
    eps_j = u32 (lam sqrt(D) A2_j + 2 |s_j| + 2 |s_j - m| + 4 + r_j),  A2_j = |scale| sqrt(sum (q k_j)^2)

and the LSE by max_j eps_j + u32 (lam sqrt(B + 2 T + S) + |lse|). Rounding errors of generic numbers are independent, and
lam = 6 leaves each element a chance of 3e-8 (Hoeffding). Structured numbers make errors correlate: HARD is the same bound
without statistics, norm2 becomes a sum of magnitudes, sqrt(D) A2 becomes (D + 2) A with A_j = |scale| sum |q k_j|, and
lam sqrt(B + 2 T + S) becomes 2 (B + 2 T + S). A breach of HARD is always a bug.

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

With an output_scale, out is read back as stored times scale: u_out = 2^-4 and eta_out is half a subnormal step times the scale;
o is clamped to the range as the stored number is, which brings no two numbers further apart. u32 for the quotient is in
2 u32 |o_c|.

B is the keys of a tile where a tile is summed before it joins the accumulator, and all keys where a dot adds each product to
the accumulator in turn, as float32 dots do on GPUs: thousands of nearly equal weights then round the same way.

The sensitivity is bounded by Cauchy and Schwarz, sum w eps |v - o| <= sqrt(sum w eps) sqrt(sum w eps (v - o)^2), which needs
matrix products only. A sink is one more key whose value is 0.

Where q is 0, every weight is 1 over their number, and sums of small integers are exact: such a case is compared bit by bit.
So it is with a cap (of 0 it is 0), with a tree of drafts (0 or hidden), with fixed scales, which are then powers of two, and
through an output_scale, whose quotient is defined bitwise. ALiBi, a random qq_bias, a sink other than 0 and scales of tokens'
own, which are no powers of two, leave it to the bound.

Sources: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (IMA J. Numer. Anal. 2021);
Higham and Mary, "A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 2019).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from attn_contract import Layer
from attn_fuzz.case import Case
from attn_fuzz.poison import DTYPES, bits, canary
from attn_fuzz.tensors import Step
from attn_reference import Attention, Request, attend, dequantize, paged_requests, quantize, varlen_requests

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


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Where a kernel rounds: what a target declares so that the judge can be as strict as the kernel is precise.

    Args:
        keys_per_tile: keys of one step of the online softmax.
        dot_is_chained: a dot adds its products to the accumulator one after the other, instead of summing the tile first.
        splits: parts that the keys are split into, at most.
        exact_division: the output is the correctly rounded quotient when numerator and denominator are exact; cases of exact
            numbers are then compared bitwise.
    """

    keys_per_tile: int
    dot_is_chained: bool = False
    splits: int = 1
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


class Judgement(msgspec.Struct, frozen=True):
    """What the judge found in one step's outputs; `ratio` is the largest error / bound of a finite output."""

    differences: tuple[Difference, ...]
    ratio: float
    kind: Literal["agree", "value", "nan", "bitwise", "unwritten", "lse"]
    breaks_hard: bool
    """Whether the bound without statistics is broken too (always so for what is not a matter of a bound)."""


def judge(case: Case, step: Step, rounding: Rounding) -> Judgement:
    """Compare a step's `out` and `lse` with the oracle's, row by row of every request."""
    generic = case.values.kind == "random"
    exact = rounding.exact_division and has_exact_sums(case)
    out = step.out if step.out.dim() == 3 else step.out.unflatten(1, (case.num_heads, case.head_size))
    differences: list[Difference] = []
    kinds: list[str] = []
    worst, hard = 0.0, False
    for request in requests(step):
        stored = out[request.rows]
        got = _read(stored, step.layer)
        expected, tight, loose = _expect(request, step, rounding, DTYPES[case.dtype])
        if exact:
            quotient = _read(_stored_as(expected.exact_out, stored.dtype, step.layer), step.layer)
            found = _describe("out", request, got != quotient, got, quotient, tight.out * 0)
            if found:
                differences.append(found)
                kinds.append("unwritten" if _unwritten(stored, found, request) else "bitwise")
                hard = True
        else:
            bound = torch.minimum(tight.out, loose.out) if generic else loose.out
            error = (got - expected.out).abs()
            worst = max(worst, _ratio(error, bound))
            found = _describe("out", request, ~(error <= bound), got, expected.out, bound)
            if found:
                differences.append(found)
                kinds.append(_kind_of(stored, found, request))
                hard |= bool((~(error <= loose.out)).any())
        if step.lse is not None:
            got_lse = step.lse[:, request.rows].T
            error = torch.where(got_lse.double() == expected.lse, 0.0, (got_lse.double() - expected.lse).abs())
            bound = torch.minimum(tight.lse, loose.lse) if generic else loose.lse
            found = _describe("lse", request, ~(error <= bound), got_lse.double(), expected.lse, bound)
            worst = max(worst, _ratio(error, bound))
            if found:
                differences.append(found)
                kinds.append("lse")
                hard |= bool((~(error <= loose.lse)).any())
    kind = kinds[0] if kinds else "agree"
    return Judgement(tuple(differences), worst, kind, hard)  # pyright: ignore[reportArgumentType]


def has_exact_sums(case: Case) -> bool:
    """Whether every weight of a case is 1 over their number, and every sum of values exact."""
    equal_weights = case.sinks in (None, "off", "zero") and not case.alibi and case.qq_bias != "random"
    return case.values.kind == "exact" and equal_weights and not (case.cache is not None and case.cache.scales_tokens)


def requests(step: Step) -> Iterator[Request]:
    """The rows of every request with the float64 keys and values that they see, read by the reference."""
    if step.kv_cache is not None:
        return paged_requests(step.q, step.kv_cache, step.layer, step.batch, torch.float64)
    assert step.k is not None
    assert step.v is not None
    return varlen_requests(step.q, step.k, step.v, step.layer, step.batch, torch.float64)


@dataclass(frozen=True)
class _Expected:
    out: torch.Tensor
    lse: torch.Tensor
    exact_out: torch.Tensor


@dataclass(frozen=True)
class _Bound:
    out: torch.Tensor
    lse: torch.Tensor


def _expect(request: Request, step: Step, rounding: Rounding, dtype: torch.dtype) -> tuple[_Expected, _Bound, _Bound]:
    """Outputs [q, H, D] and LSE [q, H] in float64, and the bounds on both: with statistics, and HARD."""
    layer, out_dtype = step.layer, step.out.dtype
    sinks = layer.sinks.double() if layer.sinks is not None else None
    state = attend(request, layer)
    group = layer.num_heads // layer.num_kv_heads
    query = request.query.transpose(0, 1)  # [H, q, D]
    key = request.key.transpose(0, 1).repeat_interleave(group, 0)  # [H, k, D]
    value = request.value.transpose(0, 1).repeat_interleave(group, 0)
    seen = request.visible.any(0)[:, None]
    key, value = torch.where(seen, key, 0.0), torch.where(seen, value, 0.0)
    stored = _magnitudes_stored(value, layer)
    out = state.out.transpose(0, 1)  # [H, q, D]
    shown = _clamped(out, out_dtype, layer)
    w, visible = state.weights, request.visible
    s = torch.where(visible, state.logits, 0.0)
    sink = torch.full_like(out[:, :1, 0], -torch.inf) if sinks is None else sinks[:, None]
    highest = torch.where(visible, state.logits, -torch.inf).amax(-1) if w.shape[-1] else sink.expand(out.shape[:2])
    m = torch.maximum(highest, sink)  # [H, q]
    m = torch.where(m.isinf(), 0.0, m)
    denominator = torch.exp(torch.where(state.lse.isinf(), 0.0, state.lse - m))

    products2 = (query**2) @ (key**2).transpose(1, 2)
    products = query.abs() @ key.abs().transpose(1, 2)
    shift = 2 * s.abs() + 2 * (s - m[..., None]).abs() + 4 + _further_steps(request, state, layer)
    d = query.shape[-1]
    tiles = -(-key.shape[1] // rounding.keys_per_tile)
    terms = key.shape[1] if rounding.dot_is_chained else rounding.keys_per_tile
    steps = terms + 2 * tiles + rounding.splits
    sink_at = torch.where(sink.isinf(), 0.0, sink)
    sink_eps = U32 * (2 * sink_at.abs() + 2 * (sink_at - m).abs() + 4)
    sink_weight = torch.where(sink.isinf(), 0.0, torch.exp(sink_at - m) / denominator)
    is_quantized, is_scaled = layer.kv_cache_dtype is not None, layer.output_scale is not None
    u_weight = UNIT_ROUNDOFF[dtype] + 3 * U32 * is_quantized
    eta_out = UNDERFLOW[out_dtype] * (float(layer.output_scale) if layer.output_scale is not None else 1.0)

    def bound(eps: torch.Tensor, rounded: torch.Tensor, underflowed: torch.Tensor, accumulation: float) -> _Bound:
        eps = torch.where(visible, eps, 0.0)
        we = w * eps
        spread = (we @ value**2 - 2 * out * (we @ value) + out**2 * we.sum(-1, keepdim=True)).clamp(min=0)
        sensitivity = (we.sum(-1, keepdim=True) * spread).sqrt() + (sink_weight * sink_eps)[..., None] * out.abs()
        error = (
            u_weight * rounded
            + UNDERFLOW[dtype] / denominator[..., None] * underflowed
            + sensitivity
            + U32 * accumulation * (w @ value.abs())
            + 2 * U32 * (is_quantized + is_scaled) * out.abs()
        )
        # what is rounded at the end is the output with all these errors
        error = error + UNIT_ROUNDOFF[out_dtype] * (shown.abs() + error) + eta_out
        eps_max = eps.amax(-1) if eps.shape[-1] else torch.zeros_like(m)
        eps_max = torch.maximum(eps_max, torch.where(sink.isinf(), 0.0, sink_eps))
        lse = eps_max + U32 * (accumulation + torch.where(state.lse.isinf(), 0.0, state.lse).abs())
        return _Bound(error.transpose(0, 1), lse.T)

    tight = bound(
        U32 * (LAMBDA * d**0.5 * abs(layer.scale) * products2.sqrt() + shift),
        LAMBDA * ((w**2) @ (value**2)).sqrt(),
        LAMBDA * (stored**2).sum(1, keepdim=True).sqrt(),
        LAMBDA * steps**0.5,
    )
    loose = bound(
        U32 * ((d + 2) * abs(layer.scale) * products + shift),
        w @ value.abs(),
        stored.sum(1, keepdim=True),
        2.0 * steps,
    )
    # when every weight is 1, numerator and denominator are exact and float32 divides them correctly rounded
    count = denominator.float()[..., None]
    exact = torch.where(count > 0, (visible.double() @ value).float() / count, 0.0).transpose(0, 1)
    return _Expected(shown.transpose(0, 1), state.lse.T, exact), tight, loose


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
    largest = LARGEST[dtype] * float(layer.output_scale)
    return out.clamp(-largest, largest)


def _describe(
    tensor: Literal["out", "lse"],
    request: Request,
    wrong: torch.Tensor,
    got: torch.Tensor,
    expected: torch.Tensor,
    bound: torch.Tensor,
) -> Difference | None:
    """The worst of the wrong elements, [q, H, D] or [q, H]; those that are not finite come first."""
    if not wrong.any():
        return None
    error = (got - expected).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    excess = torch.where(wrong, error / bound.clamp(min=1e-300), -1.0)
    place = torch.unravel_index(excess.argmax(), wrong.shape)
    row, head, *dim = (int(index) for index in place)
    return Difference(
        request=request.index,
        tensor=tensor,
        row=request.rows.start + row,
        head=head,
        dim=dim[0] if dim else None,
        got=float(got[place]),
        expected=float(expected[place]),
        bound=float(bound[place]),
        rows=int(wrong.flatten(1).any(1).sum()),
    )


def _kind_of(got: torch.Tensor, found: Difference, request: Request) -> str:
    if _unwritten(got, found, request):
        return "unwritten"
    return "value" if abs(found.got) < float("inf") else "nan"


def _unwritten(got: torch.Tensor, found: Difference, request: Request) -> bool:
    element = got[found.row - request.rows.start, found.head, found.dim]
    return torch.equal(bits(element.reshape(1)), bits(canary((1,), got.dtype, got.device)))


def _ratio(error: torch.Tensor, bound: torch.Tensor) -> float:
    finite = torch.where(error.isfinite(), error / bound.clamp(min=1e-300), 0.0)
    return float(finite.max()) if finite.numel() else 0.0
