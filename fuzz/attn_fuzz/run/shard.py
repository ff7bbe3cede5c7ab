"""The one loop behind the command line, the pytest job and the zoo: draw, run, judge, shrink.

`fuzz` runs one shard: one seed, one executor. It reports a failure as soon as the failure is found, and every smaller case that
fails in the same way, so an interrupted run loses nothing. A smaller case that fails in another way is another failure.
"""

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.errors
import msgspec
from attn_fuzz.cases import features
from attn_fuzz.cases.case import Case, CaseError, Values
from attn_fuzz.errors import InputError
from attn_fuzz.findings.finding import Finding, explanation
from attn_fuzz.run import shrink
from attn_fuzz.run.executor import Executor
from attn_fuzz.strategies import families
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.verdict import Verdict, what_failed
from attn_fuzz.zoo.mutants import Mutant, MutantError, NeverRanError
from hypothesis import HealthCheck, Phase

SHRINK_SECONDS = 240.0
MOST_OTHERS = 4
"""The most failures of other kinds that are kept beside the first one."""
OTHERS_SECONDS = 30.0
"""The time to shrink all of them. A failure that kills its process takes seconds for each case that is tried."""


class FuzzPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard does.

    Attributes:
        target: name of the target.
        device: "cpu" or "cuda".
        examples: how many cases to draw.
        first: how many of the examples run; None if all do.
        past: cases of earlier runs, which run before any case is drawn.
        seed: of Hypothesis. The same plan draws the same cases.
        limit: seconds that one case may take.
        until: stop drawing at this time (`time.time()`), if given.
        folder: where the running case is written.
        mutant: a bug that is put back before the target is imported.
        sanitize: whether to check every memory access of a target that can be sanitized (`attn_fuzz.interpreted.sanitizer`).
        exactly: whether cases hold dense random numbers, and are compared in exact mode (`attn_fuzz.exact`).
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
    exactly: bool = False
    shrinks: bool = True
    first: int | None = None
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
        case, verdict: the smallest case so far that fails in the same way as the first one, and its verdict.
        first, first_verdict: the case as it was found, and its verdict.
        found_after, found_seconds: the number of examples and the seconds until it was found.
        minimal: whether no field can be lowered further.
        path: the sizes of the failing cases from the first to the smallest.
    """

    case: Case
    verdict: Verdict
    first: Case
    first_verdict: Verdict
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
        failure: the failure that ended the drawing.
        others: failures of other kinds that were met while `failure` was shrunk.
        broken: why the shard's mutant does not run.
        never_ran: whether that is because the mutant raised in every case that has something to compute.
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
    others: tuple[Failure, ...] = ()
    broken: str | None = None
    never_ran: bool = False


class PastCaseError(InputError):
    """A past case cannot be run: its captured tensors are not there, or the reference cannot judge it."""


class _OutOfTime(Exception):  # noqa: N818 - ends a run, is no error
    pass


class _Enough(Exception):  # noqa: N818 - ends a run, is no error
    pass


def fuzz(plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Draw and check cases until a case fails or the plan ends. A failing case is reported as it is, and then shrunk.

    Args:
        plan: the shard.
        executor: runs the cases; see `start_executor`.
        report: called after each case with the progress.

    Raises:
        UnknownTargetError, ExecutorError: the target cannot be run.
        PastCaseError: a past case cannot be run.
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
    except (_CaseFails, _OutOfTime):
        pass
    if shard.tally.rejected:
        shard.tell(remedies=shard.tally.remedies())
    if plan.mutant is not None and not shard.failures and shard.progress.examples and not shard.has_run:
        because = f", and raised {shard.raised}" if shard.raised else ""
        raise NeverRanError(f"{plan.mutant.name}: it ran none of the cases that have queries and keys{because}")
    if plan.shrinks:
        shard.shrink(support)
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
    return Executor(plan.target, plan.device, plan.limit, in_flight(plan, os.getpid()), plan.mutant, sanitize, plan.exactly)


def in_flight(plan: FuzzPlan, pid: int) -> Path:
    """The file in which the process `pid` keeps the case that its executor is running."""
    return plan.folder / f"in-flight-{pid}.json"


def dense(case: Case) -> Case:
    """The case with random numbers, instead of numbers most of which are 0 or alike: exact mode needs no easy sums."""
    if case.values.kind in ("random", "extreme", "captured"):
        return case
    return msgspec.structs.replace(case, values=Values("random", case.values.seed))


class _CaseFails(AssertionError):  # noqa: N818 - tells Hypothesis that an example fails
    pass


class _Shard:
    """The state of a running shard, with the functions that Hypothesis and the shrinker call.

    Attributes:
        failures: the failure that ended the drawing, and then failures of other kinds that were met while it was shrunk.
        unexpected: an error of the fuzzer itself. Hypothesis takes it for a failing example, and runs the example again.
        has_run: whether the target has run a case that has queries and keys.
    """

    def __init__(
        self, plan: FuzzPlan, executor: Executor, report: Callable[[Progress], None], findings: tuple[Finding, ...]
    ) -> None:
        self.findings = findings
        self.plan = plan
        self.executor = executor
        self.report = report
        self.started = time.monotonic()
        self.progress = Progress()
        self.failures: list[Failure] = []
        self.tally = Tally()
        self.unexpected: Exception | None = None
        self.has_run = False
        self.raised = ""

    def tell(self, **changes: object) -> None:
        self.progress = msgspec.structs.replace(self.progress, seconds=time.monotonic() - self.started, **changes)
        self.report(self.progress)

    def is_late(self) -> bool:
        return self.plan.until is not None and time.time() > self.plan.until

    def draw(self, case: Case) -> None:
        """Run a case that Hypothesis has drawn."""
        if self.unexpected is not None:
            raise self.unexpected
        if self.failures:
            raise _CaseFails  # Hypothesis runs a failing example once more
        if self.is_late():
            raise _OutOfTime
        if self.plan.exactly:
            case = dense(case)
        verdict, finding = self._run(case)
        self._count(case, verdict, finding)
        if case.has_work:
            self.has_run |= verdict.kind not in ("raised", "refused")
        if self.plan.mutant is not None and verdict.kind == "raised" and not self.has_run:
            self.raised = verdict.message
            return  # a mutant that raises in every case is broken: raising counts only after a case with work to do has run
        self._end_if_failed(case, verdict, finding)

    def replay(self, case: Case) -> None:
        """Run a past case. It is counted apart, and its failure ends the run as the failure of a drawn case does."""
        if self.is_late():
            raise _OutOfTime
        try:
            verdict, finding = self._run(case)
        except CaseError as error:
            raise PastCaseError(f"a past case cannot be run: {error}") from error
        self.tell(replayed=self.progress.replayed + 1)
        self._end_if_failed(case, verdict, finding)

    def shrink(self, support: Support) -> None:
        """Shrink the failure that ended the drawing, and then the others that were met meanwhile."""
        until = time.monotonic() + SHRINK_SECONDS
        for at, failure in enumerate(self.failures):  # shrinking may add failures
            if at == 1:
                until = time.monotonic() + OTHERS_SECONDS
            within = support if support.beyond(failure.first) is None else support.widened()
            _, minimal = shrink.shrink(
                failure.first, within, functools.partial(self._fails_like, at), lambda until=until: time.monotonic() < until
            )
            self._keep(at, minimal=minimal)

    def _run(self, case: Case) -> tuple[Verdict, Finding | None]:
        try:
            verdict = self.executor.run(case)
        except Exception as error:
            self.unexpected = error
            raise
        return verdict, explanation(self.findings, case, verdict)

    def _end_if_failed(self, case: Case, verdict: Verdict, finding: Finding | None) -> None:
        if verdict.failed and finding is None:
            self._add(case, verdict)
            raise _CaseFails(verdict.message)

    def _fails_like(self, at: int, case: Case) -> bool:
        """Whether a case fails in the same way as the failure `at`. Then it is kept as this failure's smallest case."""
        try:
            verdict = self.executor.run(case)
        except (CaseError, MutantError):
            return False
        self.tell(shrinking=self.progress.shrinking + 1)
        if not verdict.failed or explanation(self.findings, case, verdict) is not None:
            return False
        failed = what_failed(verdict)
        if failed == what_failed(self.failures[at].first_verdict):
            path = (*self.failures[at].path, _size(case, self.progress.shrinking))
            self._keep(at, case=case, verdict=verdict, path=path)
            return True
        is_new = all(failed != what_failed(known.first_verdict) for known in self.failures)
        # a mutant is one bug, however many failures it leads to
        if is_new and len(self.failures) <= MOST_OTHERS and self.plan.mutant is None:
            self._add(case, verdict)
        return False

    def _count(self, case: Case, verdict: Verdict, finding: Finding | None) -> None:
        spent = {name: self.progress.spent.get(name, 0.0) + seconds for name, seconds in verdict.seconds.items()}
        events = {name: self.progress.events.get(name, 0) + 1 for name in set(verdict.events)}
        known = {} if finding is None else {finding.name: self.progress.known.get(finding.name, 0) + 1}
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

    def _add(self, case: Case, verdict: Verdict) -> None:
        """Report a failure of a new kind."""
        self.failures.append(
            Failure(
                case=case,
                verdict=verdict,
                first=case,
                first_verdict=verdict,
                found_after=self.progress.examples,
                found_seconds=time.monotonic() - self.started,
                minimal=False,
                path=(_size(case, self.progress.shrinking),),
            )
        )
        self._tell_failures()

    def _keep(self, at: int, **changes: object) -> None:
        self.failures[at] = msgspec.structs.replace(self.failures[at], **changes)
        self._tell_failures()

    def _tell_failures(self) -> None:
        self.tell(failure=self.failures[0], others=tuple(self.failures[1:]))


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

    Hypothesis runs the example that failed once more. Its choices must then give the same case, so a failing family is not
    added to the tally.
    """
    support = target.support(plan.device)
    num_drawn = 0

    @hypothesis.seed(plan.seed)
    @hypothesis.settings(
        INDEPENDENT,
        max_examples=plan.examples,
        phases=[Phase.generate],  # `attn_fuzz.run.shrink` shrinks
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(families(plan.target, support, target.refuses, tally))
    def agree(family: tuple[Case, ...]) -> None:
        nonlocal num_drawn
        for case in family:
            if num_drawn == (plan.first or plan.examples):
                raise _Enough
            draw(case)
            num_drawn += 1
        for case in family:
            tally.add(case)

    def run() -> None:
        with contextlib.suppress(_Enough), warnings.catch_warnings():
            # at the end of a run Hypothesis writes the repr of the whole family, and warns about its length
            warnings.filterwarnings("ignore", "Generating overly large repr", hypothesis.errors.HypothesisWarning)
            agree()

    return run
