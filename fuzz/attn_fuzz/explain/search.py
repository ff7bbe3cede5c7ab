"""Searches the mistakes, and pairs of them, for one with the same output as a kernel."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.mistakes import MISTAKES, results
from attn_fuzz.mistakes.mistake import NOT_HERE, Change, Mistake
from attn_fuzz.mistakes.part import Part, parts_of
from attn_fuzz.verdict.oracle import Bound, Oracle, as_read, requests
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import attend

PAIR_SECONDS = 4.0
"""The seconds of the CPU for the search among pairs of mistakes."""
ENOUGH = 4
"""The number of outputs that a mistake must explain if there are that many: of the failing case, and of three richer ones."""
OF_OUTPUT = 0.125
"""The largest bound that is applied to an element, as a share of the row's largest element. To an LSE it is applied as it
is."""
OF_ERROR = 0.1
"""A pair is compared with the bound only if it brings the largest error below this share."""


class Explained(NamedTuple):
    """A mistake, or several applied one after the other, and the outputs that they explain.

    Args:
        outputs: the number of outputs that are explained, from the first on.
        everywhere: True if all rows of an output are the mistake's. If not, all wrong rows are, and other rows are right
            although the mistake would change them.
    """

    mistakes: tuple[Mistake, ...]
    outputs: int
    everywhere: bool

    @property
    def sentence(self) -> str:
        found = ", and ".join(mistake.sentence for mistake in self.mistakes)
        return found if self.everywhere else f"{found}, in the wrong rows alone"


@dataclass(frozen=True, eq=False)
class SeenOutput:
    """The outputs of a call as a kernel left them.

    Args:
        call: the call, with the cache as attention found it.
        out: [T, H, D] in the dtype of the output.
        lse: [H, T], or None.
        rounding, generic: as for `attn_fuzz.verdict.judge.judge_call`.
    """

    call: Call | Step
    out: torch.Tensor
    lse: torch.Tensor | None
    rounding: Rounding
    generic: bool

    @cached_property
    def parts(self) -> list[Part]:
        """The requests of the right call."""
        return parts_of(self.call, requests(self.call))

    @cached_property
    def right(self) -> list[torch.Tensor]:
        """For each part a bool [q, H]: True where the output is right."""
        return [self.agrees(part, most=torch.inf) for part in self.parts]

    @property
    def is_right(self) -> bool:
        return all(bool(right.all()) for right in self.right)

    def agrees(self, part: Part, most: float = OF_OUTPUT) -> torch.Tensor:
        """[q, H] bool: True where the output is that of a part, right or changed, within the bound.

        Args:
            most: the largest bound that is applied, as for OF_OUTPUT. A mistake that reads huge numbers has a bound so large
                that every output is within it.
        """
        rows = part.request.rows
        oracle = Oracle(part.request, part.layer, self.out.dtype, self.rounding, self.call.q.dtype)
        bound = oracle.hard_bound()
        if self.generic:
            bound = oracle.statistical_bound(bound)
        out, lse = oracle.out, oracle.lse
        if part.outputs is not None:
            out, lse = part.outputs(out, lse)
        got = self._read(rows)
        if most < torch.inf:
            largest = most * got.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True)
            bound = Bound(torch.minimum(bound.out, largest), bound.lse.clamp(max=most))
        good = self._within(got, out, bound.out).all(-1)
        if self.lse is not None:
            good &= self._within(self.lse[:, rows].T.double(), lse, bound.lse)
        return good

    def error(self, part: Part, where: torch.Tensor) -> float:
        """The largest difference from a part's output [q, H, D], in the rows and heads that `where` [q, H] names."""
        try:
            out = attend(part.request, part.layer).out
        except NOT_HERE:
            return torch.inf
        return float((self._read(part.request.rows) - out).abs().nan_to_num(nan=torch.inf)[where].max())

    def unwritten(self, part: Part) -> torch.Tensor:
        """[q, H] bool: True where no element of the output was written."""
        out = self.out[part.request.rows]
        return (bits(out) == bits(canary((1,), out.dtype, out.device))).all(-1)

    def _read(self, rows: slice) -> torch.Tensor:
        return as_read(self.out[rows], self.call.layer)

    @staticmethod
    def _within(got: torch.Tensor, right: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        return (got == right) | ((got - right).abs() <= bound)


def explanations(seen: Sequence[SeenOutput], *, most: int = 4, seconds: float = PAIR_SECONDS) -> list[Explained]:
    """Variants that explain everything wrong in all outputs, the best first. If no mistake does, pairs of mistakes.

    A mistake within a tile shows differently where there are several tiles. So mistakes that do not explain the richest outputs
    are returned, too, if they explain ENOUGH outputs, and none explains more.

    Args:
        seen: outputs of one kernel, each wrong somewhere. Those of the failing case come first, the richest last.
        most: the number of explanations to return.
        seconds: the time for the search for pairs.
    """
    if not seen:
        return []
    found = [_explains((mistake,), seen) for mistake in MISTAKES]
    explained = max(each.outputs for each in found)
    if explained < min(ENOUGH, len(seen)):
        return list(itertools.islice(_pairs(seen, time.process_time() + seconds), most))
    best = [each for each in found if each.outputs == explained]
    return sorted(best, key=lambda each: not each.everywhere)[:most]


def changed(part: Part, mistakes: Sequence[Mistake]) -> list[Part]:
    """A part after one mistake after the other, once for each combination of their sizes; empty if a mistake does not apply."""
    parts = [part]
    for mistake in mistakes:
        parts = [other for part in parts for change in mistake.changes if (other := _made(part, change)) is not None]
    return parts


def _made(part: Part, change: Change) -> Part | None:
    try:
        return change(part)
    except NOT_HERE:
        return None


def _leads_out(part: Part, mistakes: Sequence[Mistake]) -> bool:
    """True if the first mistake reads beyond the cache, where contents are unknown."""
    for change in mistakes[0].changes:
        try:
            change(part)
        except (IndexError, RuntimeError):
            return True
        except NOT_HERE:
            pass
    return False


def _explains(mistakes: tuple[Mistake, ...], seen: Sequence[SeenOutput]) -> Explained:
    """Mistakes, and the number of outputs that they explain before the first unexplained one.

    An output for which they lead out of the cache is passed over.
    """
    everywhere, explained = True, 0
    for each in seen:
        # wrong parts come first: most mistakes fail there
        for part, right in sorted(zip(each.parts, each.right, strict=True), key=lambda pair: bool(pair[1].all())):
            if right.all() and not everywhere:
                continue
            others = changed(part, mistakes)
            if not others and right.all():
                continue
            if not others and _leads_out(part, mistakes):
                break
            agreeing = [agrees for other in others if (right | (agrees := _agrees(each, other))).all()]
            if not agreeing:
                return Explained(mistakes, explained, everywhere)
            everywhere = everywhere and any(bool(agrees.all()) for agrees in agreeing)
        else:
            explained += 1
    return Explained(mistakes, explained, everywhere)


def _agrees(seen: SeenOutput, part: Part) -> torch.Tensor:
    try:
        return seen.agrees(part)
    except NOT_HERE:
        return torch.zeros((), dtype=torch.bool)


def _pairs(seen: Sequence[SeenOutput], until: float) -> Iterator[Explained]:
    """Pairs that explain everything in all rows. Most are ruled out by the first wrong part alone."""
    first = seen[0]
    part, right = next((part, right) for part, right in zip(first.parts, first.right, strict=True) if not right.all())
    least = OF_ERROR * first.error(part, ~right)
    if least == torch.inf:
        return
    others = [mistake for mistake in MISTAKES if mistake in results.OF_LSE or mistake not in results.MISTAKES]
    alone = [(mistake, changed(part, [mistake])) for mistake in others]
    for (one, made), (second, _) in itertools.product([each for each in alone if each[1]], repeat=2):
        if time.process_time() > until:
            return
        if one is second or not any(first.error(both, ~right) <= least for other in made for both in changed(other, [second])):
            continue
        found = _explains((one, second), seen)
        if found.outputs == len(seen) and found.everywhere:
            yield found
