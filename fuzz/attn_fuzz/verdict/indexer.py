"""Judges an index layer: logits by a derived bound, and a selection by the logits that it was made of.

The right logit of a unit is that of `attn_reference.indexer`, in float64. A kernel's may differ by

    SUM_RELU   n u sum_h |w_h| sum_d |q_hd k_d| + eta (1 + sum_h |w_h|)      n = D + Hs + 4
    MAX        n u max_h sum_d |q_hd k_d| + eta                              n = D + 2

with k as it is read, scale included, and Hs the heads of a selection. u is 2^-23, which also bounds sums that are truncated
instead of rounded, as matrix units do. n counts roundings: one for each product, each of the D - 1 sums of a dot and each of
the Hs - 1 sums over heads, and those of the products with the scale and the weight, and with a factor that code splits off of
either. eta is 2^-126: a GPU may take smaller numbers for 0. A unit of several keys has the largest bound of its keys, because a
maximum moves no further than its operands.

A selection is right if it follows from some logits within the bounds: its units are distinct, seen and of the right number, the
forced ones are among them, and for the others `min over selected (I + bound) >= max over unselected (I - bound)`. If the judge
has the very logits from which a kernel selected, the bound is 0, and only ties are free.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from attn_contract import Batch, Indexer, IndexScore
from attn_contract.layer import SMALLEST_NORMAL
from attn_contract.validation import check_index_logits
from attn_reference.indexer import gather_index_keys, numbers_of, request_rows, score, seen_units

EPS32 = 2.0**-23
"""u: float32's epsilon, twice its unit roundoff, so that terms of second order can be left out."""


@dataclass(frozen=True)
class IndexOracle:
    """The right logits of a step, and the largest error that a kernel may make: [HS, T, units] float64.

    Both are -inf where a row does not see a unit.
    """

    logits: torch.Tensor
    bound: torch.Tensor


def index_oracle(
    q: torch.Tensor, weights: torch.Tensor | None, index_cache: torch.Tensor, indexer: Indexer, batch: Batch
) -> IndexOracle:
    """The oracle of a call of `attn_reference.index_logits`, whose arguments these are."""
    view = check_index_logits(q, weights, index_cache, indexer, batch, values=True)
    shape = (indexer.num_selections, len(q), indexer.num_units(batch.max_seq_len))
    logits = torch.full(shape, -torch.inf, dtype=torch.float64, device=q.device)
    bound = logits.clone()
    heads = indexer.num_heads // indexer.num_selections
    roundings = indexer.head_size + (2 if indexer.score is IndexScore.MAX else heads + 4)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        keys = gather_index_keys(index_cache, indexer, batch, r, view)
        own, w = numbers_of(q[rows]), None if weights is None else weights[rows].double()
        of_units = score(own, w, keys, p, indexer)
        magnitudes = score(own.abs(), None if w is None else w.abs(), keys.abs(), p, indexer)
        smallest = SMALLEST_NORMAL * (1 + (0 if w is None else w.abs().sum(1)[:, None]))
        logits[:, rows, : of_units.shape[-1]] = of_units
        bound[:, rows, : of_units.shape[-1]] = roundings * EPS32 * magnitudes + smallest
    return IndexOracle(logits, bound)


class WrongLogits(NamedTuple):
    """The fault of logits: a kind of verdict, one line, and the largest error / bound of a finite logit."""

    kind: Literal["value", "nan"]
    message: str
    ratio: float


def wrong_logits(oracle: IndexOracle, got: torch.Tensor, indexer: Indexer, batch: Batch) -> WrongLogits | None:
    """The fault of logits [HS, T, units or more]; None if they are right. Forced units may have any logit.

    The kind is "nan" if a wrong logit is NaN or infinite.
    """
    got = got[..., : oracle.logits.shape[-1]].double()
    judged = (oracle.logits > -torch.inf) & ~_forced(oracle.logits, indexer, batch)
    error = (got - oracle.logits).abs().nan_to_num(nan=torch.inf)
    wrong = judged & (error > oracle.bound)
    if not wrong.any():
        return None
    ratio = torch.where(wrong, error / oracle.bound, -1.0)
    place = tuple((ratio == ratio.amax()).nonzero()[0].tolist())
    selection, row, unit = place
    message = (
        f"logit of unit {unit} at row {row}, selection {selection}: got {float(got[place]):.9g}, expected "
        f"{float(oracle.logits[place]):.9g} +- {float(oracle.bound[place]):.2g}; {int(wrong.sum())} logits are wrong"
    )
    finite = ratio.isfinite()
    return WrongLogits("value" if finite.all() else "nan", message, float(torch.where(finite, ratio, 0.0).amax()))


def wrong_selection(
    selected: torch.Tensor, logits: torch.Tensor, indexer: Indexer, batch: Batch, bound: torch.Tensor | None = None
) -> str | None:
    """The fault of a selection, in one line; None if it is right.

    Args:
        selected: [HS, T, W] integers; a negative entry is no unit.
        logits: [HS, T, units or more] that it was made of, or, with a bound, the right ones.
        indexer, batch: the terms and the step of the call.
        bound: the bound of the logits' errors; None: the logits are exact.
    """
    entries = selected.tolist()
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        seen = seen_units(p, indexer).tolist()
        for row, n, position in zip(range(rows.start, rows.stop), seen, p.tolist(), strict=True):
            has_open = indexer.has_open_unit and position >= 0 and (position + 1) % indexer.selection_unit != 0
            for s in range(indexer.num_selections):
                units = [unit for unit in entries[s][row] if unit >= 0]
                own = logits[s, row, :n].tolist()
                slack = [0.0] * n if bound is None else bound[s, row, :n].tolist()
                if wrong := _wrong_row(units, own, slack, indexer, position // indexer.selection_unit if has_open else None):
                    return f"row {row}, selection {s}, which sees {n} units: {wrong}"
    return None


def _wrong_row(
    units: list[int], logits: list[float], bound: list[float], indexer: Indexer, open_unit: int | None
) -> str | None:
    """The fault of the units of one row, in one line. The logits [n] are those of the units that it sees."""
    n, chosen = len(logits), set(units)
    if len(chosen) < len(units):
        return f"unit {next(unit for unit in units if units.count(unit) > 1)} is selected twice"
    if open_unit is not None:
        if open_unit not in chosen:
            return f"the open unit {open_unit} is not selected"
        chosen.remove(open_unit)
    if beyond := sorted(unit for unit in chosen if unit >= n):
        return f"unit {beyond[0]} is selected, which the row does not see"
    if len(chosen) != min(indexer.top_k, n):
        return f"{len(chosen)} units are selected, expected {min(indexer.top_k, n)} (top_k is {indexer.top_k})"
    forced = {*range(min(indexer.first_units, n)), *range(max(n - indexer.last_units, 0), n)}
    if missing := sorted(forced - chosen):
        return (
            f"unit {missing[0]} is not selected, which is one of the first {indexer.first_units} or last {indexer.last_units}"
        )
    free, others = sorted(chosen - forced), sorted(set(range(n)) - chosen)
    if not free or not others:
        return None
    worst = min(free, key=lambda unit: _rank(logits[unit] + bound[unit]))
    best = max(others, key=lambda unit: _rank(logits[unit] - bound[unit]))
    if _rank(logits[worst] + bound[worst]) >= _rank(logits[best] - bound[best]):
        return None
    return f"unit {worst} is selected with the logit {logits[worst]:.9g}, and unit {best} is not with {logits[best]:.9g}"


def _rank(logit: float) -> tuple[bool, float]:
    """The place of a logit in the order of logits: NaN is less than every number."""
    return (not math.isnan(logit), 0.0 if math.isnan(logit) else logit)


def _forced(logits: torch.Tensor, indexer: Indexer, batch: Batch) -> torch.Tensor:
    """[T, units]: the units that a row selects for any logits."""
    forced = torch.zeros(logits.shape[1:], dtype=torch.bool, device=logits.device)
    units = torch.arange(logits.shape[-1], device=logits.device)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        n = seen_units(p, indexer)[:, None]
        forced[rows] = (units < indexer.first_units) | ((units >= n - indexer.last_units) & (units < n))
    return forced
