"""Launches compiled in parallel processes, for a GPU that need not be there.

Where it is, the kernels that are run then find their binaries in Triton's cache.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import NamedTuple, Self

import torch
from attn_optimized.launch.table import Parameters

from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, attention_call
from benchmarks.speed.cases import Attention
from benchmarks.tuning.facts import Facts, facts_of
from benchmarks.tuning.launches import SEED, launches

META = torch.device("meta")
ASKED_EVERY = 1.0
"""Seconds after which a wait looks at what is done."""


class Job(NamedTuple):
    """A case to be compiled. `parameters`: None: as it is launched today."""

    case: Attention
    parameters: Parameters | None


def compiled(
    case: Attention, parameters: Parameters | None, *, architecture: str, compute_units: int, cache_bytes: int = 0
) -> Facts:
    """The worst facts of the attention kernels of a case, all of whose kernels are compiled.

    Args:
        cache_bytes: see `attention_call`. AMD's buffer instructions reach 2 GiB: what holds more is compiled otherwise.
    """
    call = attention_call(case, META, SEED, FLOAT8_OF.get(architecture, FLOAT8), cache_bytes)
    gpu = {"architecture": architecture, "compute_units": compute_units}
    every = launches(call, parameters, out=torch.empty_like(call.q), **gpu)
    return Facts.worst([facts for each in every if (facts := facts_of(each, architecture)) is not None])


class Compilers:
    """Processes that compile. A job whose compiler crashes costs itself and no other.

    Args:
        compiler: gives the facts of a job; it is called in another process.
        workers: processes.
    """

    def __init__(self, compiler: Callable[[Attention, Parameters | None], Facts], workers: int) -> None:
        self._compiler, self._workers = compiler, workers
        self._pool = _pool(workers)
        self._futures: dict[Job, Future[Facts]] = {}
        self._found: dict[Job, Facts | str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Nobody waits for what is still compiled."""
        for process in list(self._pool._processes.values()):
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, jobs: Iterable[Job]) -> None:
        """Compile these behind what was begun before."""
        for job in jobs:
            if job not in self._futures and job not in self._found:
                try:
                    self._futures[job] = self._pool.submit(self._compiler, *job)
                except BrokenProcessPool:
                    self._begin_anew([job for job in self._futures if job not in self._found])
                    self._futures[job] = self._pool.submit(self._compiler, *job)

    def finish(self, jobs: Collection[Job], *, deadline: float, step: Callable[[int], None]) -> dict[Job, Facts | str]:
        """The facts of these jobs, or why they have none. What is not done by the deadline is given up, and left out.

        Args:
            step: told how many are done.
        """
        self.begin(jobs)
        while open_jobs := [job for job in jobs if job not in self._found]:
            step(len(jobs) - len(open_jobs))
            futures = {self._futures[job]: job for job in open_jobs if job in self._futures}
            done, _ = wait(futures, timeout=max(0.0, min(ASKED_EVERY, deadline - time.monotonic())))
            try:
                for future in done:
                    self._found[futures[future]] = _outcome(future)
            except BrokenProcessPool:
                self._one_by_one([job for job in open_jobs if job not in self._found], deadline)
                break
            if time.monotonic() >= deadline:
                self._give_up([job for job in open_jobs if job not in self._found])
                break
        return {job: self._found[job] for job in jobs if job in self._found}

    def _give_up(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._futures.pop(job).cancel()

    def _one_by_one(self, jobs: Collection[Job], deadline: float) -> None:
        """Compile jobs alone: a compiler has crashed, and nobody knows on which of them."""
        alone = _pool(1)
        for job in jobs:
            if time.monotonic() >= deadline:
                break
            try:
                self._found[job] = _outcome(alone.submit(self._compiler, *job))
            except BrokenProcessPool:
                self._found[job], alone = "the compiler crashed", _pool(1)
        alone.shutdown()
        self._begin_anew([job for job in self._futures if job not in jobs and job not in self._found])

    def _begin_anew(self, jobs: Iterable[Job]) -> None:
        """Compile these in new processes: what a broken pool was given is lost."""
        self._pool = _pool(self._workers)
        self._futures = {}
        self.begin(jobs)


def _outcome(future: Future[Facts]) -> Facts | str:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:  # compilers raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin)


def _begin() -> None:
    # an interrupt from the keyboard ends them at once and without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a candidate that an assembler refuses is its own to report; Triton prints all of its code too
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
