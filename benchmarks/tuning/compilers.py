"""Candidates compiled in parallel processes, for a GPU that need not be there.

Where it is, the kernels that are run then find their binaries in Triton's cache.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

import torch
from attn_optimized.launch.table import Parameters

from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, attention_call
from benchmarks.tuning.classes import CallClass
from benchmarks.tuning.facts import Facts, facts_of
from benchmarks.tuning.launches import SEED, launches
from benchmarks.tuning.results import Candidate

META = torch.device("meta")


def compiled(
    call_class: CallClass, parameters: Parameters, *, architecture: str, compute_units: int, cache_bytes: int = 0
) -> Facts:
    """The worst facts of the attention kernel in a class's cases.

    Args:
        cache_bytes: see `attention_call`. AMD's buffer instructions reach 2 GiB: what holds more is compiled otherwise.
    """
    found = []
    for case in call_class.timed:
        call = attention_call(case, META, SEED, FLOAT8_OF.get(architecture, FLOAT8), cache_bytes)
        gpu = {"architecture": architecture, "compute_units": compute_units}
        attention = next(launches(call, parameters, out=torch.empty_like(call.q), **gpu))
        found.append(facts_of(attention, parameters, architecture))
    return Facts.worst(found)


class Compilers:
    """Processes that compile. A candidate whose compiler crashes costs itself and no other.

    Args:
        compiler: gives the facts of a class and parameters; it is called in another process.
        workers: processes.
    """

    def __init__(self, compiler: Callable[[CallClass, Parameters], Facts], workers: int) -> None:
        self._compiler, self._workers = compiler, workers
        self._pool = self._start(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()

    def compile(self, call_class: CallClass, candidates: Sequence[Candidate], *, deadline: float) -> Iterator[Candidate]:
        """Give candidates their facts or say why they have none, each yielded as it is done; those past the deadline wait."""
        left = list(candidates)
        workers = self._workers
        while left:
            waiting = {self._submit(call_class, candidate): candidate for candidate in left}
            try:
                for future in as_completed(waiting, timeout=max(0.0, deadline - time.monotonic())):
                    candidate = waiting[future]
                    self._record(candidate, future)
                    left.remove(candidate)
                    yield candidate
            except TimeoutError:
                self._stop()
                self._pool = self._start(self._workers)
                return
            except BrokenProcessPool:
                if workers == 1:  # they were compiled in their order
                    left[0].verdict, left[0].why = "failed", "the compiler crashed"
                    yield left.pop(0)
                workers = 1
                self._pool = self._start(workers)
        if workers != self._workers:
            self._pool.shutdown()
            self._pool = self._start(self._workers)

    def _submit(self, call_class: CallClass, candidate: Candidate) -> Future[Facts]:
        return self._pool.submit(self._compiler, call_class, candidate.parameters)

    def _record(self, candidate: Candidate, future: Future[Facts]) -> None:
        try:
            candidate.facts = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # compilers raise anything
            candidate.verdict = "failed"
            candidate.why = " ".join(f"{type(error).__name__}: {error}".split())[:300]

    def _stop(self) -> None:
        """Nobody waits for what is still compiled."""
        for process in multiprocessing.active_children():
            process.terminate()
        self._pool.shutdown()

    @staticmethod
    def _start(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    # an interrupt from the keyboard ends them at once and without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a candidate that an assembler refuses is its own to report; Triton prints all of its code too
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
