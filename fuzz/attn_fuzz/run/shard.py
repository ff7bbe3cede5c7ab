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
from attn_fuzz.strategies.tally import Tally
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
        past: cases of earlier runs, which run before any case is drawn.
        seed: of Hypothesis. The same plan draws the same cases.
        limit: seconds that one case may take.
        until: stop drawing at this time (`time.time()`), if given.
        folder: where the running case is written.
        mutant: a bug that is put back before the target is imported.
        sanitize: whether to check every memory access of a target that can be sanitized (`attn_fuzz.interpreted.sanitizer`).
        shrinks: whether to look for the smallest failing case.
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
    """The size of a failing case after `tried` smaller cases. `fields` counts the fields that differ from their defaults."""

    tried: int
    requests: int
    query_rows: int
    keys: int
    blocks: int
    fields: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that fails.

    Attributes:
        case, verdict: the smallest failing case so far, and its verdict.
        first: the case as it was found.
        found_after, found_seconds: the number of examples and the seconds until it was found.
        minimal: whether no field can be lowered further.
        path: the sizes of the failing cases from the first to the smallest.
    """

    case: Case
    verdict: Verdict
    first: Case
    found_after: int
    found_seconds: float
    minimal: bool
    path: tuple[Size, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a shard has come. All counts except `replayed` are of cases that were drawn.

    Attributes:
        replayed: past cases that ran.
        examples, refused: cases that ran, and how many of them the target refused rightly.
        seconds, spent: seconds since the start, and the seconds spent on each kind of work.
        ratio: the largest error / bound.
        events: by path of the target, how many examples took the path.
        known: by known finding, how many examples failed because of the finding.
        together: how many examples have a feature or a pair of features (`attn_fuzz.cases.features.count`).
        ratios: elements of outputs by error / bound (`attn_fuzz.verdict.ratios.counts`).
        rejected, remedies: by reason, cases that were drawn and thrown away, and at the end what says so directly
            (`attn_fuzz.strategies.tally`).
        shrinking: cases that were tried in order to shrink the failure.
        failure: the smallest failing case so far.
        broken: why the shard's mutant does not run.
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
    rejected: dict[str, int] = {}
    remedies: dict[str, list[str]] = {}
    shrinking: int = 0
    failure: Failure | None = None
    broken: str | None = None


class _OutOfTime(Exception):  # noqa: N818 - ends a run, is no error
    pass


class _Enough(Exception):  # noqa: N818 - likewise
    pass


def fuzz(plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Draw and check cases until a case fails or the plan ends. A failing case is shrunk.

    Args:
        plan: the shard.
        executor: runs the cases; see `start_executor`.
        report: called after each case with the progress.

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
            _hypothesis_test(plan, target, shard.draw, shard.tally)()
    except (_CaseFails, hypothesis.errors.Flaky, _OutOfTime, ExceptionGroup):
        if shard.unexpected is not None:
            raise shard.unexpected from None
        if shard.progress.failure is None and not shard.is_late():
            raise
    if shard.tally.rejected:
        shard.tell(remedies=shard.tally.remedies())
    failure = shard.progress.failure
    if plan.mutant is not None and failure is None and shard.progress.examples and not shard.has_run:
        raise MutantError(f"{plan.mutant.name}: it ran none of the cases that have queries and keys")
    if failure is not None and plan.shrinks:
        within = support if support.beyond(failure.case) is None else support.widened()
        _, minimal = shrink.shrink(failure.case, within, shard.still_fails, shard.may_shrink)
        shard.finish(minimal)
    return shard.progress


def drawn(plan: FuzzPlan) -> list[Case]:
    """The cases that a plan draws if no case fails. No case is run."""
    found: list[Case] = []
    _hypothesis_test(plan, registry.load(plan.target), found.append, Tally())()
    return found


def start_executor(plan: FuzzPlan) -> Executor:
    """An executor for the plan's target, device and mutant. The caller stops it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    sanitize = plan.sanitize and registry.load(plan.target).can_be_sanitized(plan.device)
    return Executor(plan.target, plan.device, plan.limit, in_flight(plan, os.getpid()), plan.mutant, sanitize)


def in_flight(plan: FuzzPlan, pid: int) -> Path:
    """The file in which the process `pid` keeps the case that its executor is running."""
    return plan.folder / f"in-flight-{pid}.json"


class _CaseFails(AssertionError):  # noqa: N818 - tells Hypothesis that an example fails
    pass


class _Shard:
    """The state of a running shard, with the functions that Hypothesis and the shrinker call."""

    def __init__(
        self, plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None], findings: tuple[Finding, ...]
    ) -> None:
        self.findings = findings
        self.plan = plan
        self.executor = executor
        self.report = report
        self.started = time.monotonic()
        self.progress = Progress()
        self.tally = Tally()
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
        """Run a case that Hypothesis has drawn, for a new example or in order to shrink a failing one."""
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
            return  # a mutant that raises in every case is broken: raising counts only after a case with work to do has run
        if verdict.failed and finding is None:
            self._keep(case, verdict)
            raise _CaseFails(verdict.message)

    def replay(self, case: Case) -> None:
        """Run a past case. It is counted apart, and its failure ends the run as the failure of a drawn case does."""
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
                rejected=dict(self.tally.rejected),
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


def _hypothesis_test(plan: FuzzPlan, target: Target, draw: Callable[[Case], None], tally: Tally) -> Callable[[], None]:
    """A function that draws the plan's cases and hands each one to `draw`, until `draw` raises.

    From then on the tally stays as it is: while Hypothesis shrinks, the same choices must give the same case.
    """
    support = target.support(plan.device)
    # Hypothesis would shrink the draws of the whole family: a failing case of a family is shrunk by `shrink` alone
    shrinks = plan.shrinks and support.steps_per_layer == 1

    num_drawn, has_raised = 0, False

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        INDEPENDENT,
        max_examples=plan.examples,
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(families(plan.target, support, target.refuses, tally))
    def agree(family: tuple[Case, ...]) -> None:
        nonlocal num_drawn, has_raised
        try:
            for case in family:
                if num_drawn == plan.examples and not shrinks:
                    raise _Enough
                draw(case)
                num_drawn += 1
        except BaseException:
            has_raised = True
            raise
        if not has_raised:
            for case in family:
                tally.add(case)

    def run() -> None:
        with contextlib.suppress(_Enough), warnings.catch_warnings():
            # at the end of a run Hypothesis writes the repr of the whole family, and warns about its length
            warnings.filterwarnings("ignore", "Generating overly large repr", hypothesis.errors.HypothesisWarning)
            agree()

    return run
