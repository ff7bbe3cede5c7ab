"""Judges outputs: compares each element with the reference, within the bounds of `attn_fuzz.verdict.oracle`."""

import itertools
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.verdict.oracle import Oracle, as_read, as_stored, requests
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import Request
from attn_reference.attention import ROWS_AT_ONCE

MAX_SCORES = 1 << 26
"""The most scores that the reference may hold at once: float64, so half a gigabyte."""


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
    """The number of rows of the request that differ."""
    first: int = 0
    """The first of these rows, of q."""

    def __str__(self) -> str:
        where = f"row {self.row}, head {self.head}" + (f", dim {self.dim}" if self.dim is not None else "")
        rows = f"; {self.rows} rows are wrong, the first is row {self.first}" if self.rows > 1 else ""
        return (
            f"{self.tensor} of request {self.request} at {where}: got {self.got:.9g}, expected {self.expected:.9g} "
            f"+- {self.bound:.2g}{rows}"
        )


class Judgement(msgspec.Struct, frozen=True):
    """The judge's result for one step's outputs.

    Attributes:
        differences: the worst element of each request and tensor that is wrong.
        ratio: the largest error / bound of a finite output.
        kind: the kind of the first difference.
        breaks_hard: True if an error is larger than the bound without statistics, too. A number that is NaN, or that differs
            from one that it must equal bitwise, breaks every bound.
        of_bound: error / bound of every element of "out" [T, H, Dv], and of "lse" [T, H] if the step has an LSE. It is 0 in
            rows of no request. It is infinite where a number is NaN, or differs from one that it must equal bitwise.
        bitwise: True if `out` was compared bitwise.
        compared: what was compared, request by request. None of a live call: a recording keeps judgements, and the keys of a
            server's requests are large.
        statistical_ratio: only of a live call (`attn_fuzz.check`): the ratio by the bound with statistics, whichever bound
            decided.
    """

    differences: tuple[Difference, ...]
    ratio: float
    kind: Literal["agree", "value", "nan", "bitwise", "unwritten", "lse"]
    breaks_hard: bool
    of_bound: dict[str, torch.Tensor]
    bitwise: bool
    compared: "tuple[Compared, ...]" = ()
    statistical_ratio: float | None = None

    @property
    def is_unlikely(self) -> bool:
        """True if a live call agrees, but by the bound HARD alone: independent roundings do not add up to such an error."""
        return self.agrees and self.statistical_ratio is not None and self.statistical_ratio > 1

    @property
    def agrees(self) -> bool:
        return self.kind == "agree"

    @property
    def message(self) -> str:
        """The worst difference in one line; empty if the outputs agree."""
        return str(self.differences[0]) if self.differences else ""

    def raise_for_differences(self) -> None:
        """Raise a DisagreementError with the worst element of each request, unless all agree."""
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
        call: the call that was made.
        out: [T, H, Dv] or [T, H * Dv] of q's dtype, or float8 with an output_scale.
        lse: [H, T] float32, or None.
        rounding: the rounding of the kernel that attended.
        generic: True if the numbers are independent of each other. Then the bound with statistics decides, else HARD.
        exact: True if all weights of a row are equal and every sum is exact, so that `out` is compared bitwise.

    Raises:
        ContractError: the call contradicts the contract.
    """
    layer = call.layer
    out = out if out.dim() == 3 else out.unflatten(1, (layer.num_heads, layer.v_head_size))
    of_bound = {"out": torch.zeros(out.shape, dtype=torch.float64, device=out.device)}
    if lse is not None:
        of_bound["lse"] = torch.zeros(out.shape[:2], dtype=torch.float64, device=out.device)
    compared: list[Compared] = []
    for request in requests(call):
        stored = out[request.rows]
        oracle = Oracle(request, layer, stored.dtype, rounding, call.q.dtype)
        hard = None if exact and lse is None else oracle.hard_bound()
        bound = oracle.statistical_bound(hard) if generic and hard is not None else hard
        if exact:
            right = as_read(as_stored(oracle.exact_out, stored.dtype, layer), layer)
            compared.append(Compared(request, "out", as_read(stored, layer), right, torch.zeros_like(right), None))
        elif bound is not None and hard is not None:
            compared.append(Compared(request, "out", as_read(stored, layer), oracle.out, bound.out, hard.out))
        if lse is not None and bound is not None and hard is not None:
            compared.append(Compared(request, "lse", lse[:, request.rows].T.double(), oracle.lse, bound.lse, hard.lse))
    for part in compared:
        of_bound[part.tensor][part.request.rows] = part.of_bound
    # one transfer from the device, and more only if something is wrong
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
        compared=tuple(compared),
    )


@dataclass(frozen=True)
class Compared:
    """One request's rows of one tensor and those of the oracle, [q, H, D] or [q, H] in float64. Without a `hard` bound the rows
    are compared bitwise."""

    request: Request
    tensor: Literal["out", "lse"]
    got: torch.Tensor
    right: torch.Tensor
    bound: torch.Tensor
    hard: torch.Tensor | None

    @property
    def error(self) -> torch.Tensor:
        """The absolute differences. They are infinite where a number is NaN, and 0 where both are the same infinity."""
        return torch.where(self.got == self.right, 0.0, (self.got - self.right).abs().nan_to_num(nan=torch.inf))

    @property
    def of_bound(self) -> torch.Tensor:
        error = self.error
        return torch.where(error == 0, 0.0, (error / self.bound).nan_to_num(nan=torch.inf, posinf=torch.inf))

    def is_wrong(self) -> bool:
        return bool((self.of_bound > 1).any())

    def breaks_hard(self) -> bool:
        return self.hard is None or bool((self.error > self.hard).any())

    def difference(self) -> Difference:
        """The worst of the wrong elements. An element that is not finite is worse than any other."""
        ratio = self.of_bound
        # torch.unravel_index imports sympy, which takes longer than a case
        place = tuple((ratio == ratio.amax()).nonzero()[0].tolist())
        row, head, *dim = place
        wrong_rows = (ratio > 1).flatten(1).any(1)
        return Difference(
            request=self.request.index,
            tensor=self.tensor,
            row=self.request.rows.start + row,
            head=head,
            dim=dim[0] if dim else None,
            got=float(self.got[place]),
            expected=float(self.right[place]),
            bound=float(self.bound[place]),
            rows=int(wrong_rows.sum()),
            first=self.request.rows.start + int(wrong_rows.nonzero()[0]),
        )

    def kind(self, out: torch.Tensor) -> Literal["value", "nan", "bitwise", "unwritten", "lse"]:
        """The kind of failure of the worst element.

        Args:
            out: as the target left it.
        """
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
    """Check that the scores that the reference computes fit in memory.

    Raises:
        CaseError: they do not.
    """
    scores = case.num_heads * max((min(r.query_len, ROWS_AT_ONCE) * case.num_keys(r) for r in case.requests), default=0)
    if scores > MAX_SCORES:
        raise CaseError(f"case: the reference would hold {scores} scores at once, expected at most {MAX_SCORES}")


def judge_finite(step: Step) -> Judgement:
    """Judge without an oracle: each row of a request must be written and hold finite numbers. An LSE may also be -inf."""
    out = step.out.reshape(-1, step.layer.num_heads, step.layer.v_head_size)
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
                    first=start + int(rows[start:end].nonzero()[0]),
                )
            )
    return Judgement(tuple(differences), 0.0, kind, breaks_hard=True, of_bound={}, bitwise=False)


def has_exact_sums(case: Case) -> bool:
    """True if all weights of a row are equal and every sum of values is exact, in a case."""
    equal_weights = case.sinks in (None, "off", "zero") and not case.alibi_slopes and case.qq_bias in (None, "tree")
    return case.values.kind == "exact" and equal_weights and not (case.cache is not None and case.cache.scales_tokens)
