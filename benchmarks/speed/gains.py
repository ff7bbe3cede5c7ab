"""How much faster our kernels are than those of `--before`."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from benchmarks.participants.attention import BEFORE, OURS
from benchmarks.speed.results import CaseResult


def gains(cases: Sequence[CaseResult]) -> Iterator[str]:
    """For each kind of traffic, the time before over the time now: the geometric mean, and the cases at both ends."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for case in cases:
        before, now = (case.results[name].time if name in case.results else None for name in (BEFORE, OURS))
        if before is not None and now is not None:
            found[case.traffic or "all cases"].append((before.ms / now.ms, case.name))
    for traffic, ratios in found.items():
        (least, slower), (most, faster) = min(ratios), max(ratios)
        mean = statistics.geometric_mean(ratio for ratio, _ in ratios)
        ends = f"{least:.2f} in {slower}, {most:.2f} in {faster}"
        yield f"{traffic}: time before / now {mean:.2f} in {len(ratios)} cases; {ends}"
