"""Draws the cases of a plan by Hypothesis, and hands each one on."""

import contextlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.errors
from attn_fuzz.cases.case import Case
from attn_fuzz.strategies import families
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets.support import DeclarationError
from attn_fuzz.targets.target import Target
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

if TYPE_CHECKING:
    from attn_fuzz.run.shard import FuzzPlan

MAX_REASONS = 5
"""The most reasons that an error names."""


class _Enough(Exception):  # noqa: N818 - ends a run, is no error
    pass


def draw_cases(plan: "FuzzPlan", target: Target, draw: Callable[[Case, int], None], tally: Tally) -> None:
    """Draw the plan's cases, and hand each one whose turn it is to `draw`, with its number from 1 on among all that are drawn,
    until `draw` raises.

    Hypothesis runs the example that failed once more. Its choices must then give the same case, so a failing family is not
    added to the tally.

    Raises:
        DeclarationError: the target's Support admits no case that can be drawn.
    """
    support = target.support(plan.device)
    num_drawn, num_families, is_simplest = 0, 0, True
    turn, turns = plan.turn
    part, parts = plan.part

    @st.composite
    def after_the_simplest(draw: st.DrawFn) -> tuple[Case, ...]:
        """Hypothesis begins with the simplest family, whatever the seed: a shard on a GPU may have room for no other one."""
        nonlocal is_simplest
        family = draw(families(plan.target, support, target.refuses, tally))
        if is_simplest:
            is_simplest = False
            hypothesis.reject()
        return family

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        INDEPENDENT,
        max_examples=plan.examples,
        phases=[Phase.generate],  # `attn_fuzz.run.shrink` shrinks
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(after_the_simplest())
    def agree(family: tuple[Case, ...]) -> None:
        nonlocal num_drawn, num_families
        has_turn = num_families % turns == turn
        runs = [has_turn and i * parts // len(family) == part for i in range(len(family))]
        for i, (case, is_run) in enumerate(zip(family, runs, strict=True)):
            if num_drawn == plan.examples:
                raise _Enough
            tally.families += is_run and i == 0
            if is_run:
                draw(case, num_drawn + 1)
            num_drawn += 1
        num_families += 1
        for case in family:
            tally.add(case)

    with contextlib.suppress(_Enough), warnings.catch_warnings():
        # at the end of a run Hypothesis writes the repr of the whole family, and warns about its length
        warnings.filterwarnings("ignore", "Generating overly large repr", hypothesis.errors.HypothesisWarning)
        try:
            agree()
        except hypothesis.errors.Unsatisfiable as error:
            raise DeclarationError(_admits_nothing(plan.target, tally)) from error


def _admits_nothing(target: str, tally: Tally) -> str:
    """The reasons for which every drawn case was discarded: what `exclude` returns, or what no field admits."""
    told = "; ".join(
        f"{count} for {reason.replace('excluded: ', 'Support.exclude: ', 1)}"
        for reason, count in tally.rejected.most_common(MAX_REASONS)
    )
    return f"target {target}: its Support admits none of {tally.rejected.total()} drawn cases: {told}"
