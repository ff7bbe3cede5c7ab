"""The one loop behind the command line, the pytest job and the zoo: draw, run, judge, shrink.

`fuzz` runs one shard: one seed, one executor. It reports each failure as soon as the failure is found, so an interrupted run
loses nothing.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.errors
import msgspec
from attn_fuzz.cases import features
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.findings.finding import Finding, explanation
from attn_fuzz.run import shrink
from attn_fuzz.run.executor import Executor
from attn_fuzz.strategies import families
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.verdict import Verdict
from attn_fuzz.zoo.mutants import Mutant, MutantError
from hypothesis import HealthCheck, Phase

SHRINK_SECONDS = 240.0


class FuzzPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard does.

    Attributes:
        target: name of the target.
        device: "cpu" or "cuda".
        examples: how many cases to draw.
        past: cases to run before any is drawn.
        seed: of Hypothesis; the same plan draws the same cases.
        limit: seconds that one case may take.
        until: stop drawing at this time (`time.time()`), if given.
        folder: where the case in flight is written.
        mutant: a bug to put back first.
        sanitize: whether to check every access, where the target can be sanitized; see `attn_fuzz.interpreted.sanitizer`.
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
    sanitize: bool = True
    shrinks: bool = True
    past: tuple[Case, ...] = ()


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a failing case was after so many others had been tried; `fields` are those that are not the simplest."""

    tried: int
    requests: int
    query_rows: int
    keys: int
    blocks: int
    fields: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that fails: as small as it got, after how many examples it was first seen, and the sizes from then to now."""

    case: Case
    verdict: Verdict
    first: Case
    found_after: int
    found_seconds: float
    minimal: bool
    path: tuple[Size, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard stands. `replayed` counts its past cases; all other counts are of cases that were drawn.

    `failure` is the smallest failing case so far; `shrinking` counts the cases tried for it; `events` counts the examples that
    took each of the target's paths, `known` those that failed as one of its findings says; `together` those that have a feature
    or a pair of features (`attn_fuzz.cases.features.count`); `ratios` counts the elements of outputs by error / bound, as
    `attn_fuzz.verdict.ratios.counts` does; `broken` is why the shard's mutant does not run.
    """

    replayed: int = 0
    examples: int = 0
    refused: int = 0
    seconds: float = 0.0
    ratio: float = 0.0
    spent: dict[str, float] = {}
    events: dict[str, int] = {}
    known: dict[str, int] = {}
    together: list[int] = []
    ratios: dict[str, list[int]] = {}
    shrinking: int = 0
    failure: Failure | None = None
    broken: str | None = None


class _OutOfTime(Exception):  # noqa: N818 - ends a run, is no error
    pass


class _Enough(Exception):  # noqa: N818 - likewise
    pass


def fuzz(plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Draw and check cases until one fails or the plan ends; shrink what fails.

    Args:
        plan: the shard.
        executor: runs the cases; see `start_executor`.
        report: is told after each case.

    Raises:
        UnknownTargetError, ExecutorError: the target cannot be run.
        MutantError: the mutant cannot be run; see `attn_fuzz.zoo.mutants`.
    """
    target = registry.load(plan.target)
    support = target.support(plan.device)
    shard = _Shard(plan, executor, report, target.findings)
    try:
        for case in plan.past:
            shard.replay(case)
        if plan.examples:
            _hypothesis_test(plan, target, shard.draw)()
    except (_CaseFails, hypothesis.errors.Flaky, _OutOfTime, ExceptionGroup):
        if shard.unexpected is not None:
            raise shard.unexpected from None
        if shard.progress.failure is None and not shard.is_late():
            raise
    failure = shard.progress.failure
    if plan.mutant is not None and failure is None and shard.progress.examples and not shard.has_run:
        raise MutantError(f"{plan.mutant.name}: it ran none of the cases that have queries and keys")
    if failure is not None and plan.shrinks:
        within = support if support.beyond(failure.case) is None else support.widened()
        _, minimal = shrink.shrink(failure.case, within, shard.still_fails, shard.may_shrink)
        shard.finish(minimal)
    return shard.progress


def drawn(plan: FuzzPlan) -> list[Case]:
    """The cases that a plan draws while none fails; nothing is run."""
    found: list[Case] = []
    _hypothesis_test(plan, registry.load(plan.target), found.append)()
    return found


def start_executor(plan: FuzzPlan) -> Executor:
    """An executor for the plan's target, device and mutant; stop it when done with it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    sanitize = plan.sanitize and registry.load(plan.target).can_be_sanitized(plan.device)
    return Executor(plan.target, plan.device, plan.limit, in_flight(plan, os.getpid()), plan.mutant, sanitize)


def in_flight(plan: FuzzPlan, pid: int) -> Path:
    """Where the process that drives an executor keeps the case that is running."""
    return plan.folder / f"in-flight-{pid}.json"


class _CaseFails(AssertionError):  # noqa: N818 - tells Hypothesis that an example fails
    pass


class _Shard:
    """The state of one run, and what Hypothesis and the shrinker call."""

    def __init__(
        self, plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None], findings: tuple[Finding, ...]
    ) -> None:
        self.findings = findings
        self.plan = plan
        self.executor = executor
        self.report = report
        self.started = time.monotonic()
        self.progress = Progress()
        self.shrink_until = float("inf")
        self.unexpected: Exception | None = None
        self.has_run = False

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
            verdict, finding = self._run(case)
        except MutantError:
            if first:
                raise
            return
        self._count(case, verdict, first, finding)
        if any(request.query_len and request.seq_len for request in case.requests):
            self.has_run |= verdict.kind not in ("raised", "refused")
        if self.plan.mutant is not None and verdict.kind == "raised" and not self.has_run:
            return  # what a mutant raises is a finding only if there are other cases, with work to do, that it runs
        if verdict.failed and finding is None:
            self._keep(case, verdict)
            raise _CaseFails(verdict.message)

    def replay(self, case: Case) -> None:
        """Run a past case; it fails the run as a drawn one does, and is counted apart."""
        if self.is_late():
            raise _OutOfTime
        verdict, finding = self._run(case)
        self.tell(replayed=self.progress.replayed + 1)
        if verdict.failed and finding is None:
            self._keep(case, verdict)
            raise _CaseFails(verdict.message)

    def _run(self, case: Case) -> tuple[Verdict, Finding | None]:
        try:
            verdict = self.executor.run(case)
        except Exception as error:
            if self.progress.failure is None or not isinstance(error, MutantError):
                self.unexpected = error
            raise
        return verdict, explanation(self.findings, case, verdict)

    def still_fails(self, case: Case) -> bool:
        try:
            verdict = self.executor.run(case)
        except (CaseError, MutantError):
            return False
        finding = explanation(self.findings, case, verdict)
        self._count(case, verdict, False, finding)
        fails = verdict.failed and finding is None
        if fails:
            self._keep(case, verdict)
        return fails

    def may_shrink(self) -> bool:
        return self.plan.shrinks and time.monotonic() < self.shrink_until

    def _count(self, case: Case, verdict: Verdict, first: bool, finding: Finding | None) -> None:
        spent = {name: self.progress.spent.get(name, 0.0) + seconds for name, seconds in verdict.seconds.items()}
        events = {name: self.progress.events.get(name, 0) + 1 for name in set(verdict.events)}
        known = {} if finding is None else {finding.name: self.progress.known.get(finding.name, 0) + 1}
        if first:
            self.tell(
                examples=self.progress.examples + 1,
                refused=self.progress.refused + (verdict.kind == "refused"),
                known={**self.progress.known, **known},
                ratio=self.progress.ratio if known else max(self.progress.ratio, verdict.ratio),
                spent={**self.progress.spent, **spent},
                events={**self.progress.events, **events},
                together=features.count(case, self.progress.together),
                ratios=self.progress.ratios if known else ratios.added(self.progress.ratios, verdict.ratios),
            )
        else:
            self.tell(shrinking=self.progress.shrinking + 1)

    def _keep(self, case: Case, verdict: Verdict) -> None:
        old = self.progress.failure
        size = _size(case, self.progress.shrinking)
        if old is None:
            self.shrink_until = time.monotonic() + SHRINK_SECONDS
            failure = Failure(
                case=case,
                verdict=verdict,
                first=case,
                found_after=self.progress.examples,
                found_seconds=time.monotonic() - self.started,
                minimal=False,
                path=(size,),
            )
        else:
            path = (*old.path, size)
            failure = msgspec.structs.replace(old, case=case, verdict=verdict, path=path)
        self.tell(failure=failure)


def _size(case: Case, tried: int) -> Size:
    simplest = Case(target=case.target)
    return Size(
        tried=tried,
        requests=len(case.requests),
        query_rows=case.query_start_loc[-1],
        keys=sum(request.seq_len for request in case.requests),
        blocks=case.cache.num_blocks if case.cache else 0,
        fields=sum(getattr(case, field.name) != getattr(simplest, field.name) for field in msgspec.structs.fields(case)),
    )


def _hypothesis_test(plan: FuzzPlan, target: Target, draw: Callable[[Case], None]) -> Callable[[], None]:
    support = target.support(plan.device)
    # a family has more than the case that fails: what is left to shrink is that case, and not the draws behind it
    shrinks = plan.shrinks and support.steps_per_layer == 1

    num_drawn = 0

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        INDEPENDENT,
        max_examples=plan.examples,
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(families(plan.target, support, target.refuses))
    def agree(family: tuple[Case, ...]) -> None:
        nonlocal num_drawn
        for case in family:
            if num_drawn == plan.examples and not shrinks:
                raise _Enough
            draw(case)
            num_drawn += 1

    def run() -> None:
        with contextlib.suppress(_Enough), warnings.catch_warnings():
            # that is the end of a run, which Hypothesis describes for itself with all cases of a family
            warnings.filterwarnings("ignore", "Generating overly large repr", hypothesis.errors.HypothesisWarning)
            agree()

    return run
