"""The search for one class of calls on a GPU, in stages from coarse to fine.

    tiles     other shapes of the loop over keys, in the two cases that a class begins with
    options   stages of the pipeline and registers for the best two, in the same cases
    splits    splits of keys for the best, in all cases; for classes whose programs may need a split
    all       the best of these beside today's parameters, in all cases, replayed in turn so that clocks drift equally for all

A candidate that is faster than today's in the last stage, beyond the spread, in the geometric mean over the cases, is chosen.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from attn_contract import UnsupportedError
from attn_fuzz.text import one_line
from attn_optimized.launch.table import Entry
from attn_parity.timing import Loop, side_by_side

from benchmarks.measuring.device import check_device, free
from benchmarks.steps.cases import Attention
from benchmarks.tune.bench import LAST_SECONDS, Bench, WrongError, judged
from benchmarks.tune.classes import CallClass
from benchmarks.tune.results import Candidate, Search
from benchmarks.tune.space import OPTIONS, SPLITS, TILE, variants

FIRST_CASES = 2
BEST_TILES, BEST_OF_FIRST_CASES, BEST_SPLITS = 2, 4, 2
REPLAYS, LAST_REPLAYS = 7, 25


class Stage(NamedTuple):
    """A stage of a search.

    Attributes:
        ends: the share of the budget by which it ends.
        names: the parameters that it changes; none: the best so far are replayed in turn.
        bases: the number of candidates, the best so far, that it changes; 0: today's parameters alone.
        is_coarse: True if it times only the first cases.
    """

    name: str
    ends: float
    names: tuple[str, ...] = ()
    bases: int = 0
    is_coarse: bool = False


STAGES = (
    Stage("tiles", 0.3, TILE, is_coarse=True),
    Stage("options", 0.5, OPTIONS, BEST_TILES, is_coarse=True),
    Stage("splits", 0.7, SPLITS, 1),
    Stage("all", 0.93),
)
"""The judge has the rest of the budget."""


@dataclass(frozen=True, eq=False)
class ClassSearch:
    """A class, its cases, and the results so far. `most` is the largest number of candidates of a stage."""

    call_class: CallClass
    cases: list[Attention]
    architecture: str
    found: Search
    most: int | None = None

    @property
    def today(self) -> Candidate:
        return self.found.candidates[0]

    def cases_of(self, stage: Stage) -> list[Attention]:
        return self.cases[:FIRST_CASES] if stage.is_coarse else self.cases

    def contenders(self, stage: Stage) -> list[Candidate]:
        """The candidates that a stage times beside today's parameters. New ones are added to `found`."""
        if not stage.names:
            return self._finalists()
        bases = self._best(stage.bases, set()) or [self.today]
        known = {each.parameters: each for each in self.found.candidates}
        wanted = [
            parameters
            for base in bases
            for parameters in variants(self.call_class, self.architecture, base.parameters, stage.names)[: self.most]
        ]
        if wanted and not stage.is_coarse:  # what it changes has no times in the other cases yet
            wanted = [bases[0].parameters, *wanted]
        new = [Candidate(parameters=each) for each in dict.fromkeys(wanted) if each not in known]
        self.found.candidates += new
        known |= {each.parameters: each for each in new}
        return [found for each in dict.fromkeys(wanted) if (found := known[each]) is not self.today]

    def _finalists(self) -> list[Candidate]:
        """The best in the first cases, and the best in all cases; of the cases those count that today's parameters run."""
        of_first_cases = {case.name for case in self.cases[:FIRST_CASES]} & self.today.times.keys()
        of_all_cases = {case.name for case in self.cases} & self.today.times.keys()
        best = self._best(BEST_OF_FIRST_CASES, of_first_cases)
        best += [each for each in self._best(BEST_SPLITS, of_all_cases) if each not in best]
        return [each for each in best if each is not self.today]

    def _best(self, count: int, of_cases: set[str]) -> list[Candidate]:
        """The `count` fastest candidates among those with times in all of `of_cases`; today's may be one of them."""
        timed = [each for each in self.found.candidates if each.verdict == "slower" and of_cases <= each.times.keys()]
        return sorted(timed, key=lambda each: -gain(each, self.today))[:count]


def gain(candidate: Candidate, today: Candidate) -> float:
    """Today's time over a candidate's, the geometric mean over the cases that both have times of."""
    return _mean([today.times[name].ms / spread.ms for name, spread in candidate.times.items() if name in today.times])


def time_in_turn(search: ClassSearch, contenders: Sequence[Candidate], bench: Bench, deadline: float) -> None:
    """Time the candidates that have no time in a case yet, one after the other."""
    for candidate in _running([search.today, *contenders]):
        if bench.case.name in candidate.times or time.monotonic() >= deadline:
            continue
        try:
            candidate.times[bench.case.name] = bench.time(candidate.parameters, REPLAYS)
            candidate.verdict = "slower"
        except Exception as error:  # a launch that asks for too much, or a compiler's error
            _fail(candidate, bench, error, is_today=candidate is search.today)
            if candidate is search.today:
                return


def time_side_by_side(search: ClassSearch, contenders: Sequence[Candidate], bench: Bench) -> None:
    loops: list[tuple[Candidate, Loop]] = []
    for candidate in _running([search.today, *contenders]):
        try:
            loops.append((candidate, bench.loop(candidate.parameters)))
        except Exception as error:  # the same
            _fail(candidate, bench, error, is_today=candidate is search.today)
            if candidate is search.today:
                return
    spreads = side_by_side([loop for _, loop in loops], seconds=LAST_SECONDS, rounds=LAST_REPLAYS)
    for (candidate, _), spread in zip(loops, spreads, strict=True):
        candidate.times[bench.case.name] = spread


def time_stage(
    search: ClassSearch, stage: Stage, contenders: Sequence[Candidate], device: torch.device, *, deadline: float, is_tiny: bool
) -> None:
    """Time a stage's contenders in its cases, until a deadline."""
    for case in search.cases_of(stage):
        if time.monotonic() >= deadline:
            return
        bench = Bench(case.tiny() if is_tiny else case, device, is_tiny=is_tiny)
        if stage.names:
            time_in_turn(search, contenders, bench, deadline)
        else:
            time_side_by_side(search, contenders, bench)
        del bench
        free()
    if not stage.names:
        for candidate in _running([search.today, *contenders]):
            candidate.verdict = "final"


def decide(found: Search) -> None:
    """Choose the fastest of the last stage, unless it is no faster than today's parameters beyond the spread."""
    today, *others = found.candidates
    if today.verdict != "final":
        found.why = f"today's parameters: {today.why or 'were not timed to the end'}"
        return
    finalists = sorted((each for each in others if each.verdict == "final"), key=lambda each: -gain(each, today))
    if not finalists:
        found.why = "no candidate but today's was timed to the end"
        return
    best = finalists[0]
    found.gain = gain(best, today)
    ratios = sorted(today.times[name].ms / spread.ms for name, spread in best.times.items() if name in today.times)
    if improves(best, today):
        found.chosen = best.parameters
        found.why = f"{found.gain:.3f} times as fast as today's, {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} cases"
    else:
        found.why = f"no candidate is faster beyond the spread; the best is {found.gain:.3f} times as fast"


def improves(candidate: Candidate, today: Candidate) -> bool:
    """True if its slow replays beat today's fast ones, in the geometric mean over the cases."""
    names = candidate.times.keys() & today.times.keys()
    return _mean([candidate.times[n].p90 for n in names]) < _mean([today.times[n].p10 for n in names])


def judge(search: ClassSearch, device: torch.device) -> None:
    """Check the chosen parameters by the reference."""
    found = search.found
    chosen = next(each for each in found.candidates if each.parameters == found.chosen)
    for case in search.call_class.checked:
        try:
            judgement = judged(case, chosen.parameters, device)
            if not judgement.agrees:
                chosen.verdict, chosen.why = "wrong", f"{case.name}: {judgement.message}"
        except Exception as error:  # compilers and drivers raise anything
            chosen.verdict, chosen.why = failure(error)
        if chosen.verdict != "final":
            found.chosen, found.why = None, f"the fastest is {chosen.verdict}: {chosen.why}"
            return


def failure(error: Exception) -> tuple[Literal["wrong", "failed"], str]:
    """The verdict on a candidate that raised an error, and the error in a line.

    Raises:
        DeviceError: the error has taken the GPU with it.
    """
    if not isinstance(error, UnsupportedError | WrongError):
        check_device(error)
    return "wrong" if isinstance(error, WrongError) else "failed", one_line(f"{type(error).__name__}: {error}", 300)


def entry_of_choice(call_class: CallClass, found: Search, source: str) -> Entry | None:
    """The entry that replaces today's entry of a class; None: today's stays."""
    if found.chosen is None:
        return None
    chosen = next(each for each in found.candidates if each.parameters == found.chosen)
    reason = source if chosen.verdict == "final" else f"derived: {chosen.facts} ({source})"
    return Entry(**call_class._asdict(), parameters=found.chosen, source=reason)


def _fail(candidate: Candidate, bench: Bench, error: Exception, *, is_today: bool) -> None:
    """If today's parameters do not run a case, the case is left out. Otherwise the candidate is."""
    verdict, why = failure(error)
    candidate.why = f"{bench.case.name}: {why}"
    if not is_today:
        candidate.verdict = verdict


def _running(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [each for each in candidates if each.verdict in ("waiting", "slower", "final")]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 1.0
