"""Runs shards on workers. No failure that was found is lost, even if a worker dies or the run is interrupted.

Workers are processes of this machine (`processes.workers`) or tasks of a Ray cluster (`processes.fleet`). The cases of a shard
depend neither on the number of workers nor on where they run, so a seed means the same cases on every machine. Where there are
more workers than shards, several of them run the cases of one shard (`in_turns`).
"""

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import msgspec
from attn_fuzz.account import account
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run.processes.prepared import LostError
from attn_fuzz.run.processes.workers import WAKE_SECONDS, Message, here
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import modes
from attn_fuzz.targets.support import Support

SHARD_EXAMPLES = 150
REPLAYED_CASES = 10
MODES_SHARE = 4
"""One part in so many of a run's time is of examples in modes of the target, if the target has modes of its own."""
MODE_EXAMPLES = 10
"""The least time in a mode, in examples without one: starting an executor for the mode takes as long as two."""
TURN_EXAMPLES = 10
"""The fewest examples of a shard for a worker, beside others of that shard. Each of them draws the whole shard, in a second."""
MAX_SHARDS = 4096
PARTS, FEW_FAMILIES = 3, 128
"""The parts of a family on a GPU, in a run of few families. Some families are compiled for a minute: with whole ones, most of
16 workers had nothing to do in the last half of a run of 1000 examples. Each plan draws its whole shard, for half a second."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerProtocol(Protocol):
    """Runs one plan after another; see `attn_fuzz.run.processes.workers.Worker`."""

    def run(self, plan: FuzzPlan) -> None: ...
    def receive(self) -> Message: ...
    def acknowledge(self) -> None: ...


W = TypeVar("W", bound=WorkerProtocol)


class WorkersProtocol(Protocol[W]):
    """Starts workers and waits for them; see `attn_fuzz.run.processes.workers.Workers`.

    Attributes:
        lives: the number of workers that may die of one plan before the run ends.
    """

    lives: int

    def start(self) -> W: ...
    def ready(self, busy: Sequence[W], seconds: float) -> Sequence[W]: ...


@dataclass
class Outcome:
    """The results of a run's shards.

    Attributes:
        progress: the progress of each shard, by its index; a shard that never started has no examples.
        restarted: indices of shards that ran again because their worker process died before it had found a failure.
        interrupted: True if Ctrl-C or SIGTERM ended the run.
        error: the error that ended the run, or None.
        finished: indices of shards that ran to their end.
    """

    progress: list[Progress]
    restarted: set[int] = field(default_factory=set)
    interrupted: bool = False
    error: str | None = None
    finished: set[int] = field(default_factory=set)


def shards(plan: FuzzPlan, size: int = SHARD_EXAMPLES) -> list[FuzzPlan]:
    """Cut a plan into shards of about `size` examples, each with its own seed."""
    count = min(max(1, round(plan.examples / size)), MAX_SHARDS)
    examples = [plan.examples // count + (i < plan.examples % count) for i in range(count)]
    return [
        msgspec.structs.replace(plan, examples=number, seed=(plan.seed * 1_000_003 + i) % (1 << 63))
        for i, number in enumerate(examples)
    ]


def through_modes(plan: FuzzPlan, in_modes: Sequence[FuzzPlan], size: int = SHARD_EXAMPLES) -> list[FuzzPlan]:
    """The shards of a plan, and shards in modes of its target, each of which gets the same part of the time.

    If there are too few examples for all modes, the seed says which get some. The first shards are of no mode.

    Args:
        in_modes: the plan for the target in each mode.
    """
    own = shards(plan, size)
    number = min(len(in_modes), plan.examples // MODES_SHARE // MODE_EXAMPLES)
    placed: list[tuple[float, FuzzPlan]] = []
    for i in range(number):
        index = (plan.seed + i) % len(in_modes)
        examples = max(1, round(plan.examples / MODES_SHARE / number / modes.cost(in_modes[index].target)))
        of_mode = shards(msgspec.structs.replace(in_modes[index], examples=examples, seed=plan.seed + 1 + index), size)
        placed += [((j + 1) / len(of_mode), shard) for j, shard in enumerate(of_mode)]
    left = plan.examples - sum(shard.examples for _, shard in placed)
    for i, shard in enumerate(own):
        examples = left // len(own) + (i < left % len(own))
        placed.append((i / len(own), msgspec.structs.replace(shard, examples=examples)))
    return [shard for _, shard in sorted(placed, key=lambda each: each[0])]


def in_turns(plans: Sequence[FuzzPlan], support: Support, workers: int) -> list[FuzzPlan]:
    """Plans that together run the cases of these shards, in enough pieces for all workers.

    On a GPU a plan runs about a part of one family of a shard. Kernels are compiled for each family, one after the other. The
    families of a shard would wait for each other, while other workers have nothing to do, and so would the cases of a family
    at the end of a run. The first parts of all families come first: what a later part has in common with them is compiled by
    then. Elsewhere shards are cut only if there are more workers than shards.

    Args:
        support: the support of the target.
        workers: the number of plans that run at once.
    """
    if not plans:
        return []
    if support.steps_per_layer == 1 or plans[0].device == "cpu":
        shares = -(-workers // len(plans))
        return [
            msgspec.structs.replace(plan, turn=(i, turns))
            for plan in plans
            for turns in [max(1, min(shares, plan.examples // support.steps_per_layer // TURN_EXAMPLES))]
            for i in range(turns)
        ]

    def turns(plan: FuzzPlan) -> int:
        return -(-plan.examples // support.steps_per_layer)

    parts = PARTS if sum(map(turns, plans)) < FEW_FAMILIES else 1
    return [
        msgspec.structs.replace(plan, turn=(i, turns(plan)), part=(part, parts))
        for part in range(parts)
        for plan in plans
        for i in range(turns(plan))
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
    place: Callable[[Sequence[FuzzPlan]], AbstractContextManager[WorkersProtocol[W]]] = here,
) -> Outcome:
    """Run every plan on one of the workers. If a worker dies, for example because memory is short, its plan is run again.

    Args:
        plans: shards. What `report` and `ended` do may add plans at the end of a sequence, while the run goes on. They run
            after the next plan that waits. A plan that waits when its time is over does not run.
        workers: plans that run at once.
        stop_at_failure: when a plan has found a failure and shrunk it, end the plans after it that have found none. The
            plans before it run to their end, so the first failing plan is the same with any number of workers.
        report: called after every case with the index of the plan and its progress.
        ended: called when a plan has run to its end.
        place: the place where workers run; by default they are processes of this machine.
    """
    outcome = Outcome([Progress() for _ in plans])
    if not plans:
        return outcome
    with _noting_signals(outcome) as noting, contextlib.suppress(KeyboardInterrupt), place(plans) as started:
        pool = _Pool(plans, outcome, report, ended, started, waiting=list(range(len(plans))))
        pool.idle = [started.start() for _ in range(min(workers, len(plans)))]
        noting.raises = False
        while outcome.error is None and not outcome.interrupted:
            pool.take_in()
            if stop_at_failure and (failed := [index for index in outcome.finished if outcome.progress[index].failure]):
                pool.drop_after(min(failed))
            pool.drop_late()
            pool.hand_out()
            if not pool.busy:
                break
            pool.receive(WAKE_SECONDS)
        while pool.receive(0):
            pass
    return outcome


@dataclass
class _Noting:
    """A signal is noted. It raises KeyboardInterrupt, too, while workers are being started, which takes seconds."""

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
class _Pool(Generic[W]):
    """Workers, and which plan each of them runs.

    Args:
        plans: all shards. The other fields name a plan by its index.
        outcome: the results of the plans so far.
        report: called after every case.
        ended: called when a plan has run to its end.
        workers: starts workers, and waits for them.
        waiting: plans that still have to run, in order.
        idle: workers without a plan.
        busy: the plan of each worker that has one.
        deaths: the number of workers that have died of a plan.
    """

    plans: Sequence[FuzzPlan]
    outcome: Outcome
    report: Callable[[int, Progress], None]
    ended: Callable[[int, Progress], None]
    workers: WorkersProtocol[W]
    waiting: list[int]
    idle: list[W] = field(default_factory=list)
    busy: dict[W, int] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)

    def take_in(self) -> None:
        """Have plans that were added wait after the next plan, so that they do not keep all others waiting."""
        added = range(len(self.outcome.progress), len(self.plans))
        self.outcome.progress += [Progress() for _ in added]
        self.waiting[1:1] = added

    def drop_late(self) -> None:
        now = time.time()
        self.waiting = [index for index in self.waiting if (until := self.plans[index].until) is None or now <= until]

    def drop_after(self, failed: int) -> None:
        """Wait for no plan after one that has failed, unless it has found a failure and is shrinking it."""
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
            accounts = account.together([progress.accounts for progress in self.outcome.progress])
            worker.run(msgspec.structs.replace(self.plans[index], accounts=tuple(accounts.items())))
            self.busy[worker] = index

    def receive(self, seconds: float) -> bool:
        """Wait for messages, and take one message from each worker that has sent some. The first error ends the run.

        Returns:
            Whether there was a message.
        """
        ready = self.workers.ready(list(self.busy), seconds)
        for worker in ready:
            index = self.busy[worker]
            try:
                message = worker.receive()
            except (EOFError, OSError) as error:
                self._replace(worker, is_lost=isinstance(error, LostError))
            else:
                if isinstance(message, Progress):
                    self.outcome.progress[index] = message
                    self.report(index, message)
                    if message.failure is not None:
                        worker.acknowledge()
                elif message is None:
                    self._end(index)
                    del self.busy[worker]
                    self.idle.append(worker)
                else:
                    self.outcome.error = self.outcome.error or message
                    del self.busy[worker]
        return bool(ready)

    def _replace(self, worker: W, *, is_lost: bool) -> None:
        """Start another worker in place of a dead one, whose plan is run again unless it has already found a failure.

        Args:
            is_lost: True if the server has died: that is no death of the plan, and there may be only so many of them.
        """
        index = self.busy.pop(worker)
        if self.outcome.interrupted or self.outcome.error is not None:
            return
        try:
            self.idle.append(self.workers.start())
        except ExecutorError as error:
            self.outcome.error = str(error)
        self.deaths[index] += not is_lost
        if self.outcome.progress[index].failure is not None:
            self._end(index)
        elif self.deaths[index] < self.workers.lives:
            self.outcome.restarted.add(index)
            self.waiting.insert(0, index)
        elif (mutant := self.plans[index].mutant) is not None:
            why = f"{mutant.name}: its worker process died, and so did every one that took its place"
            self.outcome.progress[index] = Progress(broken=why)
            self._end(index)
        else:
            self.outcome.error = "a worker process died, and so did every one that took its place"

    def _end(self, index: int) -> None:
        self.outcome.finished.add(index)
        self.ended(index, self.outcome.progress[index])
