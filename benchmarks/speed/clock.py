"""Timing: replays of CUDA graphs between events on a GPU; on a CPU plain calls, whose times have no value."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import torch

REPLAY_MS = 0.2
"""A graph holds so many calls that a replay takes at least this long: events and the launch then count for little."""
WARMUP_REPLAYS = 3
ROUNDS_PER_SYNC, MOST_ROUNDS = 5, 200


Positive = Annotated[float, msgspec.Meta(gt=0)]
"""A file that has another number there is refused when it is read."""


class Spread(NamedTuple):
    """Milliseconds per call: the median, the 10th and the 90th percentile, and of how many replays."""

    ms: Positive
    p10: Positive
    p90: Positive
    replays: int


class Loop(Protocol):
    """Calls that are timed together."""

    calls: int

    def replay(self) -> None: ...

    def times(self) -> list[float]:
        """Milliseconds per call of every replay since this was asked last; waits for the device."""
        ...


class GraphLoop:
    """A CUDA graph of each call in turn, as often as a replay needs."""

    def __init__(self, runs: Sequence[Callable[[], Any]]) -> None:
        for run in runs:  # compiles, and lets libraries allocate
            run()
        torch.cuda.synchronize()
        self._runs = runs  # a graph does not keep what its kernels write to
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._capture(runs)
        self._warm_up()
        total = statistics.median(self.times()) * self.calls
        if total < REPLAY_MS:
            self._capture(list(runs) * math.ceil(REPLAY_MS / total))
            self._warm_up()
            self.times()

    def replay(self) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self._graph.replay()
        end.record()
        self._events.append((start, end))

    def times(self) -> list[float]:
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) / self.calls for start, end in self._events]
        self._events.clear()
        return times

    def _capture(self, runs: Sequence[Callable[[], Any]]) -> None:
        self.calls = len(runs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for run in runs:
                run()

    def _warm_up(self) -> None:
        for _ in range(WARMUP_REPLAYS):
            self.replay()


class CallLoop:
    """The calls themselves."""

    def __init__(self, runs: Sequence[Callable[[], Any]]) -> None:
        self.calls = len(runs)
        self._runs = runs
        self._times: list[float] = []

    def replay(self) -> None:
        started = time.perf_counter()
        for run in self._runs:
            run()
        self._times.append(1e3 * (time.perf_counter() - started) / self.calls)

    def times(self) -> list[float]:
        times, self._times = self._times, []
        return times


def loop_of(device: torch.device, runs: Sequence[Callable[[], Any]]) -> Loop:
    return GraphLoop(runs) if device.type == "cuda" else CallLoop(runs)


def side_by_side(loops: Sequence[Loop], *, seconds: float, rounds: int = MOST_ROUNDS) -> list[Spread]:
    """Replay the loops in turn until the time or the rounds are over, so that clocks drift for all alike.

    Whoever comes first in a round changes from round to round; a replay before the first one, which does not count, keeps the
    device busy while the others are enqueued.
    """
    found: list[list[float]] = [[] for _ in loops]
    deadline = time.monotonic() + seconds
    order = itertools.cycle(range(len(loops)))
    while loops and len(found[0]) < rounds:
        loops[0].replay()
        for _ in range(min(ROUNDS_PER_SYNC, rounds - len(found[0]))):
            first = next(order)
            for i in range(len(loops)):
                loops[(first + i) % len(loops)].replay()
        for i, (loop, times) in enumerate(zip(loops, found, strict=True)):
            times += loop.times()[1 if i == 0 else 0 :]
        if time.monotonic() >= deadline:
            break
    return [spread(times) for times in found]


def spread(times: Sequence[float]) -> Spread:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Spread(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def host_us(run: Callable[[], Any], *, batches: int, calls: int) -> float:
    """Microseconds of the host per call, the least over batches: whatever else runs on the machine only adds to them.

    The device is waited for before and after, never between.
    """
    run()
    _wait()
    times = []
    for _ in range(batches):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - started) / calls)
    _wait()
    return 1e6 * min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
