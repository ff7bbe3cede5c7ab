"""Judges all requests of a launch together, by the bound of `attn_fuzz.verdict.judge`.

The judge makes about a hundred small operations for each request, and a launch of an exhaustive run has many small
requests. Here the requests are padded to one size, and the oracle is mapped over them by torch.func.vmap: as many
operations, once. Padding is invisible: a padded key is seen by no query, so it has no weight, and a padded row is cut off.
The number of keys enters the bound in one place, as the number of terms of a sum (`CallRounding.terms`), so only requests
with as many terms are judged together.

If any element is beyond its bound, the judge itself judges the launch again, request by request, and its judgement counts.
"""

from collections.abc import Iterable, Sequence

import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.judge import Judgement, has_exact_sums, judge
from attn_fuzz.verdict.oracle import Oracle, as_read, requests
from attn_fuzz.verdict.rounding import CallRounding, Rounding
from attn_fuzz.verdict.verdict import Verdict
from attn_reference import Request

FEWEST = 4
"""Requests of a launch that are judged together. Mapping the oracle costs as much as judging about three requests."""


def try_launch(case: Case, target: Target, device: str, *, exactly: bool = False) -> Verdict:
    """`attn_fuzz.run.case.trial.try_case`, with all requests judged together. In exact mode, a packed launch is one call: the
    formula is evaluated for each of its requests, and every element is compared."""
    return try_case(case, target, device, judge_step=judge_together, exactly=exactly)


def judge_together(case: Case, step: Step, rounding: Rounding) -> Judgement:
    """`attn_fuzz.verdict.judge.judge`, in less time if the step has many requests of few keys."""
    if len(case.requests) < FEWEST or (rounding.exact_division and has_exact_sums(case)):
        return judge(case, step, rounding)
    layer = step.layer
    out = step.out if step.out.dim() == 3 else step.out.unflatten(1, (layer.num_heads, layer.v_head_size))
    of_bound = {"out": torch.zeros(out.shape, dtype=torch.float64, device=out.device)}
    if step.lse is not None:
        of_bound["lse"] = torch.zeros(out.shape[:2], dtype=torch.float64, device=out.device)
    generic = case.values.kind == "random"
    for group in _alike(requests(step), rounding, step):
        right = _oracle(group, step, out.dtype, rounding, generic)
        rows = torch.cat([torch.arange(request.rows.start, request.rows.stop) for request in group]).to(out.device)
        owned = (torch.arange(right[0].shape[1]) < torch.tensor([[len(request.query)] for request in group])).to(out.device)
        stored = {"out": as_read(out, layer), **({} if step.lse is None else {"lse": step.lse.T.double()})}
        for name, expected, bound in (("out", right[0], right[2]), ("lse", right[1], right[3])):
            if name in of_bound:
                of_bound[name][rows] = _of_bound(stored[name][rows], expected[owned], bound[owned])
    largest = max((float(ratio.max()) for ratio in of_bound.values() if ratio.numel()), default=0.0)
    if largest > 1:
        return judge(case, step, rounding)
    return Judgement(differences=(), ratio=largest, kind="agree", breaks_hard=False, of_bound=of_bound, bitwise=False)


def _alike(found: Iterable[Request], rounding: Rounding, step: Step) -> list[list[Request]]:
    """The requests in groups that have as many terms in a sum over their keys."""
    terms = CallRounding(rounding=rounding, layer=step.layer, dtype=step.q.dtype, out_dtype=step.out.dtype).terms
    groups: dict[int, list[Request]] = {}
    for request in found:
        groups.setdefault(terms(len(request.key)), []).append(request)
    return list(groups.values())


def _oracle(
    group: list[Request], step: Step, out_dtype: torch.dtype, rounding: Rounding, generic: bool
) -> tuple[torch.Tensor, ...]:
    """The right out [n, q, H, D] and LSE [n, q, H] of n requests, and the bounds of both."""
    most_queries = max(len(request.query) for request in group)
    most_keys = max(len(request.key) for request in group)

    def of_one(query, key, value, visible, positions, bias):
        request = Request(0, slice(0, most_queries), query, key, value, visible, positions, bias)
        oracle = Oracle(request, step.layer, out_dtype, rounding, step.q.dtype)
        hard = oracle.hard_bound()
        bound = oracle.statistical_bound(hard) if generic else hard
        return oracle.out, oracle.lse, bound.out, bound.lse

    sizes = {
        "query": (most_queries, None, None),
        "key": (most_keys, None, None),
        "value": (most_keys, None, None),
        "visible": (most_queries, most_keys),
        "query_positions": (most_queries,),
        "bias": (None, most_queries, most_keys),
    }
    padded = [_padded([getattr(request, name) for request in group], size) for name, size in sizes.items()]
    in_dims = tuple(None if tensor is None else 0 for tensor in padded)
    return torch.func.vmap(of_one, in_dims=in_dims)(*padded)


def _padded(tensors: Sequence[torch.Tensor | None], size: tuple[int | None, ...]) -> torch.Tensor | None:
    """The tensors stacked, each padded with zeros to a size; None if there are none. A size of None is the tensors' own."""
    first = tensors[0]
    if first is None:
        return None
    shape = [own if wanted is None else wanted for own, wanted in zip(first.shape, size, strict=True)]
    stacked = first.new_zeros((len(tensors), *shape))
    for place, tensor in zip(stacked, tensors, strict=True):
        assert tensor is not None
        place[tuple(slice(length) for length in tensor.shape)] = tensor
    return stacked


def _of_bound(got: torch.Tensor, right: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Error / bound of each element: infinite where a number is NaN, 0 where both are the same infinity."""
    error = torch.where(got == right, 0.0, (got - right).abs().nan_to_num(nan=torch.inf))
    return torch.where(error == 0, 0.0, (error / bound).nan_to_num(nan=torch.inf, posinf=torch.inf))
