"""Loops of eager calls, loops of replays of CUDA graphs, and times of the host. On a CPU, no time has any value."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from attn_parity.timing import EventLoop, Loop, side_by_side

REPLAY_MS = 0.2
"""The least time of a replay of a graph, which holds enough calls for it: events and the launch then hardly count."""
WARMUP_REPLAYS = 3


class Budget(NamedTuple):
    """The seconds that a run has from its start."""

    started: float
    seconds: float

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def time_of(self, share: float) -> float:
        """The time of `time.monotonic()` when this share of the seconds is over."""
        return self.started + self.seconds * share


class GraphLoop(EventLoop):
    """A CUDA graph of each call in turn, as often as a replay needs."""

    def __init__(self, runs: Sequence[Callable[[], Any]]) -> None:
        for run in runs:  # compiles, and lets libraries allocate
            run()
        torch.cuda.synchronize()
        self._runs = runs  # a graph does not keep what its kernels write to
        self._capture(runs)
        total = statistics.median(self.times()) * self.calls
        if total < REPLAY_MS:
            self._capture(list(runs) * math.ceil(REPLAY_MS / total))
            self.times()

    def _capture(self, runs: Sequence[Callable[[], Any]]) -> None:
        """Make a graph of the calls, and replay it a few times."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for run in runs:
                run()
        super().__init__(graph.replay, len(runs))
        for _ in range(WARMUP_REPLAYS):
            self.replay()


class CallLoop:
    """Calls by the host's clock, which waits for no device."""

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


def eager_loop_of(device: torch.device, run: Callable[[], Any]) -> Loop:
    return EventLoop(run) if device.type == "cuda" else CallLoop([run])


def median_ms(loop: Loop, replays: int) -> float:
    """The median time of a call over a number of replays."""
    return side_by_side([loop], seconds=math.inf, rounds=replays)[0].ms


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
