"""Runs shards on worker processes. No failure that was found is lost, even if a worker dies or the run is interrupted.

Shards do not depend on the number of workers, so a seed means the same run on every machine.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import msgspec
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.run import prepared, shard
from attn_fuzz.run.executor import Executor
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.zoo.mutants import MutantError, NeverRanError

SHARD_EXAMPLES = 150
REPLAYED_CASES = 10
MAX_SHARDS = 4096
END_SECONDS = 15.0
WAKE_SECONDS = 1.0
RECEIVED = "received"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Outcome:
    """What became of a run's shards.

    Attributes:
        progress: of each shard, by its index; a shard that never started has no examples.
        restarted: indices of shards that ran again because their worker process died before it had found a failure.
        interrupted: whether Ctrl-C or SIGTERM ended the run.
        error: the error that ended the run, or None.
        finished: indices of shards that ran to their end.
    """

    progress: list[Progress]
    restarted: set[int] = field(default_factory=set)
    interrupted: bool = False
    error: str | None = None
    finished: set[int] = field(default_factory=set)


def shards(plan: FuzzPlan) -> list[FuzzPlan]:
    """Cut a plan into shards of about SHARD_EXAMPLES, each with its own seed."""
    count = min(max(1, round(plan.examples / SHARD_EXAMPLES)), MAX_SHARDS)
    sizes = [plan.examples // count + (i < plan.examples % count) for i in range(count)]
    return [
        msgspec.structs.replace(plan, examples=size, seed=(plan.seed * 1_000_003 + i) % (1 << 63))
        for i, size in enumerate(sizes)
    ]


def replays(plan: FuzzPlan, past: Sequence[Case]) -> list[FuzzPlan]:
    """Plans that only run past cases, each REPLAYED_CASES of them."""
    return [
        msgspec.structs.replace(plan, examples=0, past=tuple(past[i : i + REPLAYED_CASES]))
        for i in range(0, len(past), REPLAYED_CASES)
    ]


def run(
    plans: Sequence[FuzzPlan],
    workers: int,
    *,
    stop_at_failure: bool,
    report: Callable[[int, Progress], None] = lambda index, progress: None,
    ended: Callable[[int, Progress], None] = lambda index, progress: None,
) -> Outcome:
    """Run every plan on one of the workers. If a worker dies, for example because memory is short, its plan is run once more.

    Args:
        plans: shards.
        workers: processes at once; each drives one executor.
        stop_at_failure: when a shard has found a failure and shrunk it, end the shards behind it that have found none. The
            shards before it run to their end, so the first failing shard is the same with any number of workers.
        report: called after every case with the index of the plan and its progress.
        ended: called when a plan has run to its end.
    """
    outcome = Outcome([Progress() for _ in plans])
    with _noting_signals(outcome) as noting, contextlib.suppress(KeyboardInterrupt), _processes(plans) as processes:
        pool = _Pool(plans, outcome, report, ended, processes, waiting=list(range(len(plans))))
        pool.idle = [processes.start() for _ in range(min(workers, len(plans)))]
        noting.raises = False
        while outcome.error is None and not outcome.interrupted:
            if stop_at_failure and (failed := [index for index in outcome.finished if outcome.progress[index].failure]):
                pool.drop_behind(min(failed))
            if _is_late(plans):
                pool.waiting.clear()
            pool.hand_out()
            if not pool.busy:
                break
            pool.receive(WAKE_SECONDS)
        pool.receive_sent()
    return outcome


@dataclass
class _Noting:
    """Whether a signal raises KeyboardInterrupt, too: while workers are being started, which takes seconds."""

    raises: bool = True


@contextlib.contextmanager
def _noting_signals(outcome: Outcome) -> Iterator[_Noting]:
    """Note that the run is interrupted, instead of raising KeyboardInterrupt wherever the signal happens to come.

    After an interruption this process ignores further signals: they would lose the failures that are about to be reported.
    """
    noting = _Noting()

    def note(number: int, frame: object) -> None:
        is_first, outcome.interrupted = not outcome.interrupted, True
        if noting.raises and is_first:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    numbers = [one for one in _SIGNALS if in_main and signal.getsignal(one) is signal.default_int_handler]
    for number in numbers:
        signal.signal(number, note)
    try:
        yield noting
    finally:
        for number in _SIGNALS if numbers and outcome.interrupted else numbers:
            signal.signal(number, signal.SIG_IGN if outcome.interrupted else signal.default_int_handler)


@dataclass
class _Pool:
    """Worker processes, and which plan each of them runs.

    Args:
        plans: all shards. The other fields name a plan by its index.
        outcome: what became of the plans so far.
        report: called after every case.
        ended: called when a plan has run to its end.
        processes: starts workers.
        waiting: plans that still have to run, in order.
        idle: workers without a plan.
        busy: the plan of each worker that has one.
    """

    plans: Sequence[FuzzPlan]
    outcome: Outcome
    report: Callable[[int, Progress], None]
    ended: Callable[[int, Progress], None]
    processes: "_Processes"
    waiting: list[int]
    idle: list[Connection] = field(default_factory=list)
    busy: dict[Connection, int] = field(default_factory=dict)

    def drop_behind(self, failed: int) -> None:
        """Of the plans behind a plan that has failed, wait only for those that have found a failure and are shrinking it."""
        self.waiting = [index for index in self.waiting if index < failed]
        self.busy = {
            worker: index
            for worker, index in self.busy.items()
            if index < failed or self.outcome.progress[index].failure is not None
        }

    def hand_out(self) -> None:
        while self.idle and self.waiting:
            index = self.waiting.pop(0)
            worker = self.idle.pop()
            with contextlib.suppress(ConnectionError):  # a worker that died while it was idle is noticed by `receive`
                worker.send(self.plans[index])
            self.busy[worker] = index

    def receive_sent(self) -> None:
        """Take the messages that workers have sent by now."""
        while any(worker.poll() for worker in self.busy):
            self.receive(0)

    def receive(self, seconds: float) -> None:
        """Wait for messages, and take one message from each worker that has sent some. The first error ends the run."""
        self.processes.wake()
        for worker in multiprocessing.connection.wait(list(self.busy), seconds):
            assert isinstance(worker, Connection)
            index = self.busy[worker]
            try:
                message = worker.recv()
            except (EOFError, OSError):
                self._replace(worker)
            else:
                if isinstance(message, Progress):
                    self.outcome.progress[index] = message
                    self.report(index, message)
                    if message.failure is not None:
                        with contextlib.suppress(ConnectionError):
                            worker.send(RECEIVED)
                elif message is None:
                    self._end(index)
                    del self.busy[worker]
                    self.idle.append(worker)
                else:
                    self.outcome.error = self.outcome.error or message
                    del self.busy[worker]

    def _replace(self, worker: Connection) -> None:
        """Start another worker in place of a dead one, whose plan is run once more unless it has already found a failure."""
        index = self.busy.pop(worker)
        if self.outcome.interrupted or self.outcome.error is not None:
            return
        self.idle.append(self.processes.start())
        if self.outcome.progress[index].failure is not None:
            self._end(index)
        elif index not in self.outcome.restarted:
            self.outcome.restarted.add(index)
            self.waiting.insert(0, index)
        elif (mutant := self.plans[index].mutant) is not None:
            why = f"{mutant.name}: its worker process died, and so did the one that took its place"
            self.outcome.progress[index] = Progress(broken=why)
            self._end(index)
        else:
            self.outcome.error = "a worker process died, and so did the one that took its place"

    def _end(self, index: int) -> None:
        self.outcome.finished.add(index)
        self.ended(index, self.outcome.progress[index])


def _is_late(plans: Sequence[FuzzPlan]) -> bool:
    return any(plan.until is not None and time.time() > plan.until for plan in plans)


@dataclass
class _Processes:
    """Worker processes that run plans."""

    plans: Sequence[FuzzPlan]
    of: dict[Connection, BaseProcess] = field(default_factory=dict)
    _woken: float = field(default_factory=time.monotonic)

    def start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        process = prepared.process(self.plans[0].device, _work, theirs)
        process.start()
        theirs.close()
        self.of[ours] = process
        return ours

    def wake(self) -> None:
        """Now and then have workers go on that SIGSTOP has stopped: the run would wait for them for ever."""
        if time.monotonic() >= self._woken + WAKE_SECONDS:
            self._woken = time.monotonic()
            for process in self.of.values():
                _continue(process)

    def end(self) -> None:
        for connection, process in self.of.items():
            connection.close()  # a callback may swallow the signal's exception: such a worker ends at its next message
            process.terminate()
            _continue(process)
        for process in self.of.values():
            process.join(END_SECONDS)
            process.kill()  # a worker that lost the signal; its executor notices that the worker is gone, and ends
            process.join()


def _continue(process: BaseProcess) -> None:
    if process.pid is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def _processes(plans: Sequence[FuzzPlan]) -> Iterator[_Processes]:
    """Worker processes for the plans. When the block ends, they have ended, and their cases in flight are deleted."""
    processes = _Processes(plans)
    try:
        yield processes
    finally:
        processes.end()
        for plan in {plan.folder: plan for plan in plans}.values():
            for process in processes.of.values():
                for file in plan.folder.glob(f"{shard.in_flight(plan, process.pid or 0).stem}.*"):
                    file.unlink(missing_ok=True)


def _work(connection: Connection) -> None:
    """A worker process: it runs one plan after another. For each it sends Progress, and at the end None or an error's text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # an idle worker ends when its connection closes
    executor: Executor | None = None
    try:
        while True:
            plan: FuzzPlan = connection.recv()
            if executor is None or (executor.target, executor.mutant) != (plan.target, plan.mutant):
                if executor is not None:
                    executor.stop()
                executor = shard.start_executor(plan)
            connection.send(_shard(plan, executor, connection))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        if executor is not None:
            # the case in flight stays: it may be a failure that a killed main process has not written
            executor.end()


def _shard(plan: FuzzPlan, executor: Executor, connection: Connection) -> str | None:
    """Run a plan, and return None or the text of the error that ended it. SIGTERM ends a plan by KeyboardInterrupt.

    SystemExit would not end a plan: Hypothesis takes it for a failing example and goes on.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def tell(progress: Progress) -> None:
        connection.send(progress)
        if progress.failure is not None:
            connection.recv()  # until the main process has written the failing case, the case in flight is that case

    try:
        shard.fuzz(plan, executor, tell)
    except MutantError as error:
        connection.send(Progress(broken=str(error), never_ran=isinstance(error, NeverRanError)))
    except CaseError:  # no file's: `shard` drew the case
        return f"the fuzzer itself failed\n{traceback.format_exc()}"
    except (ExecutorError, InputError, OSError) as error:
        if plan.mutant is None:
            return str(error)
        connection.send(Progress(broken=f"{plan.mutant.name}: {error}"))
    except Exception:
        return f"the fuzzer itself failed\n{traceback.format_exc()}"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return None
