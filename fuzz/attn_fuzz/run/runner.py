"""Shards over worker processes: what finishes, fails or is interrupted, nothing found is lost.

Shards do not depend on the number of workers, so that a seed means the same run everywhere.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run import shard
from attn_fuzz.run.executor import Executor
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets.registry import UnknownTargetError
from attn_fuzz.zoo.mutants import MutantError

SHARD_EXAMPLES = 150
MAX_SHARDS = 4096
END_SECONDS = 15.0


@dataclass
class Outcome:
    """What became of the shards, by their index; one that was never started has examined nothing. `restarted` are those whose
    worker process died before they had found anything."""

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


def replays(plan: FuzzPlan, past: Sequence[Case], workers: int) -> list[FuzzPlan]:
    """Plans that run past cases, spread over as many workers, and draw none."""
    return [msgspec.structs.replace(plan, examples=0, past=tuple(past[i::workers])) for i in range(min(workers, len(past)))]


def run(
    plans: Sequence[FuzzPlan],
    workers: int,
    *,
    stop_at_failure: bool,
    report: Callable[[int, Progress], None] = lambda index, progress: None,
) -> Outcome:
    """Run every plan on one of the workers. A plan whose worker dies, as by a system short of memory, is run once more.

    Args:
        plans: shards.
        workers: processes at once; each drives one executor.
        stop_at_failure: once a shard has found a failure and made it small, end those that have found none.
        report: is told of every case, with the index of its plan.
    """
    outcome = Outcome([Progress() for _ in plans])
    with _processes(plans) as start:
        try:
            pool = _Pool(plans, outcome, report, start, waiting=list(range(len(plans))))
            pool.idle = [start() for _ in range(min(workers, len(plans)))]
            while outcome.error is None:
                if stop_at_failure and any(outcome.progress[index].failure for index in outcome.finished):
                    pool.drop_what_found_nothing()
                if _is_late(plans):
                    pool.waiting.clear()
                pool.hand_out()
                if not pool.busy:
                    return outcome
                pool.receive()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second one would lose what is now to be told
            outcome.interrupted = True
        return outcome


@dataclass
class _Pool:
    """Worker processes, and which plan each of them runs.

    Args:
        plans: all shards; the others name them by their index.
        outcome: what is known of them.
        report: is told of every case.
        start: starts a worker process.
        waiting: plans that are still to be run, in order.
        idle: workers without a plan.
        busy: the plan of each other worker.
    """

    plans: Sequence[FuzzPlan]
    outcome: Outcome
    report: Callable[[int, Progress], None]
    start: Callable[[], Connection]
    waiting: list[int]
    idle: list[Connection] = field(default_factory=list)
    busy: dict[Connection, int] = field(default_factory=dict)

    def drop_what_found_nothing(self) -> None:
        """Wait for no plan any more but those that have found a failure and are making it small."""
        self.waiting.clear()
        self.busy = {worker: index for worker, index in self.busy.items() if self.outcome.progress[index].failure is not None}

    def hand_out(self) -> None:
        while self.idle and self.waiting:
            index, worker = self.waiting.pop(0), self.idle.pop()
            with contextlib.suppress(ConnectionError):  # a worker that died while it was idle is noticed by `receive`
                worker.send(self.plans[index])
            self.busy[worker] = index

    def receive(self) -> None:
        """Wait for messages, and take one from each worker that has sent any. The first error ends the run."""
        for worker in multiprocessing.connection.wait(list(self.busy)):
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
                elif message is None:
                    self.outcome.finished.add(index)
                    del self.busy[worker]
                    self.idle.append(worker)
                else:
                    self.outcome.error = message
            if self.outcome.error is not None:
                return

    def _replace(self, worker: Connection) -> None:
        """Start another worker for one that died. Its plan is run once more, unless it has found something already."""
        index = self.busy.pop(worker)
        self.idle.append(self.start())
        if self.outcome.progress[index].failure is not None:
            self.outcome.finished.add(index)
        elif index not in self.outcome.restarted:
            self.outcome.restarted.add(index)
            self.waiting.insert(0, index)
        else:
            self.outcome.error = "a worker process died, and so did the one that took its place"


def _is_late(plans: Sequence[FuzzPlan]) -> bool:
    return any(plan.until is not None and time.time() > plan.until for plan in plans)


@contextlib.contextmanager
def _processes(plans: Sequence[FuzzPlan]) -> Iterator[Callable[[], Connection]]:
    """A function that starts a worker; all that it has started end with the block."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []

    def start() -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,))
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
        return ours

    try:
        yield start
    finally:
        for connection in connections:
            connection.close()  # whoever loses the signal, in a callback that swallows exceptions, ends at its next message
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(END_SECONDS)
            process.kill()  # one that lost the signal; its executor ends when it sees that it is alone
            process.join()
            for plan in {plan.folder: plan for plan in plans}.values():
                shard.in_flight(plan, process.pid or 0).unlink(missing_ok=True)


def _work(connection: Connection) -> None:
    """A worker: one plan after another; its messages are Progress, then None or the text of an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # idle, it ends when its connection does
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
            executor.stop()


def _shard(plan: FuzzPlan, executor: Executor, connection: Connection) -> str | None:
    """Run a plan; None, or the text of what made it impossible. A SIGTERM ends it as KeyboardInterrupt.

    (Hypothesis takes SystemExit for a failing example and goes on.)
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        shard.fuzz(plan, executor, connection.send)
    except MutantError as error:
        connection.send(Progress(broken=str(error)))
    except (ExecutorError, UnknownTargetError, OSError) as error:
        return str(error)
    except Exception:
        return f"the fuzzer itself failed\n{traceback.format_exc()}"
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return None
