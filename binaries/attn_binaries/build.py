"""Compile launches in processes without Triton's interpreter, or do other work in processes of their own."""

import contextlib
import functools
import importlib
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, TypeVar

from attn_fuzz import current_folder
from attn_fuzz.run.processes import prepared

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    # imports Triton, which decides on its first import whether kernels are interpreted
    from attn_binaries.compilation import Binary

LaunchName = tuple[str, str]
"""An architecture, and the name of a launch."""
LaunchSource = tuple[Any, ...]
"""A module that has `all_of(architecture, *others)`, which gives launches by name, and the others."""
SHIPPED: LaunchSource = ("attn_binaries.shipped_calls",)
Work = TypeVar("Work", bound=tuple[Any, ...])
Result = TypeVar("Result")


COMPILE_SECONDS = 300.0
"""The seconds that the compilation of a launch may take."""


class OutOfTime(str):
    """The reason that a launch has no code because its compiler took too long. The launch itself may be right."""


@dataclass
class Outcome:
    """The results in the order of the jobs: a binary, or why there is none. An interrupted run has results of some jobs."""

    binaries: "dict[LaunchName, Binary]" = field(default_factory=dict)
    errors: dict[LaunchName, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def out_of_time(self) -> int:
        """The number of launches that had no code in time."""
        return sum(isinstance(error, OutOfTime) for error in self.errors.values())


def build(
    jobs: Sequence[LaunchName],
    workers: int,
    report: Callable[[int], None] = lambda done: None,
    launches: LaunchSource = SHIPPED,
    compile_seconds: float = COMPILE_SECONDS,
) -> Outcome:
    """Compile every job by `in_processes`. Triton's cache holds the binaries of earlier runs.

    Args:
        report: called with the number of finished jobs.
        launches: the launches that jobs are for.
        compile_seconds: seconds that each job may take.
    """
    outcome = Outcome()
    work = functools.partial(_compile, launches=launches, compile_seconds=compile_seconds)
    found, outcome.interrupted = in_processes(work, jobs, workers, lambda found: report(len(found)))
    for job in jobs:
        if isinstance(result := found.get(job), str):
            outcome.errors[job] = result
        elif result is not None:
            outcome.binaries[job] = result
    return outcome


def in_processes(
    work: Callable[..., Result],
    jobs: Sequence[Work],
    workers: int,
    report: Callable[[Mapping[Work, Result | str]], None] = lambda found: None,
    *,
    interpreter: bool = False,
    seconds: float = math.inf,
) -> tuple[dict[Work, Result | str], bool]:
    """Call work(*job) for each job: the results or the errors in words, and whether an interrupt left jobs out.

    If a compiler crashes and its process dies, only the job of that process fails: one that kills a lone process twice.

    Args:
        work: called in other processes. It must not return a str, because a str is an error.
        workers: the number of processes.
        report: called after each job, with the results so far.
        interpreter: True if these processes have Triton's interpreter. Without it they can compile.
        seconds: the time after which the remaining jobs are given up.
    """
    found: dict[Work, Result | str] = {}
    until = time.monotonic() + seconds
    others, at_once, interrupted, suspect = set(active_children()), workers, False, None
    try:
        while left := [job for job in jobs if job not in found]:
            _pass(work, left, at_once, found, report, interpreter, until)
            left = [job for job in left if job not in found]
            if left and at_once == 1 and left[0] == suspect:
                found[left[0]] = "the process died"
                report(found)
            # a single process begins jobs in their order, so it died at the first of the rest: of the job, or from outside
            suspect = left[0] if left and at_once == 1 and left[0] not in found else None
            at_once = 1 if left and (at_once > 1 or suspect) else workers
    except TimeoutError:
        pass
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if any(job not in found for job in jobs):
            for process in set(active_children()) - others:
                process.terminate()  # otherwise each process would first finish its job
    return found, interrupted


def _pass(
    work: Callable[..., Result],
    jobs: Sequence[Work],
    workers: int,
    found: dict[Work, Result | str],
    report: Callable[[Mapping[Work, Result | str]], None],
    interpreter: bool,
    until: float,
) -> None:
    """Do jobs until a process dies. The process was at one or more of the jobs that are left then.

    Raises:
        TimeoutError: some are not done until then.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=_context(interpreter), initializer=_begin, initargs=(current_folder.folders,)
    )
    futures: dict[Future[Result | str], Work] = {}
    try:
        # submissions start the processes
        with _compiling(), prepared.interrupts_later(), contextlib.suppress(BrokenProcessPool):
            for job in jobs:
                futures[pool.submit(_tried, work, job)] = job
        for future in as_completed(futures, None if until == math.inf else until - time.monotonic()):
            with contextlib.suppress(BrokenProcessPool):
                found[futures[future]] = future.result()
                report(found)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _tried(work: Callable[..., Result], job: tuple[Any, ...]) -> Result | str:
    try:
        return work(*job)
    except Exception as error:  # any error of a compiler is the result of the job
        return f"{type(error).__name__}: {error}".strip()[-2000:]


def _context(interpreter: bool) -> BaseContext:
    """New interpreters of Python, or forks of a process that has imported Triton with its interpreter."""
    return prepared.context("cpu") if interpreter else prepared.spawn


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """New interpreters of Python that start inside compile.

    The variable must be unset as they start: the first module that they import, the caller's main module, may import Triton.
    """
    given = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["TRITON_INTERPRET"] = given


def _begin(folders: Mapping[str, str]) -> None:
    """Begin a compiling process. A kernel may be in a module of the current folder: `folders` has the folder of each."""
    prepared.end_with_parent()
    current_folder.folders.update(folders)
    warnings.simplefilter("ignore")


class Beside:
    """A fork of this process that works job by job, until a job takes too long: then it ends, with what it has started.

    A compiler in this process would return to no signal handler of Python, and one beside it would outlive this process.

    Args:
        work: called with each job.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        fork = get_context("fork")
        self._connection, others = fork.Pipe()
        self._process = fork.Process(target=_serve, args=(others, self._connection, work), daemon=True)
        self._process.start()
        others.close()

    def within(self, seconds: float, *job: Any) -> Any:
        """work(*job), or an error in words. After OutOfTime, or if the fork died, there is no next job."""
        self._connection.send(job)
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return "the process died"
        assert self._process.pid is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        return OutOfTime(f"has no code after {seconds:g} s, see --compile-seconds")

    @property
    def ended(self) -> bool:
        return not self._process.is_alive()


def _serve(connection: "Connection", others: "Connection", work: Callable[..., Any]) -> None:
    others.close()  # else this process would keep its own pipe open
    os.setpgrp()
    prepared.end_with_parent(group=True)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_tried(work, connection.recv()))


@functools.lru_cache(maxsize=1)
def _compiler(architecture: str, launches: LaunchSource) -> Beside:
    """Compiles launches of an architecture by name. They are made before it forks, so that no launch has that in its time."""
    from attn_binaries.compilation import compile_call

    module, *others = launches
    calls = importlib.import_module(module).all_of(architecture, *others)
    return Beside(lambda name: compile_call(calls[name], architecture))


def _compile(architecture: str, name: str, launches: LaunchSource, compile_seconds: float) -> "Binary | str":
    found: Binary | str = ""
    for _ in range(2):  # a compiler that dies may have been killed from outside: it is tried once more
        compiler = _compiler(architecture, launches)
        found = compiler.within(compile_seconds, name)
        if not compiler.ended:
            return found
        _compiler.cache_clear()
        if isinstance(found, OutOfTime):
            return found
    return found
