"""Times of calls on a GPU, between events. Participants take turns."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import torch

ROUNDS_PER_SYNC, MAX_ROUNDS = 5, 200

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
        """The milliseconds per call of every replay since the last call of this function; waits for the device."""
        ...


class EventLoop:
    """A call between two events of the GPU. It stands for `calls` calls."""

    def __init__(self, run: Callable[[], Any], calls: int = 1) -> None:
        self.run, self.calls = run, calls
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def replay(self) -> None:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.run()
        end.record()
        self._events.append((start, end))

    def times(self) -> list[float]:
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) / self.calls for start, end in self._events]
        self._events.clear()
        return times


def side_by_side(loops: Sequence[Loop], *, seconds: float, rounds: int = MAX_ROUNDS) -> list[Spread]:
    """Replay the loops in turn until the time or the rounds are over, so that clocks drift for all alike.

    The loop that comes first in a round changes from round to round. A replay before the first one, which does not count, keeps
    the device busy while the others are enqueued: else their times would hold the host's.
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
