"""Candidates compared by their binaries alone, for an AMD GPU that is not there.

In this order, each deciding only between those that are alike in all before it:

1. fewest vector registers spilled to memory;
2. matrix instructions, where any candidate has them;
3. most waves per SIMD, up to ENOUGH_WAVES: these hide a load's latency, and more are not worth smaller tiles;
4. fewest instructions per pair of row and key, in the loop over tiles of keys that need no mask.

How deep loads are pipelined and how keys are split, no binary tells: candidates have today's `num_stages` and splits.
"""

from attn_optimized.launch_table import Phase

from benchmarks.tuning.facts import Facts
from benchmarks.tuning.results import Candidate, Search

ENOUGH_WAVES: dict[str, dict[Phase, int]] = {
    "cdna": {"decode": 4, "mixed": 2, "window": 2, "prefill": 2},
    "rdna": {"decode": 8, "mixed": 4, "window": 4, "prefill": 4},
}
"""Decode waits for memory; RDNA's waves are half as wide."""
MARGIN = 0.95
"""Of today's instructions: nearly as many are no reason to change."""


def prune(search: Search) -> None:
    """Leave out what does not fit the shared memory, or spills more than others; never today's, which comes first."""
    today, *others = search.candidates
    compiled = [candidate for candidate in others if candidate.verdict == "waiting" and candidate.facts is not None]
    for candidate in compiled:
        if (facts := _facts(candidate)).shared_bytes > facts.shared_limit:
            candidate.verdict = "pruned"
            candidate.why = f"{facts.shared_bytes} bytes of shared memory, the limit is {facts.shared_limit}"
    fitting = [candidate for candidate in compiled if candidate.verdict == "waiting"]
    fewest = min((_facts(candidate).spills for candidate in (today, *fitting) if candidate.facts is not None), default=0)
    for candidate in fitting:
        if (spills := _facts(candidate).spills) > fewest:
            candidate.verdict, candidate.why = "pruned", f"{spills} registers spilled, others spill {fewest}"


def rank(search: Search, architecture: str, phase: Phase) -> None:
    """Choose the first by the order above, unless today's parameters are as good."""
    today, *others = search.candidates
    if today.facts is None:
        search.why = f"today's parameters: {today.why or 'were not compiled in time'}"
        return
    ranked = [candidate for candidate in others if candidate.verdict == "waiting" and candidate.facts is not None]
    for candidate in (today, *ranked):
        candidate.verdict = "ranked"
    if not ranked:
        search.why = "no candidate but today's was compiled"
        return
    enough = ENOUGH_WAVES["cdna" if architecture.startswith("gfx9") else "rdna"][phase]
    best = min(ranked, key=lambda candidate: _order(_facts(candidate), enough))
    ours, theirs = _order(_facts(best), enough), _order(_facts(today), enough)
    if ours[:-1] < theirs[:-1] or (ours[:-1] == theirs[:-1] and ours[-1] < MARGIN * theirs[-1]):
        search.chosen = best.parameters
        search.why = f"{_facts(best)}; today's: {_facts(today)}"
    else:
        search.why = f"today's are as good: {_facts(today)}; the best other: {_facts(best)}"


def _order(facts: Facts, enough_waves: int) -> tuple[int, bool, int, float]:
    """Smaller is better."""
    waves = min(facts.waves or 0, enough_waves)
    instructions = float("inf") if facts.instructions is None else facts.instructions
    return facts.spills, facts.matrix_instructions == 0, -waves, instructions


def _facts(candidate: Candidate) -> Facts:
    assert candidate.facts is not None
    return candidate.facts
