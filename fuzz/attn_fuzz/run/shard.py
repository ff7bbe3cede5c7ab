"""The one loop behind the command line, the pytest job, and the zoo: draw, run, judge, shrink.

`fuzz` runs one shard: one seed, one executor. It reports a failure as soon as the failure is found, and every smaller case that
fails in the same way, so an interrupted run loses nothing. A smaller case that fails in another way is another failure.
`FuzzPlan.on_failure` says what follows a failure.
"""

import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from attn_fuzz.account import account
from attn_fuzz.account.account import Accounts
from attn_fuzz.cases import features
from attn_fuzz.cases.case import Case, CaseError, Values
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.patches.mutant import Mutant, MutantError, NeverRanError
from attn_fuzz.run.known import Known, explained
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.verdict import Verdict, VerdictKind, what_failed

if TYPE_CHECKING:
    from attn_fuzz.run.processes.executor import Executor

SHRINK_SECONDS = 240.0
MAX_OTHERS = 4
"""The most failures of other kinds that are kept in addition to the first one."""
OTHERS_SECONDS = 30.0
"""The time to shrink all other failures. One that kills its process takes seconds for each case that is tried."""
NEEDS_SECONDS = 60.0
"""The time to find what a smallest case needs."""

EXACT_EVERY = 25
"""One in this many examples of a target that is `exact` is compared in exact mode, unless a run asks for another share. It
takes an eighth of the time."""

NOT_AGAIN = (
    "this case agrees in a new process: the failure needs chance, or what the target keeps of earlier cases and "
    "Target.forget does not drop"
)

OnFailure = Literal["stop", "shrink", "explain", "go on"]
"""A shard's action when a case fails. "stop": it ends. "shrink": it ends with the smallest case. "explain": it also
finds what the smallest case needs. "go on": it notes the case and the parts that the case needs, and runs the next case."""


class FuzzPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one shard.

    Attributes:
        target: name of the target.
        device: "cpu" or "cuda".
        examples: the number of cases to draw.
        turn: two numbers, such as 1 of 5: of the families of the examples (`attn_fuzz.strategies.families`) every fifth runs,
            from the second one on. All families are drawn, because each depends on those before it.
        part: likewise of the cases of such a family: of 4 parts, 1 is the second quarter.
        past: cases of earlier runs, which run before any case is drawn.
        accounts: which mistakes the cases of earlier plans of the run would have shown: they need not be asked again.
        seed: the seed of Hypothesis. The same plan draws the same cases.
        case_seconds: seconds that one case may take.
        until: stop drawing at this time (`time.time()`), if given.
        folder: the folder for the running case.
        mutant: a bug that is put back before the target is imported.
        sanitize: True if to check every memory access of a target that can be sanitized (`attn_fuzz.interpreted.sanitizer`).
        exact_every: one in this many examples gets dense random numbers and is also compared in exact mode
            (`attn_fuzz.exact`). 1: all cases, past ones included. 0: none.
        fenced: True if cases run with unmapped pages beside their tensors, too; see `Executor.fenced`.
        malformed: True if one call of each case is corrupted; see `Executor.malformed`.
        on_failure: the reaction to a failure.
    """

    target: str
    device: str
    examples: int
    seed: int
    folder: Path
    case_seconds: float = 60.0
    until: float | None = None
    mutant: Mutant | None = None
    sanitize: bool = True
    exact_every: int = 0
    fenced: bool = False
    malformed: bool = False
    on_failure: OnFailure = "shrink"
    turn: tuple[int, int] = (0, 1)
    part: tuple[int, int] = (0, 1)
    past: tuple[Case, ...] = ()
    accounts: tuple[tuple[str, account.Account], ...] = ()


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a failing case after `tried` smaller cases. `fields` counts the fields that differ from their defaults."""

    tried: int
    requests: int
    query_rows: int
    keys: int
    blocks: int
    fields: int

    @classmethod
    def of(cls, case: Case, tried: int) -> "Size":
        simplest = Case(target=case.target)
        return cls(
            tried=tried,
            requests=len(case.requests),
            query_rows=case.query_start_loc[-1],
            keys=sum(request.seq_len for request in case.requests),
            blocks=case.cache.num_blocks if case.cache else 0,
            fields=sum(getattr(case, field.name) != getattr(simplest, field.name) for field in msgspec.structs.fields(case)),
        )


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that fails.

    Attributes:
        case, verdict: the smallest case so far that fails in the same way as the first one, and its verdict.
        first, first_verdict: the case as it was found, and its verdict.
        found_after, found_seconds: the number of examples and the seconds until it was found. A shard that goes on counts past
            cases among the examples.
        minimal: True if no field can be lowered further.
        path: the sizes of the failing cases from the first to the smallest.
        kinds: the kinds of verdicts of all cases that failed in this way.
        needed_parts: rules without which the first case does not fail so, and `shrink.EARLIER` if it needs earlier calls; None
            if that was not asked.
        needs: what the smallest case needs in order to fail so, of `attn_fuzz.findings.aspects`; None if that was not asked.
    """

    case: Case
    verdict: Verdict
    first: Case
    first_verdict: Verdict
    found_after: int
    found_seconds: float
    minimal: bool
    path: tuple[Size, ...] = ()
    kinds: frozenset[VerdictKind] = frozenset()
    needed_parts: frozenset[str] | None = None
    needs: frozenset[str] | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a shard. All counts except `replayed` are of cases that were drawn.

    Attributes:
        replayed: past cases that ran.
        examples, refused: cases that ran, and how many of them the target refused rightly.
        wrong_calls: what became of the corrupted calls of examples, and of how many (`Verdict.of_wrong_call`).
        miscompiled: why the first of the refused cases was wrong code of the compiler.
        limits: by limit of this tool, how many examples and past cases could not be run because of it.
        seconds, spent: seconds since the start, and the seconds spent on each kind of work.
        ratio: the largest error / bound.
        events: by path of the target, how many examples took the path.
        frames: Dynamo's counts in the examples and past cases (`attn_fuzz.interpreted.dynamo`).
        launches: by Triton kernel, how often the examples and past cases launched it.
        largest: the most keys and queries of a request, and requests of a step, that an example had.
        left_out: by property, earlier call or earlier write, and by reason, how many examples did not ask it of the target.
        known: by known finding, how many examples failed because of the finding.
        known_by_predicate: how many of them only the predicate of the finding explains (`attn_fuzz.run.known`).
        known_after: by known finding, how many examples had run, this one included, when the first failed because of it.
        accounts: which mistakes the examples would have shown (`attn_fuzz.account`).
        features: those of the examples (`attn_fuzz.cases.features`), and how many had each.
        ratios: elements of outputs by error / bound (`attn_fuzz.verdict.ratios.counts`).
        rejected: drawn cases that were discarded, by reason.
        remedies: at the end, restrictions of Support that avoid discarded cases, by reason (`attn_fuzz.strategies.tally`). Of
            plans that differ only in their turn and part, the first one has them.
        layers: the layers of which the first case ran. Examples share them where `Support.steps_per_layer` says so.
        shrinking: cases that were tried in order to shrink a failure, or to find what it needs.
        failure: the failure that ended the drawing.
        others: failures of other kinds that were met while `failure` was shrunk.
        passed: failures past which the shard went on.
        broken: why the shard's mutant does not run.
        never_ran: True if that is because the mutant raised in every case that has something to compute.
    """

    replayed: int = 0
    examples: int = 0
    refused: int = 0
    wrong_calls: dict[str, int] = {}
    miscompiled: str = ""
    limits: dict[str, int] = {}
    seconds: float = 0.0
    ratio: float = 0.0
    spent: dict[str, float] = {}
    events: dict[str, int] = {}
    frames: dict[str, int] = {}
    launches: dict[str, int] = {}
    largest: dict[str, int] = {}
    left_out: dict[str, dict[str, int]] = {}
    known: dict[str, int] = {}
    known_by_predicate: dict[str, int] = {}
    known_after: dict[str, int] = {}
    accounts: Accounts = {}
    features: dict[str, int] = {}
    ratios: dict[str, list[int]] = {}
    rejected: dict[str, int] = {}
    remedies: dict[str, list[str]] = {}
    layers: int = 0
    shrinking: int = 0
    failure: Failure | None = None
    others: tuple[Failure, ...] = ()
    passed: tuple[Failure, ...] = ()
    broken: str | None = None
    never_ran: bool = False


class PastCaseError(InputError):
    """A past case cannot be run: its captured tensors are not there, or the reference cannot judge it."""


class _OutOfTime(Exception):  # noqa: N818 - ends a run, is no error
    pass


def fuzz(plan: FuzzPlan, executor: "Executor", report: Callable[[Progress], None] = lambda progress: None) -> Progress:
    """Draw and check cases until the plan ends, or a case fails and the plan does not go on. A failing case is reported as it
    is, and then shrunk.

    Args:
        plan: the shard.
        executor: runs the cases; see `start_executor`.
        report: called after each case with the progress.

    Raises:
        TargetError, ExecutorError: the target cannot be run.
        PastCaseError: a past case cannot be run.
        MutantError: the mutant cannot be run; see `attn_fuzz.patches.mutant`.
    """
    from attn_fuzz.run import drawing

    target = registry.load(plan.target)
    shard = _Shard(plan, executor, report, target)
    try:
        for case in plan.past:
            shard.replay(case)
        if plan.examples:
            drawing.draw_cases(plan, target, shard.draw, shard.tally)
    except (_CaseFails, _OutOfTime):
        pass
    if shard.rejected:
        shard.tell(remedies=shard.tally.remedies())
    if plan.mutant is not None and not shard.failures and shard.progress.examples and not shard.has_run:
        because = f", and raised {shard.raised}" if shard.raised else ""
        raise NeverRanError(f"{plan.mutant.name}: it ran none of the cases that have queries and keys{because}")
    if plan.on_failure in ("shrink", "explain"):
        shard.shrink()
    return shard.progress


def drawn(plan: FuzzPlan) -> list[Case]:
    """The cases that a plan draws if no case fails. No case is run."""
    from attn_fuzz.run import drawing
    from attn_fuzz.strategies.tally import Tally

    found: list[Case] = []
    drawing.draw_cases(plan, registry.load(plan.target), lambda case, number: found.append(case), Tally())
    return found


def start_executor(plan: FuzzPlan) -> "Executor":
    """An executor for the plan's target, device and mutant. The caller stops it."""
    from attn_fuzz.run.processes.executor import Executor

    plan.folder.mkdir(parents=True, exist_ok=True)
    sanitize = plan.sanitize and registry.load(plan.target).can_be_sanitized(plan.device)
    ahead = in_flight(plan, os.getpid())
    exactly = plan.exact_every > 0
    more: dict[str, Any] = {"exactly": exactly, "fenced": plan.fenced, "malformed": plan.malformed}
    return Executor(plan.target, plan.device, plan.case_seconds, ahead, plan.mutant, sanitize, **more)


def executor_after(executor: "Executor | None", plan: FuzzPlan) -> "Executor":
    """An executor for a plan: that of an earlier plan, if its process can run this one, too. Any other one is stopped."""
    new = start_executor(plan)
    if executor is None:
        return new
    if executor.serves(new):
        executor.target = new.target
        return executor
    executor.stop()
    return new


def alone(plan: FuzzPlan, failure: Failure) -> str:
    """Words about a failure whose smallest case passes in a new process; empty if it fails there, or cannot be run."""
    with contextlib.suppress(ExecutorError, InputError), start_executor(plan) as executor:
        exactly = plan.exact_every == 1 or failure.verdict.kind == "exact"
        return NOT_AGAIN if executor.run(failure.case, exactly=exactly).passed else ""
    return ""


def reasons_added(counts: dict[str, dict[str, int]], more: tuple[tuple[str, str], ...]) -> dict[str, dict[str, int]]:
    """Counts of what was left out, by name and by reason, with those of one more case."""
    found = {name: dict(reasons) for name, reasons in counts.items()} if more else counts
    for name, reason in more:
        reasons = found.setdefault(name, {})
        reasons[reason] = reasons.get(reason, 0) + 1
    return found


def exact_every(target: Target, device: str) -> int:
    """`FuzzPlan.exact_every` of a run that does not choose."""
    return EXACT_EVERY if target.exact and target.can_be_followed(device) else 0


def in_flight(plan: FuzzPlan, pid: int) -> Path:
    """The file in which the process `pid` keeps the case that its executor is running."""
    return plan.folder / f"in-flight-{pid}.json"


def dense(case: Case) -> Case:
    """The case with random numbers, instead of numbers most of which are 0 or alike: exact mode needs no easy sums."""
    if case.values.kind in ("random", "extreme", "below", "captured"):
        return case
    return msgspec.structs.replace(case, values=Values("random", case.values.seed))


def _largest(case: Case, before: dict[str, int]) -> dict[str, int]:
    sizes = {
        "keys": max((request.seq_len for request in case.requests), default=0),
        "queries": max((request.query_len for request in case.requests), default=0),
        "requests": len(case.requests),
    }
    return {name: max(size, before.get(name, 0)) for name, size in sizes.items()}


class _CaseFails(AssertionError):  # noqa: N818 - tells Hypothesis that an example fails
    pass


class _Shard:
    """The state of a running shard, with the functions that Hypothesis and the shrinker call.

    Attributes:
        failures: the failure that ended the drawing, and then failures of other kinds that were met while it was shrunk.
        unexpected: an error of the fuzzer itself. Hypothesis takes it for a failing example, and runs the example again.
        has_run: True if the target has run a case that has queries and keys.
    """

    def __init__(self, plan: FuzzPlan, executor: "Executor", report: Callable[[Progress], None], target: Target) -> None:
        from attn_fuzz.strategies.tally import Tally

        self.findings = target.findings_on(plan.device)
        self.support = target.support(plan.device)
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

    @property
    def rejected(self) -> dict[str, int]:
        return dict(self.tally.rejected) if self.plan.turn[0] == self.plan.part[0] == 0 else {}

    def is_late(self) -> bool:
        return self.plan.until is not None and time.time() > self.plan.until

    def draw(self, case: Case, number: int) -> None:
        """Run a case that Hypothesis has drawn.

        Args:
            number: of the case among those of the shard, from 1 on. With turns, this process runs some of them.
        """
        if self.unexpected is not None:
            raise self.unexpected
        if self.failures:
            raise _CaseFails  # Hypothesis runs a failing example once more
        if self.is_late():
            raise _OutOfTime
        exactly = self.plan.exact_every > 0 and number % self.plan.exact_every == 0
        if exactly:
            case = dense(case)
        accounts = account.together([dict(self.plan.accounts), self.progress.accounts])
        verdict, known = self._run(case, exactly, accounts=accounts)
        self._count(case, verdict, known)
        if case.has_work:
            self.has_run |= verdict.kind not in ("raised", "refused", "limit")
        if self.plan.mutant is not None and verdict.kind == "raised" and not self.has_run:
            self.raised = verdict.message
            return  # a mutant that raises in every case is broken: raising counts only after a case with work to do has run
        self._follow_failure(case, verdict, known)

    def replay(self, case: Case) -> None:
        """Run a past case. It is counted apart, and its failure ends the run as the failure of a drawn case does."""
        if self.is_late():
            raise _OutOfTime
        try:
            verdict, known = self._run(case, self.plan.exact_every == 1)
        except CaseError as error:
            raise PastCaseError(f"a past case cannot be run: {error}") from error
        self.tell(
            replayed=self.progress.replayed + 1,
            limits=self._limits(verdict),
            frames=self._frames(verdict),
            launches=self._launches(verdict),
        )
        self._follow_failure(case, verdict, known)

    def shrink(self) -> None:
        """Shrink the failure that ended the drawing, and then the others that were met meanwhile."""
        from attn_fuzz.run import shrink

        until = time.monotonic() + SHRINK_SECONDS
        for at, failure in enumerate(self.failures):  # shrinking may add failures
            if at == 1:
                until = time.monotonic() + OTHERS_SECONDS
            within, fails, start = self._within(failure.first), functools.partial(self._fails_like, at), failure.first
            if self.plan.on_failure == "explain":
                start, needed = shrink.without_spare_parts(start, within, fails)
                self._keep(at, needed_parts=needed)
            smallest, minimal = shrink.shrink(start, within, fails, lambda until=until: time.monotonic() < until)
            self._keep(at, minimal=minimal)
            if self.plan.on_failure == "explain":
                self._keep(at, needs=self._needs(at, smallest, within, minimal))

    def _within(self, case: Case) -> Support:
        """The support within which a failing case is changed."""
        return self.support if self.support.beyond(case) is None else self.support.widened()

    def _needs(self, at: int, case: Case, within: Support, minimal: bool) -> frozenset[str]:
        from attn_fuzz.run import needs

        until = time.monotonic() + NEEDS_SECONDS

        def fails(other: Case) -> bool:
            return self._verdict_like(at, other) is not None

        return needs.needed(case, within, fails, lambda: time.monotonic() < until, is_minimal=minimal)

    def _run(self, case: Case, exactly: bool, **more: Any) -> tuple[Verdict, Known | None]:
        try:
            verdict = self.executor.run(case, exactly=exactly, **more)
            return explained(self.executor, self.findings, case, verdict, exactly)
        except Exception as error:
            self.unexpected = error
            raise

    def _follow_failure(self, case: Case, verdict: Verdict, known: Known | None) -> None:
        if not verdict.failed or known is not None:
            return
        if self.plan.on_failure == "go on":
            self._pass_on(case, verdict)
            return
        self.failures.append(self._failure(case, verdict))
        self._tell_failures()
        raise _CaseFails(verdict.message)

    def _pass_on(self, case: Case, verdict: Verdict) -> None:
        """Note a failure, and which parts the case needs to fail so."""
        from attn_fuzz.run import shrink

        bare = msgspec.structs.replace(verdict, pictures={}, ratios={})
        failure = self._failure(case, bare, found_after=self.progress.replayed + self.progress.examples)

        def fails_so(candidate: Case) -> bool:
            found = self._tried(candidate, verdict)
            return found is not None and what_failed(found) == what_failed(verdict)

        _, needed = shrink.without_spare_parts(case, self._within(case), fails_so)
        self.tell(passed=(*self.progress.passed, msgspec.structs.replace(failure, needed_parts=needed)))

    def _fails_like(self, at: int, case: Case) -> bool:
        """True if a case fails in the same way as the failure `at`. Then it is kept as this failure's smallest case."""
        verdict = self._verdict_like(at, case)
        if verdict is not None:
            path = (*self.failures[at].path, Size.of(case, self.progress.shrinking))
            self._keep(at, case=case, verdict=verdict, path=path)
        return verdict is not None

    def _verdict_like(self, at: int, case: Case) -> Verdict | None:
        """The verdict on a case that fails in the same way as the failure `at`; None if it does not."""
        verdict = self._tried(case, self.failures[at].first_verdict)
        if verdict is None:
            return None
        failed = what_failed(verdict)
        if failed == what_failed(self.failures[at].first_verdict):
            self._keep(at, kinds=self.failures[at].kinds | {verdict.kind})
            return verdict
        is_new = all(failed != what_failed(known.first_verdict) for known in self.failures)
        # a mutant is one bug, however many failures it leads to
        if is_new and len(self.failures) <= MAX_OTHERS and self.plan.mutant is None:
            self.failures.append(self._failure(case, verdict))
            self._tell_failures()
        return None

    def _tried(self, case: Case, first: Verdict) -> Verdict | None:
        """The verdict on a changed case that fails, in the mode of the first failure, and by no known finding; else None."""
        exactly = self.plan.exact_every == 1 or first.kind == "exact"
        try:
            verdict = self.executor.run(case, exactly=exactly)
            verdict, known = explained(self.executor, self.findings, case, verdict, exactly)
        except (CaseError, MutantError):
            return None
        self.tell(shrinking=self.progress.shrinking + 1)
        return verdict if verdict.failed and known is None else None

    def _count(self, case: Case, verdict: Verdict, known: Known | None) -> None:
        spent = {name: self.progress.spent.get(name, 0.0) + seconds for name, seconds in verdict.seconds.items()}
        events = {name: self.progress.events.get(name, 0) + 1 for name in set(verdict.events)}
        wrong = Counter([verdict.of_wrong_call] if verdict.of_wrong_call else [])
        names = [known.finding.name] if known else []
        by_predicate = [] if known and known.agrees_repaired else names
        examples = self.progress.examples + 1
        self.tell(
            examples=examples,
            layers=self.tally.families,
            refused=self.progress.refused + (verdict.kind == "refused"),
            wrong_calls=dict(Counter(self.progress.wrong_calls) + wrong),
            miscompiled=self.progress.miscompiled or (verdict.about if verdict.kind == "refused" else ""),
            limits=self._limits(verdict),
            known=dict(Counter(self.progress.known) + Counter(names)),
            known_by_predicate=dict(Counter(self.progress.known_by_predicate) + Counter(by_predicate)),
            known_after={**dict.fromkeys(names, examples), **self.progress.known_after},
            ratio=self.progress.ratio if known else max(self.progress.ratio, verdict.ratio),
            spent={**self.progress.spent, **spent},
            events={**self.progress.events, **events},
            frames=self._frames(verdict),
            launches=self._launches(verdict),
            largest=_largest(case, self.progress.largest),
            accounts=account.added(self.progress.accounts, verdict.places, verdict.answers),
            left_out=reasons_added(self.progress.left_out, verdict.left_out),
            features=self._features(case, verdict),
            rejected=self.rejected,
            ratios=self.progress.ratios if known else ratios.added(self.progress.ratios, verdict.ratios),
        )

    def _limits(self, verdict: Verdict) -> dict[str, int]:
        limits = self.progress.limits
        return {**limits, verdict.about: limits.get(verdict.about, 0) + 1} if verdict.kind == "limit" else limits

    def _features(self, case: Case, verdict: Verdict) -> dict[str, int]:
        had = features.features(case) if verdict.kind != "limit" else []
        return self.progress.features | {name: self.progress.features.get(name, 0) + 1 for name in had}

    def _frames(self, verdict: Verdict) -> dict[str, int]:
        return dict(Counter(self.progress.frames) + Counter(verdict.frames))

    def _launches(self, verdict: Verdict) -> dict[str, int]:
        return dict(Counter(self.progress.launches) + Counter(verdict.launches))

    def _failure(self, case: Case, verdict: Verdict, found_after: int | None = None) -> Failure:
        """A failure as it was found."""
        return Failure(
            case=case,
            verdict=verdict,
            first=case,
            first_verdict=verdict,
            found_after=self.progress.examples if found_after is None else found_after,
            found_seconds=time.monotonic() - self.started,
            minimal=False,
            path=(Size.of(case, self.progress.shrinking),),
            kinds=frozenset({verdict.kind}),
        )

    def _keep(self, at: int, **changes: object) -> None:
        self.failures[at] = msgspec.structs.replace(self.failures[at], **changes)
        self._tell_failures()

    def _tell_failures(self) -> None:
        self.tell(failure=self.failures[0], others=tuple(self.failures[1:]))
