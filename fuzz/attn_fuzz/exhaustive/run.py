"""Runs the launches of a scope on a target, in several processes: each launch once, until all have run or enough fail."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import LimitError
from attn_fuzz.exhaustive import calls, packing
from attn_fuzz.exhaustive.calls import LeftOut
from attn_fuzz.exhaustive.packing import PackedLaunch
from attn_fuzz.exhaustive.scope import Scope, ScopePart
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import Verdict

TRIAL = "attn_fuzz.exhaustive.judging:try_launch"
"""Runs and judges one case in an executor's process; see `Executor.trial`."""
END_SECONDS = 2.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a run.

    Attributes:
        target: name of the target.
        device: "cpu" or "cuda".
        scope: its name.
        shard: (k, n), k from 1: the launches whose number leaves the remainder k - 1 when it is divided by n.
        workers: processes at once.
        folder: the folder for running cases.
        failures: the number of failing launches after which to stop.
        case_seconds: seconds that one launch may take.
        sanitize: True if to check every memory access (`attn_fuzz.interpreted.sanitizer`).
        exactly: True if each launch is followed in exact mode, too (`attn_fuzz.exact`).
    """

    target: str
    device: str
    scope: str
    shard: tuple[int, int] = (1, 1)
    workers: int
    folder: Path
    failures: int = 1
    case_seconds: float = 60.0
    sanitize: bool = False
    exactly: bool = False


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest failing case in a launch, and its verdict."""

    case: Case
    verdict: Verdict


class Result(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    calls: int
    verdict: Verdict
    failed: Failed | None = None


@dataclass
class Counted:
    """The number of calls of a part, and the number of launches that run them.

    Args:
        part: the part.
        block_sizes: on the target.
        layers, calls, launches: the numbers of those that run.
        left_out: the numbers of those that do not.
    """

    part: ScopePart
    block_sizes: tuple[int, ...]
    layers: int = 0
    calls: int = 0
    launches: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)


def numbered(scope: Scope, name: str, target: Target, device: str, counts: list[Counted]) -> Iterator[tuple[int, PackedLaunch]]:
    """The launches of a scope with their numbers, in the same order in each run. `counts` gets one entry per part."""
    plainest, number = calls.base(name, target, device), 0
    for part in scope.parts:
        counts.append(Counted(part, calls.block_sizes(part, plainest, target.support(device))))
        for group in calls.groups(part, plainest, target, device, counts[-1].left_out):
            counts[-1].layers += 1
            for launch in packing.launches(part, group):
                counts[-1].launches += 1
                counts[-1].calls += launch.num_calls
                yield number, launch
                number += 1


def in_shard(number: int, shard: tuple[int, int]) -> bool:
    """True if a shard has the launch of a number. Each launch is in one shard of n, and neighbours are in different ones."""
    return number % shard[1] == shard[0] - 1


@dataclass
class _Shared:
    """The state that threads of a run share: each takes the next launch, and puts its result into the queue. `serves` says if
    the target serves a case."""

    launches: Iterator[tuple[int, PackedLaunch]]
    failures: int
    serves: Callable[[Case], bool]
    results: "queue.Queue[Result | Exception | None]" = field(default_factory=queue.Queue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def add(self, result: Result) -> None:
        """Put a result into the queue. After the last failure that is asked for, no thread takes another launch."""
        with self.lock:
            self.failures -= result.failed is not None
            if self.failures <= 0:
                self.stopping.set()
        self.results.put(result)

    def take(self) -> tuple[int, PackedLaunch] | None:
        with self.lock:
            return None if self.stopping.is_set() else next(self.launches, None)


def run(plan: Plan, launches: Iterable[tuple[int, PackedLaunch]], tell: Callable[[Result], None]) -> None:
    """Run launches. Each result is told at once, from this thread. The run stops after `plan.failures` failing launches.

    After the last failure, and after an interruption, launches that are running come to their end and are told.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        InputError, ExecutorError: the target or a case cannot be run.
        LimitError: a launch cannot be run, by a limit of this tool.
    """
    target = registry.usable(plan.target, plan.device)
    shared = _Shared(iter(launches), plan.failures, lambda case: calls.not_served(case, target, plan.device) is None)
    with ExitStack() as stack:
        executors = [_executor(plan, worker) for worker in range(plan.workers)]
        threads = [threading.Thread(target=_work, args=(shared, executor), daemon=True) for executor in executors]
        stack.callback(_end, shared, threads, executors)
        for thread in threads:
            thread.start()
        try:
            _receive(shared, len(threads), tell)
        except KeyboardInterrupt:
            shared.stopping.set()
            for thread in threads:
                thread.join(END_SECONDS)
            _tell_rest(shared, tell)
            raise


def _receive(shared: _Shared, working: int, tell: Callable[[Result], None]) -> None:
    """Tell results until no thread works any more."""
    while working:
        result = shared.results.get()
        if result is None:
            working -= 1
        elif isinstance(result, Exception):
            raise result
        else:
            tell(result)


def _tell_rest(shared: _Shared, tell: Callable[[Result], None]) -> None:
    with suppress(queue.Empty):
        while True:
            result = shared.results.get_nowait()
            if isinstance(result, Result):
                tell(result)


def _executor(plan: Plan, worker: int) -> Executor:
    ahead = plan.folder / f"exhaust-in-flight-{os.getpid()}-{worker}.json"
    return Executor(
        plan.target, plan.device, plan.case_seconds, ahead, sanitize=plan.sanitize, trial=TRIAL, exactly=plan.exactly
    )


def _work(shared: _Shared, executor: Executor) -> None:
    """A thread: it has its executor run one launch after another."""
    try:
        while (taken := shared.take()) is not None:
            shared.add(_result(*taken, executor, shared.serves))
    except Exception as error:
        shared.stopping.set()
        shared.results.put(error)
    shared.results.put(None)


def _result(number: int, launch: PackedLaunch, executor: Executor, serves: Callable[[Case], bool]) -> Result:
    def run_if_served(case: Case) -> Verdict:
        """A part of a launch may be a call that the target does not serve, such as a request without a query alone."""
        return executor.run(case) if serves(case) else Verdict(kind="refused")

    verdict = executor.run(launch.case)
    if verdict.kind == "limit":
        raise LimitError(f"{executor.target}, launch {number}: {verdict.about}", "")
    failed = None
    if verdict.failed:
        case, smallest = packing.smallest(launch.case, verdict, run_if_served)
        failed = Failed(case=case, verdict=smallest)
    return Result(number=number, calls=launch.num_calls, verdict=verdict, failed=failed)


def _end(shared: _Shared, threads: list[threading.Thread], executors: list[Executor]) -> None:
    """End the processes, also those of a kernel that does not answer."""
    shared.stopping.set()
    for thread in threads:
        if thread.is_alive():
            thread.join(END_SECONDS)
    for executor in executors:
        executor.stop()
