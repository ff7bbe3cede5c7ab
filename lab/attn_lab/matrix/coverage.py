"""Counts how often the fuzzer draws each feature and each pair of features, in the cases of a profile.

Nothing is run. A pair that no case can have says why (`attn_fuzz.cases.features.undefined`); every other pair must be drawn.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations, repeat

import msgspec
from attn_fuzz.cases.features import FEATURES, features, undefined
from attn_fuzz.report.drawn import can_have
from attn_fuzz.run import shard
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import EVERYTHING

NAMES = [feature.name for feature in FEATURES if can_have(EVERYTHING, feature)]
"""The features that are counted: all but those of latent caches, which are drawn only for targets that name them."""


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of cases with each feature and with each pair of features.

    Attributes:
        examples: cases drawn.
        single, pairs: cases by feature and by pair of features, which stand in the order of FEATURES.
        refused: by side and feature, why the side refuses every one of the cases that have the feature.
    """

    examples: int
    single: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]
    refused: Mapping[str, Mapping[str, str]]


def cover(
    plans: Sequence[FuzzPlan], workers: int, sides: Sequence[str] = (), report: Callable[[int], None] = lambda examples: None
) -> Coverage:
    """Draw the cases of all plans and count; the counts do not depend on the number of workers.

    Args:
        plans: shards; see `runner.shards`.
        workers: processes at once.
        sides: targets whose support is asked about every case.
        report: called with the number of cases drawn so far.

    Raises:
        TargetError: a plan's target or a side cannot be loaded.
    """
    examples, single, pairs = 0, Counter[str](), Counter[tuple[str, str]]()
    refusals = {side: _Refusals() for side in sides}
    with ProcessPoolExecutor(min(workers, len(plans)), prepared.spawn, prepared.end_with_parent) as pool:
        with prepared.interrupts_later():
            shards = pool.map(_draw, plans, repeat(sides))
        for of_plan in shards:
            for found, reasons in of_plan:
                single.update(found)
                pairs.update(combinations(found, 2))
                for side, reason in reasons.items():
                    refusals[side].add(found, reason)
            examples += len(of_plan)
            report(examples)
    refused = {side: refusals[side].sentences(single) for side in sides}
    return Coverage(examples=examples, single=single, pairs=pairs, refused=refused)


def missing(coverage: Coverage) -> list[tuple[str, str]]:
    """Pairs that a case could have, and that no drawn case had."""
    return [pair for pair in combinations(NAMES, 2) if not undefined(*pair) and not coverage.pairs.get(pair)]


def impossible(coverage: Coverage) -> list[tuple[str, str]]:
    """Pairs that a drawn case had, although `undefined` says that no case can have them."""
    return [pair for pair in combinations(NAMES, 2) if undefined(*pair) and coverage.pairs.get(pair)]


class _Refusals:
    """Counts of the cases that one side refuses, by reason, and by reason and feature."""

    def __init__(self) -> None:
        self.cases = Counter[str]()
        self.features: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, found: Sequence[str], reason: str) -> None:
        self.cases[reason] += 1
        self.features[reason].update(found)

    def sentences(self, single: Mapping[str, int]) -> dict[str, str]:
        """For each feature that only refused cases have, the reason that it is most closely bound to.

        A case is refused for the first reason that applies: one of a feature that is not supported may be refused for another.
        """
        total = sum(self.features.values(), Counter[str]())
        return {
            name: max(sorted(self.cases), key=lambda reason: self.features[reason][name] / self.cases[reason])
            for name in NAMES
            if total[name] and total[name] == single[name]
        }


def _draw(plan: FuzzPlan, sides: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """The features of each case that a plan draws, and for each side that refuses the case the reason."""
    supports = {side: registry.load(side).support(plan.device) for side in sides}
    return [
        (features(case), {side: reason for side, support in supports.items() if (reason := support.beyond(case))})
        for case in shard.drawn(plan)
    ]
