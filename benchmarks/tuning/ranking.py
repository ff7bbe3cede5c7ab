"""Candidates compared by their binaries alone, for an AMD GPU that is not there.

In this order, each deciding only between those that are alike in all before it:

1. fewest vector registers spilled to memory;
2. matrix instructions, where any candidate has them;
3. most waves per SIMD, up to ENOUGH_WAVES: these hide a load's latency, and more are not worth smaller tiles;
4. fewest instructions per pair of row and key, in the loop over tiles of keys that need no mask.

How deep loads are pipelined and how keys are split, no binary tells: candidates have today's `num_stages`, and are split for as
many waves as today.
"""

from collections.abc import Sequence

from benchmarks.tuning.facts import Facts
from benchmarks.tuning.results import Candidate, Search
from benchmarks.tuning.space import family_of

ENOUGH_WAVES = {"cdna": 2, "rdna": 4}
"""RDNA's waves are half as wide."""
FEW_SPILLS = 64
"""Which may lie outside the loop and cost little: the fastest on an H200 are not without."""
MARGIN = 0.95
"""Of today's instructions: nearly as many are no reason to change."""


def prune(search: Search) -> None:
    """Leave out what does not fit the shared memory, or spills many registers and more than today's, which come first."""
    today, *others = search.candidates
    for candidate, facts in _waiting(others):
        if facts.shared_bytes is not None and facts.shared_limit is not None and facts.shared_bytes > facts.shared_limit:
            candidate.verdict = "pruned"
            candidate.why = f"{facts.shared_bytes} bytes of shared memory, the limit is {facts.shared_limit}"
    allowed = max(FEW_SPILLS, today.facts.spills or 0) if today.facts is not None else FEW_SPILLS
    for candidate, facts in _waiting(others):
        if facts.spills is not None and facts.spills > allowed:
            candidate.verdict, candidate.why = "pruned", f"{facts.spills} registers spilled, more than {allowed}"


def rank(search: Search, architecture: str) -> None:
    """Choose the first by the order above, unless today's parameters are as good."""
    today, *others = search.candidates
    if today.facts is None:
        search.why = f"today's parameters: {today.why or 'were not compiled in time'}"
        return
    ranked = _waiting(others)
    for candidate in (today, *(candidate for candidate, _ in ranked)):
        candidate.verdict = "ranked"
    if not ranked:
        search.why = "no candidate but today's was compiled"
        return
    enough = ENOUGH_WAVES[family_of(architecture)]
    best, facts = min(ranked, key=lambda pair: _order(pair[1], enough))
    ours, theirs = _order(facts, enough), _order(today.facts, enough)
    if ours[:-1] < theirs[:-1] or (ours[:-1] == theirs[:-1] and ours[-1] < MARGIN * theirs[-1]):
        search.chosen = best.parameters
        search.why = f"{facts}; today's: {today.facts}"
    else:
        search.why = f"today's are as good: {today.facts}; the best other: {facts}"


def _order(facts: Facts, enough_waves: int) -> tuple[int, bool, float, float]:
    """Smaller is better."""
    waves = min(facts.waves or 0, enough_waves)
    instructions = float("inf") if facts.instructions is None else facts.instructions
    return facts.spills or 0, facts.matrix_instructions == 0, -waves, instructions


def _waiting(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Facts]]:
    """Those that were compiled, and nothing else is known of."""
    return [(each, each.facts) for each in candidates if each.verdict == "waiting" and each.facts is not None]
