"""The one loop behind the command line, the pytest job and the zoo: draw, run, judge, shrink.

`fuzz` is one shard: one seed, one executor. Whatever is found is handed out through `report` as it is found, so that an
interrupted run loses nothing.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.configuration
import hypothesis.errors
import msgspec
from attn_fuzz import shrink, targets
from attn_fuzz.case import Case, CaseError
from attn_fuzz.check import Verdict
from attn_fuzz.executor import Executor
from attn_fuzz.strategies import cases
from attn_fuzz.zoo.mutants import Mutant
from hypothesis import HealthCheck, Phase
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import SearchStrategy

SHRINK_SECONDS = 240.0
# what Hypothesis keeps between runs would lie in the user's folder
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "attn-parity-hypothesis"))
INDEPENDENT = "attn-parity-independent"


class _Independent(HypothesisProvider):
    """Hypothesis's own source of numbers, without two of its habits.

    It follows each case that it draws with five variations of it, so that a few hundred would be a few dozen; where it believes
    the numbers to be somebody else's it does not. And it mixes in numbers that it reads in the source of all loaded modules, so
    that a seed would mean other cases after an edit or an import.
    """

    def _maybe_draw_constant(self, *args: object, **kwargs: object) -> None:
        return None


AVAILABLE_PROVIDERS[INDEPENDENT] = _Independent


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard does.

    Attributes:
        target: name of the target.
        device: "cpu" or "cuda".
        examples: how many cases to draw.
        seed: of Hypothesis; the same plan draws the same cases.
        limit: seconds that one case may take.
        until: stop drawing at this time (`time.time()`), if given.
        folder: where the case in flight is written.
        mutant: a bug to put back first.
        shrinks: whether to look for the smallest case.
    """

    target: str
    device: str
    examples: int
    seed: int
    folder: Path
    limit: float = 60.0
    until: float | None = None
    mutant: Mutant | None = None
    shrinks: bool = True


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that fails: as small as it got, and after how many examples it was first seen."""

    case: Case
    verdict: Verdict
    first: Case
    found_after: int
    found_seconds: float
    minimal: bool


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard stands. `failure` is the smallest failing case so far; `shrinking` counts the cases tried for it; `events`
    counts the examples that took each of the target's paths."""

    examples: int = 0
    refused: int = 0
    seconds: float = 0.0
    ratio: float = 0.0
    spent: dict[str, float] = {}
    events: dict[str, int] = {}
    shrinking: int = 0
    failure: Failure | None = None


class _OutOfTime(Exception):  # noqa: N818 - ends a run, is no error
    pass


def fuzz(plan: Plan, executor: Executor, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Draw and check cases until one fails or the plan ends; shrink what fails.

    Args:
        plan: the shard.
        executor: runs the cases; see `start_executor`.
        report: is told after each case.

    Raises:
        UnknownTargetError, ExecutorError: the target cannot be run.
    """
    target = targets.load(plan.target)
    support = target.support(plan.device)
    shard = _Shard(plan, executor, report)
    draw = _hypothesis_test(plan, cases(plan.target, support, target.refuses), shard.draw)
    try:
        draw()
    except (_DisagreementError, hypothesis.errors.Flaky, _OutOfTime, ExceptionGroup):
        if shard.unexpected is not None:
            raise shard.unexpected from None
        if shard.progress.failure is None and not shard.is_late():
            raise
    failure = shard.progress.failure
    if failure is not None and plan.shrinks:
        within = support if support.beyond(failure.case) is None else support.widened()
        _, minimal = shrink.shrink(failure.case, within, shard.still_fails, shard.may_shrink)
        shard.finish(minimal)
    return shard.progress


def drawn(plan: Plan) -> list[Case]:
    """The cases that a plan draws while none fails; nothing is run."""
    target = targets.load(plan.target)
    found: list[Case] = []
    _hypothesis_test(plan, cases(plan.target, target.support(plan.device), target.refuses), found.append)()
    return found


def start_executor(plan: Plan) -> Executor:
    """An executor for the plan's target, device and mutant; stop it when done with it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    return Executor(plan.target, plan.device, plan.limit, in_flight(plan, os.getpid()), plan.mutant)


def in_flight(plan: Plan, pid: int) -> Path:
    """Where the process that drives an executor keeps the case that is running."""
    return plan.folder / f"in-flight-{pid}.json"


class _DisagreementError(AssertionError):
    pass


class _Shard:
    """The state of one run, and what Hypothesis and the shrinker call."""

    def __init__(self, plan: Plan, executor: Executor, report: Callable[[Progress], None]) -> None:
        self.plan = plan
        self.executor = executor
        self.report = report
        self.started = time.monotonic()
        self.progress = Progress()
        self.shrink_until = float("inf")
        self.unexpected: Exception | None = None

    def tell(self, **changes: object) -> None:
        self.progress = msgspec.structs.replace(self.progress, seconds=time.monotonic() - self.started, **changes)
        self.report(self.progress)

    def is_late(self) -> bool:
        return self.plan.until is not None and time.time() > self.plan.until

    def finish(self, minimal: bool) -> None:
        assert self.progress.failure is not None
        self.tell(failure=msgspec.structs.replace(self.progress.failure, minimal=minimal))

    def draw(self, case: Case) -> None:
        """One example of Hypothesis, while it draws and while it shrinks."""
        first = self.progress.failure is None
        if first and self.is_late():
            raise _OutOfTime
        if not first and not self.may_shrink():
            return
        try:
            verdict = self.executor.run(case)
        except Exception as error:
            self.unexpected = error
            raise
        self._count(verdict, first)
        if verdict.failed:
            self._keep(case, verdict)
            raise _DisagreementError(verdict.message)

    def still_fails(self, case: Case) -> bool:
        try:
            verdict = self.executor.run(case)
        except CaseError:
            return False
        self._count(verdict, False)
        if verdict.failed:
            self._keep(case, verdict)
        return verdict.failed

    def may_shrink(self) -> bool:
        return self.plan.shrinks and time.monotonic() < self.shrink_until

    def _count(self, verdict: Verdict, first: bool) -> None:
        spent = {name: self.progress.spent.get(name, 0.0) + seconds for name, seconds in verdict.seconds.items()}
        events = {name: self.progress.events.get(name, 0) + 1 for name in set(verdict.events)}
        if first:
            self.tell(
                examples=self.progress.examples + 1,
                refused=self.progress.refused + (verdict.kind == "refused"),
                ratio=max(self.progress.ratio, verdict.ratio),
                spent={**self.progress.spent, **spent},
                events={**self.progress.events, **events},
            )
        else:
            self.tell(shrinking=self.progress.shrinking + 1)

    def _keep(self, case: Case, verdict: Verdict) -> None:
        old = self.progress.failure
        if old is None:
            self.shrink_until = time.monotonic() + SHRINK_SECONDS
            failure = Failure(
                case=case,
                verdict=verdict,
                first=case,
                found_after=self.progress.examples,
                found_seconds=time.monotonic() - self.started,
                minimal=False,
            )
        else:
            failure = msgspec.structs.replace(old, case=case, verdict=verdict)
        self.tell(failure=failure)


def _hypothesis_test(plan: Plan, strategy: SearchStrategy[Case], draw: Callable[[Case], None]) -> Callable[[], None]:
    phases = [Phase.generate, *([Phase.shrink] if plan.shrinks else [])]

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        backend=INDEPENDENT,
        max_examples=plan.examples,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def agree(case: Case) -> None:
        draw(case)

    return agree
