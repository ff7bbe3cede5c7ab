"""Timing on a GPU: calls in turns, between events."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
import torch

FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 40, 3.0


Positive = Annotated[float, msgspec.Meta(gt=0)]


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds of a call: the median, the 10th and the 90th percentile."""

    ms: Positive
    p10: Positive
    p90: Positive


def in_turns(runs: Sequence[Callable[[], object]]) -> list[Spread]:
    """Call each in every round, so that clocks drift for all alike. The call that is first in a round changes.

    A call before the first one, which does not count, keeps the GPU busy while the others are enqueued: else their times would
    hold the host's.
    """
    for run in runs:
        run()  # compiles
    torch.cuda.synchronize()
    times: list[list[float]] = [[] for _ in runs]
    deadline = time.monotonic() + SECONDS
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.monotonic() >= deadline:
            break
        order = [(done + i) % len(runs) for i in range(len(runs))]
        runs[order[-1]]()
        events = {i: _recorded(runs[i]) for i in order}
        torch.cuda.synchronize()
        for i, (start, end) in events.items():
            times[i].append(start.elapsed_time(end))
    last = len(times[0]) - 1
    return [Spread(statistics.median(each), each[round(0.1 * last)], each[round(0.9 * last)]) for each in map(sorted, times)]


def _recorded(run: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    return start, end
