"""Compares candidates only by their binaries, for an AMD GPU that is not at hand.

The criteria in order, each of which decides only between candidates that are equal in all before it:

1. fewest vector registers spilled to memory;
2. matrix instructions, where any candidate has them;
3. most waves per SIMD, up to ENOUGH_WAVES: these hide a load's latency, and more are not worth smaller tiles;
4. loads that the hot loop waits for only after it has computed for ENOUGH_AHEAD of a turn: these hide their own latency;
5. fewest barriers per pair of row and key in the hot loop;
6. fewest cycles per pair of row and key in the hot loop, by AMD's published rates; where there are none, fewest instructions;
   among nearly equal ones, fewest rows, because more and smaller programs fill a GPU better.

Today's parameters stay where the first takes more cycles or instructions: those that load what is spilled are among them.
Those that load ahead, as today's do not, may take WORTH_OF_AHEAD times as many.

How keys are split, no binary tells: candidates are split for as many waves as today.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.assembly.rates import RATED
from benchmarks.tune.facts import WorstFacts
from benchmarks.tune.results import Candidate, Search
from benchmarks.tune.space import family_of

ENOUGH_WAVES = {"cdna": 2, "rdna": 4}
"""RDNA's waves are half as wide."""
ENOUGH_AHEAD, WORTH_OF_AHEAD = 0.5, 1.25
"""So much more work takes less time than a wave waits in each turn for a load of HBM: hundreds of cycles."""
FEW_SPILLS = 64
"""A candidate may have this many spills: they may lie outside the loop and cost little, and the fastest on an H200 have
some."""
NEARLY = 0.9
"""Cycles and instructions leave out much: what has this share of them or more is as good."""


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
    better = [pair for pair in ranked if _is_better(pair[1], today.facts, architecture)]
    if better:
        first, facts = _first(better, architecture)
        search.chosen = first.parameters
        search.why = f"{facts}; today's: {today.facts}"
    else:
        _, facts = min(ranked, key=lambda pair: _order(pair[1], architecture))
        search.why = f"today's are as good: {today.facts}; the best other: {facts}"


def _is_better(facts: WorstFacts, today: WorstFacts, architecture: str) -> bool:
    candidate, current = _order(facts, architecture), _order(today, architecture)
    (*counts, work), (*counts_today, work_today) = candidate, current
    comes_first = counts < counts_today or (counts == counts_today and work < NEARLY * work_today)
    hides_loads = candidate.waits < current.waits
    return comes_first and work <= work_today * (WORTH_OF_AHEAD if hides_loads else 1) < float("inf")


def best(search: Search, architecture: str, count: int) -> list[Candidate]:
    """The first by that order of all that were compiled and not pruned, today's parameters or others."""
    compiled = sorted(_waiting(search.candidates), key=lambda pair: _order(pair[1], architecture))
    return [candidate for candidate, _ in compiled[:count]]


def _first(ranked: Sequence[tuple[Candidate, WorstFacts]], architecture: str) -> tuple[Candidate, WorstFacts]:
    """The first candidate by the order, or one that is as good and has fewer rows."""
    *same, fewest = min(_order(facts, architecture) for _, facts in ranked)
    orders = [(pair, _order(pair[1], architecture)) for pair in ranked]
    as_good = [(pair, work) for pair, (*known, work) in orders if known == same and NEARLY * work <= fewest]
    return min(as_good, key=lambda each: (each[0][0].parameters.block_m, each[1]))[0]


class _Order(NamedTuple):
    """Smaller is better."""

    spills: int
    lacks_matrix: bool
    minus_waves: float
    waits: bool
    barriers: float
    work: float


def _order(facts: WorstFacts, architecture: str) -> _Order:
    waves = min(facts.waves or 0, ENOUGH_WAVES[family_of(architecture)])
    work = facts.cycles if architecture in RATED else facts.instructions
    waits = (facts.ahead or 0) < ENOUGH_AHEAD
    known = (facts.spills or 0, facts.matrix_instructions == 0, -waves, waits, facts.barriers or 0)
    return _Order(*known, float("inf") if work is None else work)


def _waiting(candidates: Sequence[Candidate]) -> list[tuple[Candidate, WorstFacts]]:
    """The candidates that were compiled, and of which nothing else is known."""
    return [(each, each.facts) for each in candidates if each.verdict == "waiting" and each.facts is not None]
