"""The search for one class of calls on a GPU: right candidates against today's parameters, in rounds that halve their number.

A round replays all that are left in turn, so that clocks drift for all alike; each has twice the rounds of the last one, and
keeps the faster half. Today's parameters stay to the end.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence

import torch
from attn_contract import UnsupportedError
from attn_optimized.launch.table import Parameters

from benchmarks.speed.calls import Call, attention_call
from benchmarks.speed.cases import Attention
from benchmarks.speed.clock import Loop, Spread, loop_of, side_by_side
from benchmarks.speed.run import TIMING_SECONDS, check_device, free
from benchmarks.tuning.classes import CallClass
from benchmarks.tuning.launches import SEED, judged, launches
from benchmarks.tuning.results import Candidate, Search

FIRST_REPLAYS, LAST_REPLAYS = 5, 200
FINALISTS = 4
"""So few that they are timed to the end."""

Clock = Callable[[Sequence[Candidate], int], None]
"""Times candidates, so many replays of each case, and adds a round to those that run."""


def check(candidate: Candidate, call_class: CallClass, device: torch.device) -> None:
    """Ask the reference about a candidate."""
    for case in call_class.checked:
        try:
            judgement = judged(case, candidate.parameters, device)
        except Exception as error:  # compilers and drivers raise anything
            fail(candidate, error)
            return
        if not judgement.agrees:
            candidate.verdict, candidate.why = "wrong", f"{case.name}: {judgement.message}"
            return


def halve(candidates: Sequence[Candidate], clock: Clock, *, deadline: float) -> None:
    """Time candidates until few are left, and those to the end; the first one is today's, and stays.

    Past the deadline no more than these few are left to the next round.
    """
    today, left, replays = candidates[0], list(candidates), FIRST_REPLAYS
    while True:
        is_last = len(left) <= FINALISTS + 1
        before = [len(candidate.rounds) for candidate in left]
        clock(left, LAST_REPLAYS if is_last else replays)
        left = [candidate for candidate, rounds in zip(left, before, strict=True) if len(candidate.rounds) > rounds]
        if today not in left:
            return
        if is_last:
            for candidate in left:
                candidate.verdict, candidate.why = "final", None
            return
        others = sorted((candidate for candidate in left if candidate is not today), key=milliseconds)
        kept = FINALISTS if time.monotonic() >= deadline else max(FINALISTS, len(others) // 2)
        for candidate in others[kept:]:
            candidate.verdict, candidate.why = "slower", f"than {kept} others after {replays} replays"
        left, replays = [today, *others[:kept]], 2 * replays


def milliseconds(candidate: Candidate) -> float:
    """The geometric mean over the cases of its last round."""
    return _mean([spread.ms for spread in candidate.rounds[-1].values()])


def decide(search: Search) -> None:
    """Choose the fastest of the last round, unless it is no faster than today's parameters beyond the spread."""
    today, *others = search.candidates
    if today.verdict != "final":
        search.why = f"today's parameters: {today.why or 'were not timed to the end'}"
        return
    finalists = sorted((candidate for candidate in others if candidate.verdict == "final"), key=milliseconds)
    chosen = next((candidate for candidate in finalists if improves(candidate, today)), None)
    if chosen is not None:
        search.chosen, search.gain = chosen.parameters, milliseconds(today) / milliseconds(chosen)
        search.why = f"{search.gain:.3f} times as fast as today's"
    elif finalists:
        best = milliseconds(today) / milliseconds(finalists[0])
        search.why = f"no candidate is faster beyond the spread; the best is {best:.3f} times as fast"
    else:
        search.why = "no candidate but today's was timed to the end"


def improves(candidate: Candidate, today: Candidate) -> bool:
    """Whether its slow replays beat today's fast ones over the cases together, and in no case it is the other way round."""
    ours, theirs = candidate.rounds[-1], today.rounds[-1]
    faster = _mean([spread.p90 for spread in ours.values()]) < _mean([spread.p10 for spread in theirs.values()])
    return faster and all(ours[name].p10 <= theirs[name].p90 for name in theirs)


class GpuClock:
    """Times candidates in a class's cases on a device, one case's tensors at a time."""

    def __init__(self, cases: Sequence[Attention], device: torch.device, *, most_replays: int = LAST_REPLAYS) -> None:
        self._cases, self._device, self._most_replays = cases, device, most_replays

    def __call__(self, candidates: Sequence[Candidate], replays: int) -> None:
        found: dict[Parameters, dict[str, Spread]] = {candidate.parameters: {} for candidate in candidates}
        running = list(candidates)
        for case in self._cases:
            call = attention_call(case, self._device, SEED)
            out = torch.empty_like(call.q)
            loops: list[Loop] = []
            for candidate in list(running):
                try:
                    loops.append(loop_of(self._device, [functools.partial(_run, call, candidate.parameters, out)]))
                except Exception as error:  # a launch that asks for too much, or a compiler's error
                    running.remove(candidate)
                    fail(candidate, error)
            spreads = side_by_side(loops, seconds=TIMING_SECONDS, rounds=min(replays, self._most_replays))
            for candidate, spread in zip(running, spreads, strict=True):
                found[candidate.parameters][case.name] = spread
            del call, out, loops
            free()
        for candidate in running:
            candidate.rounds.append(found[candidate.parameters])


def fail(candidate: Candidate, error: Exception) -> None:
    """Record an error as the candidate's, unless it has taken the GPU with it.

    Raises:
        DeviceError: the GPU no longer runs anything.
    """
    candidate.verdict = "failed"
    candidate.why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if not isinstance(error, UnsupportedError):
        check_device(error)


def _run(call: Call, parameters: Parameters, out: torch.Tensor) -> None:
    for launch in launches(call, parameters, out=out):
        launch.run(call.q.device)


def _mean(times: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, times)) / len(times))
