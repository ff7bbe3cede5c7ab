"""Searches the mistakes for one with the same output as a kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.poison import bits, canary
from attn_fuzz.cases.tensors import Step
from attn_fuzz.mistakes import MISTAKES
from attn_fuzz.mistakes.mistake import NOT_HERE, Change, Mistake
from attn_fuzz.mistakes.part import Part, parts_of
from attn_fuzz.verdict.oracle import Bound, Oracle, as_read, requests
from attn_fuzz.verdict.rounding import Rounding

OF_OUTPUT = 0.125
"""The largest bound that is applied to an element, as a share of the row's largest element. To an LSE it is applied as it
is."""
LARGER = 2.0**10
"""The largest factor by which a bound grows with a result."""


class Explained(NamedTuple):
    """A mistake, and the outputs that it explains.

    Args:
        outputs: the number of outputs that are explained, from the first on.
        has_all: True if no output is left unexplained.
        everywhere: True if all rows of an output are the mistake's. If not, all wrong rows are, and other rows are right
            although the mistake would change them.
    """

    mistake: Mistake
    outputs: int
    everywhere: bool
    has_all: bool

    @property
    def sentence(self) -> str:
        return self.mistake.sentence if self.everywhere else f"{self.mistake.sentence}, in the wrong rows alone"


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
    def is_telling(self) -> bool:
        """True if a wrong row sees several keys: few mistakes have its output."""
        wrong = zip(self.parts, self.right, strict=True)
        return any(bool(((part.request.visible.sum(-1) > 2) & ~right.all(-1)).any()) for part, right in wrong)

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
        out, lse, bound = self.expected(part)
        got = self.read(rows)
        if most < torch.inf:
            largest = most * got.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True)
            bound = Bound(torch.minimum(bound.out, largest), bound.lse.clamp(max=most))
        good = self._within(got, out, bound.out).all(-1)
        if self.lse is not None:
            good &= self._within(self.lse[:, rows].T.double(), lse, bound.lse)
        return good

    def expected(self, part: Part) -> tuple[torch.Tensor, torch.Tensor, Bound]:
        """The out [q, H, D] and the LSE [q, H] of a part, and their bound."""
        oracle = Oracle(part.request, part.layer, self.out.dtype, self.rounding, self.call.q.dtype)
        bound = oracle.hard_bound()
        if self.generic:
            bound = oracle.statistical_bound(bound)
        if part.outputs is None:
            return oracle.out, oracle.lse, bound
        out, lse = part.outputs(oracle.out, oracle.lse)
        # a result that a mistake makes larger is rounded by more
        larger = (out.abs().amax(-1, keepdim=True) / oracle.out.abs().amax(-1, keepdim=True)).nan_to_num(1.0).clamp(1.0, LARGER)
        return out, lse, Bound(bound.out * larger, bound.lse)

    def unwritten(self, part: Part) -> torch.Tensor:
        """[q, H] bool: True where no element of the output was written."""
        out = self.out[part.request.rows]
        return (bits(out) == bits(canary((1,), out.dtype, out.device))).all(-1)

    def read(self, rows: slice) -> torch.Tensor:
        """Rows of the output [q, H, D], in float64."""
        return as_read(self.out[rows], self.call.layer)

    @staticmethod
    def _within(got: torch.Tensor, right: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        return (got == right) | ((got - right).abs() <= bound)


def explanations(seen: Sequence[SeenOutput], *, most: int = 4) -> list[Explained]:
    """The mistakes that explain everything wrong in the most outputs, from the first on; those that have all rows come first.

    Args:
        seen: outputs of one kernel, each wrong somewhere. Those of the failing case come first.
        most: the number of explanations to return.
    """
    found = [each for mistake in MISTAKES if (each := _explains(mistake, seen)).outputs]
    best = max(((each.has_all, each.outputs) for each in found), default=None)
    alike = [each for each in found if (each.has_all, each.outputs) == best]
    return sorted(alike, key=lambda each: not each.everywhere)[:most]


def changed(part: Part, mistake: Mistake) -> list[Part]:
    """A part after a mistake, once for each of its sizes; empty if the mistake does not apply."""
    return [other for change in mistake.changes if (other := _made(part, change)) is not None]


def _made(part: Part, change: Change) -> Part | None:
    try:
        return change(part)
    except NOT_HERE:
        return None


def _leads_out(part: Part, mistake: Mistake) -> bool:
    """True if a mistake reads beyond the cache, where contents are unknown."""
    for change in mistake.changes:
        try:
            change(part)
        except (IndexError, RuntimeError):
            return True
        except NOT_HERE:
            pass
    return False


def _explains(mistake: Mistake, seen: Sequence[SeenOutput]) -> Explained:
    """A mistake, and the number of outputs that it explains before the first unexplained one.

    An output for which it leads out of the cache is passed over.
    """
    everywhere, explained = True, 0
    for each in seen:
        # wrong parts come first: most mistakes fail there
        for part, right in sorted(zip(each.parts, each.right, strict=True), key=lambda pair: bool(pair[1].all())):
            if right.all() and not everywhere:
                continue
            others = changed(part, mistake)
            if not others and right.all():
                continue
            if not others and _leads_out(part, mistake):
                break
            agreeing = [agrees for other in others if (right | (agrees := _agrees(each, other))).all()]
            if not agreeing:
                return Explained(mistake, explained, everywhere, False)
            everywhere = everywhere and any(bool(agrees.all()) for agrees in agreeing)
        else:
            explained += 1
    return Explained(mistake, explained, everywhere, explained > 0)


def _agrees(seen: SeenOutput, part: Part) -> torch.Tensor:
    try:
        return seen.agrees(part)
    except NOT_HERE:
        return torch.zeros((), dtype=torch.bool)
