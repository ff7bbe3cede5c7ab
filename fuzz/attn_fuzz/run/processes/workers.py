"""Worker processes of this machine. Each runs one plan after another, and drives one executor."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from attn_fuzz.cases.case import CaseError
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.patches.mutant import MutantError, NeverRanError
from attn_fuzz.run import shard
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.shard import FuzzPlan, Progress

if TYPE_CHECKING:
    from attn_fuzz.run.processes.executor import Executor

END_SECONDS = 15.0
WAKE_SECONDS = 1.0
RECEIVED = "received"

Message = Progress | str | None
"""A message of a worker that runs a plan: Progress after every case, and at the end None or the text of an error."""


@dataclass(frozen=True, eq=False)
class Worker:
    """A worker process, and our end of its connection."""

    process: BaseProcess
    connection: Connection

    def run(self, plan: FuzzPlan) -> None:
        """Have the worker run a plan. A worker that has died is noticed by `receive`."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(plan)

    def receive(self) -> Message:
        """The message that `Workers.ready` has announced.

        Raises:
            prepared.LostError: the server died that has forked the worker, and the worker with it.
            EOFError, OSError: the worker has died.
        """
        try:
            if not self.connection.poll():
                raise EOFError
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(END_SECONDS)
            if prepared.is_lost(self.process):
                raise prepared.LostError from None
            raise

    def acknowledge(self) -> None:
        """Tell the worker that its failing case is on the disk. Until then, the file of its case in flight holds that case."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(RECEIVED)

    def forget_case(self, plan: FuzzPlan) -> None:
        """Delete the files of a plan's case in flight."""
        for file in plan.folder.glob(f"{shard.in_flight(plan, self.process.pid or 0).stem}.*"):
            file.unlink(missing_ok=True)


@dataclass
class Workers:
    """Worker processes that run plans.

    Args:
        device: "cpu" or "cuda".
        lives: the number of workers that may die of one plan before the run ends.
        started: all workers, those that have died too.
    """

    device: str
    lives: int = 2
    started: list[Worker] = field(default_factory=list)
    _woken: float = field(default_factory=time.monotonic)

    def start(self) -> Worker:
        ours, theirs = multiprocessing.Pipe()
        process = prepared.start(self.device, _work, theirs)
        theirs.close()
        self.started.append(Worker(process, ours))
        return self.started[-1]

    def ready(self, busy: Sequence[Worker], seconds: float) -> list[Worker]:
        """Wait until some of the workers have sent a message or have died, and return these."""
        self._wake()
        ends = [end for worker in busy for end in (worker.connection, worker.process.sentinel)]
        told = multiprocessing.connection.wait(ends, seconds)
        return [worker for worker in busy if worker.connection in told or worker.process.sentinel in told]

    def _wake(self) -> None:
        """Now and then continue workers that SIGSTOP has stopped: the run would wait for them for ever."""
        if time.monotonic() >= self._woken + WAKE_SECONDS:
            self._woken = time.monotonic()
            for worker in self.started:
                _continue(worker.process)

    def end(self) -> None:
        """End all workers, and what they have started."""
        for worker in self.started:
            worker.connection.close()  # a callback may swallow the signal's exception: such a worker ends at its next message
            worker.process.terminate()
            _continue(worker.process)
        for worker in self.started:
            worker.process.join(END_SECONDS)
            worker.process.kill()  # a worker that lost the signal; its executor notices that the worker is gone, and ends
            worker.process.join()


@contextlib.contextmanager
def here(plans: Sequence[FuzzPlan]) -> Iterator[Workers]:
    """Worker processes for the plans. When the block ends, they have ended, and their cases in flight are deleted."""
    workers = Workers(plans[0].device)
    try:
        yield workers
    finally:
        workers.end()
        for plan in {plan.folder: plan for plan in plans}.values():
            for worker in workers.started:
                worker.forget_case(plan)


def _continue(process: BaseProcess) -> None:
    if process.pid is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def _work(connection: Connection) -> None:
    """A worker process: it runs one plan after another. For each it sends Progress, and at the end None or an error's text."""
    sys.unraisablehook = _tell_swallowed
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # an idle worker ends when its connection closes
    executor: Executor | None = None
    try:
        while True:
            plan: FuzzPlan = connection.recv()
            executor = shard.executor_after(executor, plan)
            connection.send(_shard(plan, executor, connection))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        if executor is not None:
            # the case in flight stays: it may be a failure that a killed main process has not written
            executor.end()


def _tell_swallowed(error: "sys.UnraisableHookArgs") -> None:
    """Tell of an exception that a callback swallowed, unless it is a worker's interrupt: `Workers.end` ends that worker."""
    if error.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(error)


def _shard(plan: FuzzPlan, executor: "Executor", connection: Connection) -> str | None:
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
