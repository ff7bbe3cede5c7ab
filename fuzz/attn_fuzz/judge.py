"""Is an output right? A bound on every element's error, derived from the case's own numbers.

The oracle computes in float64 on the stored values that the kernel reads. Per row, with s the logits, m their maximum (sink
included), w the softmax weights, l the denominator relative to m, o the output, u = eps / 2 of a dtype and eta half its
smallest normal or subnormal step, an output element may differ from o_c by

    u_out (|o_c| + the rest) + eta_out                   output rounding
    + lam u_P norm2(w v_c)                               P rounded to V's dtype before P.V
    + lam (eta_P / l) norm2(v_c)                         P underflow
    + sum_j w_j |v_jc - o_c| eps_j                       error of logit j times exact sensitivity
    + lam u32 sqrt(B + 2 T + S) sum_j w_j |v_jc|         float32 accumulation: B terms in a row, T tiles, S splits
    eps_j = u32 (lam sqrt(D) A2_j + 2 |s_j| + 2 |s_j - m| + 4),  A2_j = |scale| sqrt(sum (q k_j)^2)

and the LSE by max_j eps_j + u32 (lam sqrt(B + 2 T + S) + |lse|). Rounding errors of generic numbers are independent, and
lam = 6 leaves each element a chance of 3e-8 (Hoeffding). Structured numbers make errors correlate: HARD is the same bound
without statistics, norm2 becomes a sum of magnitudes, sqrt(D) A2 becomes (D + 2) A with A_j = |scale| sum |q k_j|, and
lam sqrt(B + 2 T + S) becomes 2 (B + 2 T + S). A breach of HARD is always a bug.

B is the keys of a tile where a tile is summed before it joins the accumulator, and all keys where a dot adds each product to
the accumulator in turn, as float32 dots do on GPUs: thousands of nearly equal weights then round the same way.

The sensitivity is bounded by Cauchy and Schwarz, sum w eps |v - o| <= sqrt(sum w eps) sqrt(sum w eps (v - o)^2), which needs
matrix products only. A sink is one more key whose value is 0.

Sources: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (IMA J. Numer. Anal. 2021);
Higham and Mary, "A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 2019).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from attn_fuzz.case import Case
from attn_fuzz.tensors import CANARY, DTYPES, Step, bits
from attn_reference import Request, attend, paged_requests, varlen_requests

LAMBDA = 6.0
U32 = 2.0**-24
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# GPUs may flush float32 and bfloat16 subnormals to zero; half of float16's smallest subnormal is 2^-25
UNDERFLOW = {torch.float32: 2.0**-126, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126}


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
    exact = rounding.exact_division and case.values.kind == "exact" and case.sinks in (None, "off", "zero")
    out = step.out if step.out.dim() == 3 else step.out.unflatten(1, (case.num_heads, case.head_size))
    differences: list[Difference] = []
    kinds: list[str] = []
    worst, hard = 0.0, False
    for request in requests(step):
        got = out[request.rows]
        expected, tight, loose = _expect(request, step, rounding, DTYPES[case.dtype])
        if exact:
            quotient = expected.exact_out.to(got.dtype)
            wrong = got != quotient
            found = _describe("out", request, wrong, got.double(), quotient.double(), tight.out * 0)
            if found:
                differences.append(found)
                kinds.append("unwritten" if _unwritten(got, found, request) else "bitwise")
                hard = True
        else:
            bound = torch.minimum(tight.out, loose.out) if generic else loose.out
            error = (got.double() - expected.out).abs()
            wrong = ~(error <= bound)
            worst = max(worst, _ratio(error, bound))
            found = _describe("out", request, wrong, got.double(), expected.out, bound)
            if found:
                differences.append(found)
                kinds.append(_kind_of(got, found, request))
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
    layer = step.layer
    sinks = layer.sinks.double() if layer.sinks is not None else None
    state = attend(request.query, request.key, request.value, request.visible, layer.scale, sinks)
    group = layer.num_heads // layer.num_kv_heads
    query = request.query.transpose(0, 1)  # [H, q, D]
    key = request.key.transpose(0, 1).repeat_interleave(group, 0)  # [H, k, D]
    value = request.value.transpose(0, 1).repeat_interleave(group, 0)
    seen = request.visible.any(0)[:, None]
    key, value = torch.where(seen, key, 0.0), torch.where(seen, value, 0.0)
    out = state.out.transpose(0, 1)  # [H, q, D]
    w, visible = state.weights, request.visible
    s = torch.where(visible, state.logits, 0.0)
    sink = torch.full_like(out[:, :1, 0], -torch.inf) if sinks is None else sinks[:, None]
    highest = torch.where(visible, state.logits, -torch.inf).amax(-1) if w.shape[-1] else sink.expand(out.shape[:2])
    m = torch.maximum(highest, sink)  # [H, q]
    m = torch.where(m.isinf(), 0.0, m)
    denominator = torch.exp(torch.where(state.lse.isinf(), 0.0, state.lse - m))

    products2 = (query**2) @ (key**2).transpose(1, 2)
    products = query.abs() @ key.abs().transpose(1, 2)
    shift = 2 * s.abs() + 2 * (s - m[..., None]).abs() + 4
    d = query.shape[-1]
    tiles = -(-key.shape[1] // rounding.keys_per_tile)
    terms = key.shape[1] if rounding.dot_is_chained else rounding.keys_per_tile
    steps = terms + 2 * tiles + rounding.splits
    sink_at = torch.where(sink.isinf(), 0.0, sink)
    sink_eps = U32 * (2 * sink_at.abs() + 2 * (sink_at - m).abs() + 4)
    sink_weight = torch.where(sink.isinf(), 0.0, torch.exp(sink_at - m) / denominator)

    def bound(eps: torch.Tensor, rounded: torch.Tensor, underflowed: torch.Tensor, accumulation: float) -> _Bound:
        eps = torch.where(visible, eps, 0.0)
        we = w * eps
        spread = (we @ value**2 - 2 * out * (we @ value) + out**2 * we.sum(-1, keepdim=True)).clamp(min=0)
        sensitivity = (we.sum(-1, keepdim=True) * spread).sqrt() + (sink_weight * sink_eps)[..., None] * out.abs()
        error = (
            UNIT_ROUNDOFF[dtype] * rounded
            + UNDERFLOW[dtype] / denominator[..., None] * underflowed
            + sensitivity
            + U32 * accumulation * (w @ value.abs())
        )
        # what is rounded at the end is the output with all these errors
        error = error + UNIT_ROUNDOFF[dtype] * (out.abs() + error) + UNDERFLOW[dtype]
        eps_max = eps.amax(-1) if eps.shape[-1] else torch.zeros_like(m)
        eps_max = torch.maximum(eps_max, torch.where(sink.isinf(), 0.0, sink_eps))
        lse = eps_max + U32 * (accumulation + torch.where(state.lse.isinf(), 0.0, state.lse).abs())
        return _Bound(error.transpose(0, 1), lse.T)

    tight = bound(
        U32 * (LAMBDA * d**0.5 * abs(layer.scale) * products2.sqrt() + shift),
        LAMBDA * ((w**2) @ (value**2)).sqrt(),
        LAMBDA * (value**2).sum(1, keepdim=True).sqrt(),
        LAMBDA * steps**0.5,
    )
    loose = bound(
        U32 * ((d + 2) * abs(layer.scale) * products + shift),
        w @ value.abs(),
        value.abs().sum(1, keepdim=True),
        2.0 * steps,
    )
    # when every weight is 1, numerator and denominator are exact integers and float32 divides them correctly rounded
    count = denominator.float()[..., None]
    exact = torch.where(count > 0, (visible.double() @ value).float() / count, 0.0).transpose(0, 1)
    return _Expected(state.out, state.lse.T, exact), tight, loose


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
    return bits(element.reshape(1)).item() == _signed(CANARY[got.dtype], got.dtype)


def _signed(pattern: int, dtype: torch.dtype) -> int:
    width = 8 * dtype.itemsize
    return pattern - (1 << width) if pattern >> (width - 1) else pattern


def _ratio(error: torch.Tensor, bound: torch.Tensor) -> float:
    finite = torch.where(error.isfinite(), error / bound.clamp(min=1e-300), 0.0)
    return float(finite.max()) if finite.numel() else 0.0
