"""Compiling the shipped calls, in processes without Triton's interpreter."""

import contextlib
import functools
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Triton decides on its first import whether kernels are interpreted
    from attn_optimized.compilation import Binary
    from attn_optimized.kernel_call import KernelCall

Job = tuple[str, str]
"""An architecture, and the name of a launch: see `attn_optimized.shipped_calls`."""


@dataclass
class Outcome:
    """What became of the jobs, in their order: a binary, or why there is none. Interrupted: of those that were done."""

    binaries: "dict[Job, Binary]" = field(default_factory=dict)
    errors: dict[Job, str] = field(default_factory=dict)
    interrupted: bool = False


def build(jobs: Sequence[Job], workers: int, report: Callable[[int], None] = lambda done: None) -> Outcome:
    """Compile every job; Triton's own cache knows those that were compiled before.

    Args:
        workers: processes at once.
        report: is told how many are done.
    """
    outcome, found = Outcome(), {}
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
    try:
        with _without_interpreter():
            futures: dict[Future, Job] = {pool.submit(_compile, *job): job for job in jobs}
        for future in as_completed(futures):
            try:
                found[futures[future]] = future.result()
            except BrokenProcessPool:
                found[futures[future]] = "a compiling process died"
            report(len(found))
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for job in jobs:
        if isinstance(result := found.get(job), str):
            outcome.errors[job] = result
        elif result is not None:
            outcome.binaries[job] = result
    return outcome


@contextlib.contextmanager
def _without_interpreter() -> Iterator[None]:
    """Processes that start meanwhile compile: what they import first, the caller's main module, may import Triton."""
    given = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["TRITON_INTERPRET"] = given


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    warnings.simplefilter("ignore")


def _compile(architecture: str, name: str) -> "Binary | str":
    from attn_optimized.compilation import compile_call

    try:
        return compile_call(_calls(architecture)[name], architecture)
    except Exception as error:  # whatever a compiler raises is the result
        return f"{type(error).__name__}: {error}".strip()[-2000:]


@functools.lru_cache(maxsize=1)
def _calls(architecture: str) -> "dict[str, KernelCall]":
    from attn_optimized.shipped_calls import chosen

    return chosen(architecture)
