"""The distinct failures of a run that goes on past each failure.

Its shards draw cases, and note each failure with the parts that the case needs in order to fail: rules and earlier calls. The
run reads these failures in the order of the shards. A failure that no entry explains becomes an entry: a plan of its own
shrinks the case, and finds what the smallest case needs. Later failures that the entry explains are counted.

An entry explains only failures of one target in one way (`what_failed`), so failures of different ways never wait
for each other. Failures of one way are read one after the other. So a seed means the same entries with any number of workers,
if no shrinking runs out of time.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aspects import alike, aspects
from attn_fuzz.run.shard import Failure, FuzzPlan, Progress
from attn_fuzz.verdict.verdict import Verdict, what_failed

SHARD_EXAMPLES = 25
"""The examples of a shard. Targets take turns, one shard each."""

Way = tuple[str, tuple[str, str]]
"""A target, and the way in which it fails."""


@dataclass(eq=False)
class Entry:
    """A distinct failure of the run: its case, and a predicate over later failures that have the same cause.

    Args:
        target: name of the target.
        way: the way in which it fails.
        number: its number among the target's entries of this way, from 1.
        after: the number of the target's cases that had run, this one included, when it was first hit.
        failure: the failure, with the smallest case so far.
        explained: the number of later failing cases that the entry explains.
        again: True if the case failed again when it was run once more.
        met_in: the entry whose shrinking met this failure; None if the failing case was drawn.
        is_open: True if its case is still being shrunk.
    """

    target: str
    way: tuple[str, str]
    number: int
    after: int
    failure: Failure
    explained: int = 0
    again: bool = True
    met_in: "Entry | None" = None
    is_open: bool = False
    _lacking: frozenset[str] = frozenset()

    @property
    def kinds(self) -> frozenset[str]:
        return alike(self.failure.kinds)

    @property
    def needs(self) -> frozenset[str]:
        """The aspects that a case needs in order to fail in this way; none if that is not known."""
        return (self.failure.needs or frozenset()) - self._lacking

    def explains(self, case: Case, verdict: Verdict, needed_parts: frozenset[str] | None) -> bool:
        """True if a failure has this entry's cause, as far as can be told.

        The verdict is about the same thing and of a kind that was met while the entry was shrunk. The case has all aspects that
        the entry needs. And it needs the same parts: a case that has a rule of the entry and fails without it has another
        cause, and so has a case that needs a rule more.
        """
        return (
            what_failed(verdict) == self.way
            and verdict.kind in self.kinds
            and needed_parts == self.failure.needed_parts
            and aspects(case) >= self.needs
        )

    def take(self, failure: Failure) -> None:
        """Count a failure that shrinks to a case which the entry explains. The entry does not need what the failure lacks."""
        self.explained += 1
        self._lacking |= self.needs - aspects(failure.first)
        self.failure = msgspec.structs.replace(self.failure, kinds=self.failure.kinds | failure.kinds)


class _Hit(NamedTuple):
    """A failure that was noted, the number of cases that had run by then, and the plan of its shard."""

    failure: Failure
    after: int
    plan: FuzzPlan


@dataclass(eq=False)
class _Line:
    """Failures of one target that fail in one way: the entries so far, those that wait, and the one that is being shrunk."""

    way: Way
    entries: list[Entry] = field(default_factory=list)
    waiting: deque[_Hit] = field(default_factory=deque)
    shrinking: tuple[_Hit, Entry] | None = None

    def explanation(self, case: Case, verdict: Verdict, needed_parts: frozenset[str] | None) -> Entry | None:
        return next((entry for entry in self.entries if entry.explains(case, verdict, needed_parts)), None)

    def new(self, failure: Failure, after: int, **fields: object) -> Entry:
        return Entry(*self.way, len(self.entries) + 1, after, failure, **fields)  # pyright: ignore[reportArgumentType]


@dataclass(eq=False)
class _Trail:
    """The shards of a target, and how far their failures were read.

    Args:
        shards: indices of its plans, in order.
        at: place of the first shard that was not read to its end.
        read: the number of failures of this shard that were read.
        before: the number of cases that the shards before it ran.
    """

    shards: list[int]
    at: int = 0
    read: int = 0
    before: int = 0


class DistinctFailures:
    """The failures of a run that keeps going. The runner runs `plans`, and calls `report` and `ended`.

    Args:
        shards: the shards of each target, its plans in order. They go on after failures.
        until: no failure begins to be shrunk after this time (`time.time()`), if given.
        changed: called with an entry when its case is about to be shrunk, when the case became smaller, and when the entry is
            made.
        dropped: called with an entry when its smallest case turns out to have the cause of another one.

    Attributes:
        plans: all plans. Plans that shrink a failure are added at the end.
        progress: the progress of each plan that was reported, by its index.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[FuzzPlan]],
        until: float | None = None,
        changed: Callable[[Entry], None] = lambda entry: None,
        dropped: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        self.until, self.changed, self.dropped = until, changed, dropped
        turns = itertools.zip_longest(*shards)
        self.plans = [plan for turn in turns for plan in turn if plan is not None]
        self.progress: dict[int, Progress] = {}
        self._trails: dict[str, _Trail] = {}
        for index, plan in enumerate(self.plans):
            self._trails.setdefault(plan.target, _Trail([])).shards.append(index)
        self._finished: set[int] = set()
        self._lines: dict[Way, _Line] = {}
        self._shrinking: dict[int, _Line] = {}
        self._met: list[tuple[Entry, Failure]] = []

    @property
    def entries(self) -> list[Entry]:
        """All entries, those that are being shrunk included, by target and by when they were first hit."""
        found = [entry for line in self._lines.values() for entry in line.entries]
        found += [line.shrinking[1] for line in self._lines.values() if line.shrinking]
        return sorted(found, key=self._order)

    def _order(self, entry: Entry) -> tuple[object, ...]:
        return list(self._trails).index(entry.target), entry.after, entry.met_in is not None, entry.way, entry.number

    def of_target(self, target: str) -> list[Progress]:
        """The progress of each shard of a target that has begun."""
        return [self.progress[index] for index in self._trails[target].shards if index in self.progress]

    def report(self, index: int, progress: Progress) -> None:
        """Take note of a plan's progress."""
        self.progress[index] = progress
        line = self._shrinking.get(index)
        if line is None:
            self._read(self._trails[self.plans[index].target])
        elif line.shrinking is not None:
            hit, entry = line.shrinking
            if progress.failure is not None and self._is_same(progress.failure, hit):
                entry.failure = msgspec.structs.replace(progress.failure, needed_parts=hit.failure.needed_parts)
                self.changed(entry)

    def ended(self, index: int, progress: Progress) -> None:
        """Take note that a plan has run to its end."""
        self._finished.add(index)
        self.progress[index] = progress
        if index in self._shrinking:
            self._conclude(self._shrinking.pop(index), progress)
        else:
            self._read(self._trails[self.plans[index].target])

    def finish(self) -> None:
        """Make entries of what the run did not come to: cases that are not shrunk yet, and failures that nothing explains."""
        for trail in self._trails.values():
            self._read(trail, is_over=True)
        for line in self._lines.values():
            if line.shrinking is not None:
                self._make(line, line.shrinking[1])
            for hit in line.waiting:
                if not self._count(line, hit):
                    self._make(line, line.new(hit.failure, hit.after))
            line.waiting.clear()
        for entry, failure in sorted(self._met, key=lambda met: self._order(met[0])):
            line = self._line((entry.target, what_failed(failure.first_verdict)))
            if line.explanation(failure.case, failure.verdict, failure.needed_parts) is None:
                self._make(line, line.new(failure, entry.after, met_in=entry))
        self._met.clear()

    def _is_same(self, failure: Failure, hit: _Hit) -> bool:
        return what_failed(failure.first_verdict) == what_failed(hit.failure.first_verdict)

    def _line(self, way: Way) -> _Line:
        return self._lines.setdefault(way, _Line(way))

    def _read(self, trail: _Trail, *, is_over: bool = False) -> None:
        """Read the failures of a target's shards in order, as far as all shards before them have ended."""
        for hit in self._unread(trail, is_over):
            line = self._line((hit.plan.target, what_failed(hit.failure.first_verdict)))
            line.waiting.append(hit)
            if not is_over:
                self._serve(line)

    def _unread(self, trail: _Trail, is_over: bool) -> Iterator[_Hit]:
        while trail.at < len(trail.shards):
            index = trail.shards[trail.at]
            progress = self.progress.get(index, Progress())
            for failure in progress.passed[trail.read :]:
                trail.read += 1
                yield _Hit(failure, trail.before + failure.found_after, self.plans[index])
            if index not in self._finished and not is_over:
                return
            trail.before += progress.replayed + progress.examples
            trail.at, trail.read = trail.at + 1, 0

    def _serve(self, line: _Line) -> None:
        """Count failures that entries explain, and have the first other one shrunk."""
        while line.waiting and line.shrinking is None:
            hit = line.waiting.popleft()
            if self._count(line, hit):
                continue
            entry = line.new(hit.failure, hit.after, is_open=True)
            line.shrinking = hit, entry
            self._shrinking[len(self.plans)] = line
            self.changed(entry)
            alone = {"past": (hit.failure.first,), "examples": 0, "until": self.until, "on_failure": "explain"}
            if hit.failure.first_verdict.kind == "exact":
                alone["exact_every"] = 1
            self.plans.append(msgspec.structs.replace(hit.plan, **alone))

    def _count(self, line: _Line, hit: _Hit) -> bool:
        """Count a failure if an entry explains it; returns whether one does."""
        failure = hit.failure
        entry = line.explanation(failure.first, failure.first_verdict, failure.needed_parts)
        if entry is not None:
            entry.explained += 1
        return entry is not None

    def _conclude(self, line: _Line, progress: Progress) -> None:
        """Make an entry of what was shrunk, unless its smallest case has the cause of another entry."""
        assert line.shrinking is not None
        hit, entry = line.shrinking
        found = progress.failure
        is_same = found is not None and self._is_same(found, hit)
        entry.again = is_same or not progress.replayed  # its time may be over before it runs
        others = progress.others if is_same or found is None else (found, *progress.others)
        self._met += [(entry, other) for other in others]
        if is_same and found is not None:
            entry.failure = msgspec.structs.replace(found, needed_parts=hit.failure.needed_parts)
            twin = line.explanation(found.case, found.verdict, hit.failure.needed_parts)
            if twin is not None:
                line.shrinking = None
                twin.take(found)
                self._met = [(twin if each is entry else each, failure) for each, failure in self._met]
                self.dropped(entry)
        if line.shrinking is not None:
            self._make(line, entry)
        self._serve(line)

    def _make(self, line: _Line, entry: Entry) -> None:
        line.shrinking, entry.is_open = None, False
        line.entries.append(entry)
        self.changed(entry)
