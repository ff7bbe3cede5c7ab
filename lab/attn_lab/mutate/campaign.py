"""A campaign: generated mutants, each by several seeds on the targets that run it, until a case fails.

Each mutant first runs PROBED cases of its quickest targets alone, which find most mutants. The others run in groups: up to
GROUP mutants are installed together, and a shard in which no case fails counts for each of them. When a case fails, each half
of the group runs the shard, until one mutant is left. So a mutant is found only by a run of its own. A mutant that hides
another one's failure after its first PROBED cases makes the other one survive. As many groups run at once as there are workers,
and none waits for another.

Each shard's result is written into the log when the shard ends. A second call goes on from there.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.outputs import Lines
from attn_fuzz.patches.mutant import Mutant
from attn_fuzz.patches.source import PatchError, modules_of, patched_sources, text_of
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.text import one_line
from attn_lab.mutate import line_coverage
from attn_lab.mutate.generate import Generated
from attn_lab.mutate.line_coverage import Reach, RecordedTests

SCHEMA = "attn-parity.mutants-log/1"
STARTS = f'{{"schema":"{SCHEMA}"'.encode()
PROBE = -1
"""In place of a shard's number: the first PROBED cases of the first shard, which a mutant runs alone."""
PROBED, PROBED_TARGETS = 20, 3
"""Cases of a target that a mutant runs alone before it joins a group, and of how many targets."""
MAX_LOG_BYTES = 1 << 28
GROUP = 64
"""The most mutants that are installed together."""
NOT_COMPILED = ("InterpreterError", "CompilationError")
"""Triton's exceptions for a kernel that is no program."""


class Log:
    """The file of a campaign. Its first line says what it is of; each other line is a result, or what a target or tests run.

    Args:
        path: the path of the file. Without one the first entry makes it.
        package: the package of the mutants.

    Raises:
        InputError: the file is of other sources, or it is no log.
    """

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.trials: dict[Key, Trial] = {}
        self.reaches: dict[str, Reach] = {}
        self.tests: dict[tuple[str, int], RecordedTests] = {}
        self._header = Header(schema=SCHEMA, sources=digest(package))
        self._lines: Lines | None = None
        if os.path.lexists(path):
            *lines, half = inputs.read_bytes(path, MAX_LOG_BYTES).split(b"\n")
            self._take(lines or [line for line in [half] if not STARTS.startswith(line[: len(STARTS)])])

    def _take(self, lines: Sequence[bytes]) -> None:
        """Take in the lines of the file. Without any it is to be begun."""
        try:
            if lines and msgspec.json.decode(lines[0], type=Header) != self._header:
                raise InputError(f"{self.path}: it is of other sources; give another file")
            for line in lines[1:]:
                self._keep(msgspec.json.decode(line, type=Trial | Reach | RecordedTests))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{self.path}: no results of mutants: {one_line(str(error), inputs.MESSAGE)}") from None

    @contextmanager
    def alone(self) -> Iterator[Lines]:
        """Inside, entries can be added, and no other run writes the file. Half a line of a killed run goes.

        Raises:
            InputError: another run writes it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.held(self.path, MAX_LOG_BYTES, STARTS) as lines:
            self._take(lines.lines)  # another run may have added some
            if not lines.lines:
                lines.begin(msgspec.json.encode(self._header))
            self._lines = lines
            try:
                yield lines
            finally:
                self._lines = None

    def use_only(self, targets: Collection[str]) -> None:
        """Leave out what other targets run, which another call has recorded."""
        self.reaches = {name: each for name, each in self.reaches.items() if name in targets}

    def add(self, entry: "Trial | Reach | RecordedTests") -> None:
        with nullcontext(self._lines) if self._lines else self.alone() as lines:
            lines.add(msgspec.json.encode(entry))
        self._keep(entry)

    def _keep(self, entry: "Trial | Reach | RecordedTests") -> None:
        if isinstance(entry, Trial):
            self.trials[entry.key] = entry
        elif isinstance(entry, RecordedTests):
            self.tests[entry.file, entry.part] = entry
        else:
            self.reaches[entry.target] = entry


class Header(msgspec.Struct, frozen=True):
    schema: str
    sources: str


class Key(NamedTuple):
    """A shard of a campaign: the mutant, its seed, the target, and which of the target's shards, or PROBE."""

    mutant: str
    seed: int
    target: str
    shard: int


Group = tuple[Key, ...]
"""One shard with several mutants, whose patches do not overlap."""


class Trial(msgspec.Struct, frozen=True, omit_defaults=True, tag="trial"):
    """The result of one shard.

    Attributes:
        key: which shard.
        examples: the number of cases that ran.
        seconds: the seconds that they took.
        by: the kind of the verdict that found the mutant; None if no case did.
        message: the verdict's message, or the reason why the mutant does not run.
        together: the number of installed mutants, this one included.
        always: True if the mutant raised in every case.
        broken: True if the mutant does not import, or its kernels do not compile.
    """

    key: Key
    examples: int
    seconds: float
    by: str | None = None
    message: str = ""
    together: int = 1
    always: bool = False
    broken: bool = False

    @classmethod
    def of(cls, key: Key, progress: Progress) -> "Trial":
        seconds = round(progress.seconds, 2)
        if progress.never_ran and not any(name in str(progress.broken) for name in NOT_COMPILED):
            return cls(key, progress.examples, seconds, "raised", str(progress.broken), always=True)
        if progress.broken:
            return cls(key, progress.examples, seconds, message=progress.broken, broken=True)
        if progress.failure is not None:
            verdict = progress.failure.verdict
            return cls(key, progress.failure.found_after, seconds, verdict.kind, verdict.message)
        return cls(key, progress.examples, seconds)

    @property
    def is_last(self) -> bool:
        """True if nothing more is to be learnt of the mutant and the seed."""
        return self.by is not None or self.broken


def order(mutant: Generated, seed: int, targets: Sequence[str], examples: int) -> list[Key]:
    """A mutant's shards in the order in which they run: the probes, the first shard of each target, and so on.

    A profile with more examples begins with the shards of one with less.

    Args:
        targets: the targets that run the mutant, the quickest first.
        examples: for each target.
    """
    count = max(1, round(examples / runner.SHARD_EXAMPLES))
    shards = [(PROBE, target) for target in targets[:PROBED_TARGETS]]
    shards += [(i, target) for i in range(count) for target in targets]
    return [Key(mutant.name, seed, target, i) for i, target in shards]


def run(
    mutants: Sequence[Generated],
    seeds: Sequence[int],
    plan: FuzzPlan,
    log: Log,
    workers: int,
    report: Callable[[Log], None] = lambda log: None,
) -> Outcome:
    """Run what the log does not hold yet.

    Args:
        mutants, seeds: every mutant meets every seed.
        plan: its examples are for each mutant, seed and target; its target, seed and mutant are replaced.
        log: holds the reach of every target that is to be used; results are added as they come.
        workers: processes at once.
        report: called after each shard.
    """
    reaches = [*log.reaches.values()]
    probes: list[list[Key]] = []
    turns: dict[tuple[int, str], list[Key]] = {}
    for mutant, seed in itertools.product(mutants, seeds):
        keys = order(mutant, seed, line_coverage.targets_of(mutant.module, mutant.line, reaches), plan.examples)
        probes.append([key for key in keys if key.shard == PROBE])
        for key in keys[len(probes[-1]) :]:
            turns.setdefault((key.shard, key.target), []).append(key)
    seconds = {each.target: each.seconds for each in reaches}
    campaign = _Campaign({mutant.name: mutant for mutant in mutants}, plan, log, workers, report)
    for turn in itertools.zip_longest(*probes):
        campaign.alone(campaign.waiting([key for key in turn if key is not None]))
    ordered = sorted(turns, key=lambda turn: (turn[0], seconds[turn[1]]))
    campaign.together([turns[turn] for turn in ordered])
    return campaign.outcome


class _Campaign:
    """A campaign that is running.

    Attributes:
        outcome: the outcome of the runner's last call.
        ended: mutants and seeds of which nothing more is to be learnt.
    """

    def __init__(
        self, mutants: dict[str, Generated], plan: FuzzPlan, log: Log, workers: int, report: Callable[[Log], None]
    ) -> None:
        self.mutants, self.plan, self.log, self.workers, self.report = mutants, plan, log, workers, report
        self.outcome = Outcome([])
        self._groups: Iterator[Group] = iter(())
        self._halves: list[Group] = []
        self._plans: list[FuzzPlan] = []
        self._group_of: list[Group] = []
        self._open = 0
        self.ended = {trial.key[:2] for trial in log.trials.values() if trial.is_last}

    def waiting(self, keys: Sequence[Key]) -> list[Key]:
        """The shards that are still to run."""
        return [key for key in keys if key not in self.log.trials and key[:2] not in self.ended]

    def alone(self, keys: Sequence[Key]) -> None:
        """Run each shard with its mutant alone."""
        self._run([self._plan((key,)) for key in keys], lambda index, progress: self._add(Trial.of(keys[index], progress)))

    def together(self, turns: Sequence[Sequence[Key]]) -> None:
        """Run the shards of each turn with groups of mutants, until no shard waits that a group can run."""
        self._groups = (group for turn in turns for group in self._grouped(self.waiting(turn)))
        self._plans, self._group_of = [], []
        self._begin()
        self._run(self._plans, lambda index, progress: self._end(self._group_of[index], progress))

    def _begin(self) -> None:
        """Have as many groups run as there are workers. Halves of a group that failed come before other groups."""
        while self._open < self.workers:
            group = self._halves.pop(0) if self._halves else next(self._groups, None)
            if group is None:
                return
            if waiting := tuple(self.waiting(group)):
                self._plans.append(self._plan(waiting))
                self._group_of.append(waiting)
                self._open += 1

    def _end(self, group: Group, progress: Progress) -> None:
        """Take in what became of a group's shard. The group that failed a case is cut until one mutant is left."""
        self._open -= 1
        if len(group) == 1:
            self._add(Trial.of(group[0], progress))
        elif progress.failure or progress.broken:  # such as a group that raises in every case
            half = len(group) // 2
            self._halves += [group[:half], group[half:]]
        else:
            seconds = round(progress.seconds / len(group), 2)
            for key in group:
                self._add(Trial(key, progress.examples, seconds, together=len(group)))
        self._begin()

    def _grouped(self, keys: Sequence[Key]) -> list[Group]:
        """Groups of the same shard, for mutants whose patches do not overlap."""
        groups: list[list[Key]] = []
        for key in keys:
            for group in groups:
                if group[0][1:] == key[1:] and len(group) < GROUP and self._can_be_installed([*group, key]):
                    group.append(key)
                    break
            else:
                groups.append([key])
        return [tuple(group) for group in groups]

    def _can_be_installed(self, group: Sequence[Key]) -> bool:
        module = self.mutants[group[-1].mutant].module
        try:
            patched_sources([mutant.patch for key in group if (mutant := self.mutants[key.mutant]).module == module])
        except PatchError:
            return False
        return True

    def _plan(self, group: Group) -> FuzzPlan:
        key, patches = group[0], tuple(self.mutants[key.mutant].patch for key in group)
        name = key.mutant if len(group) == 1 else f"{len(group)} mutants"
        mutant = Mutant(name=name, patches=patches, raises="")
        whole = msgspec.structs.replace(self.plan, target=key.target, seed=key.seed, mutant=mutant, on_failure="stop")
        if key.shard == PROBE:
            return msgspec.structs.replace(runner.shards(whole)[0], first=PROBED)
        return runner.shards(whole)[key.shard]

    def _run(self, plans: Sequence[FuzzPlan], ended: Callable[[int, Progress], None]) -> None:
        if plans and not (self.outcome.interrupted or self.outcome.error):
            self.outcome = runner.run(plans, self.workers, stop_at_failure=False, ended=ended)

    def _add(self, trial: Trial) -> None:
        self.log.add(trial)
        if trial.is_last:
            self.ended.add(trial.key[:2])
        self.report(self.log)


def digest(package: str) -> str:
    """A digest of the sources of a package, as they are now."""
    text = "".join(text_of(module) for module in modules_of(package))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
