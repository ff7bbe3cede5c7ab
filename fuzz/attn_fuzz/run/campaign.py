"""A campaign: generated mutants, each by several seeds on the targets that run it, until a case fails.

A mutant's shards take turns with those of all others. So an interrupted campaign has tried every mutant a little, and not a few
of them to the end. Each shard's result is written into the log when the shard ends. A second call goes on from there.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from attn_fuzz.errors import InputError
from attn_fuzz.run import reach, runner
from attn_fuzz.run.reach import Reach
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.zoo.generate import Generated
from attn_fuzz.zoo.patches import modules_of, text_of

SCHEMA = "attn-parity.mutants-log/1"
SHARDS_AT_ONCE = 8
"""Shards of each mutant and seed that are planned together."""
NOT_COMPILED = ("InterpreterError", "CompilationError")
"""Triton's exceptions for a kernel that is no program."""


class Log:
    """The file of a campaign. Its first line says what it is of; each other line is a shard's result, or what a target runs.

    Args:
        path: of the file, which is made if it does not exist.
        device: "cpu" or "cuda".
        package: whose mutants these are.

    Raises:
        InputError: the file is of another device or of other sources, or it is no log.
    """

    def __init__(self, path: Path, device: str, package: str) -> None:
        self.path = path
        self.trials: dict[Key, Trial] = {}
        self.reaches: dict[str, Reach] = {}
        header = Header(schema=SCHEMA, device=device, sources=_digest(package))
        if path.exists():
            self._read(header)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(header) + b"\n")

    def _read(self, header: "Header") -> None:
        first, *lines = self.path.read_bytes().split(b"\n")
        try:
            if msgspec.json.decode(first, type=Header) != header:
                raise InputError(f"{self.path}: it is of other sources or of another device; give another file")
            for line in lines[:-1]:  # what follows the last line break was not written to its end
                entry = msgspec.json.decode(line, type=Trial | Reach)
                if isinstance(entry, Trial):
                    self.trials[entry.key] = entry
                else:
                    self.reaches[entry.target] = entry
        except msgspec.MsgspecError as error:
            raise InputError(f"{self.path}: no results of mutants: {error}") from None
        if lines and lines[-1]:
            self.path.write_bytes(b"\n".join([first, *lines[:-1], b""]))

    def of_targets(self) -> list[Reach]:
        return [entry for entry in self.reaches.values() if not entry.tests]

    def of_tests(self) -> list[Reach]:
        return [entry for entry in self.reaches.values() if entry.tests]

    def add(self, entry: "Trial | Reach") -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
        if isinstance(entry, Trial):
            self.trials[entry.key] = entry
        else:
            self.reaches[entry.target] = entry


class Header(msgspec.Struct, frozen=True):
    schema: str
    device: str
    sources: str


class Key(NamedTuple):
    """What a shard of a campaign runs: the mutant, its seed, the target, and which of the target's shards."""

    mutant: str
    seed: int
    target: str
    shard: int


class Trial(msgspec.Struct, frozen=True, omit_defaults=True, tag="trial"):
    """What became of one shard.

    Attributes:
        key: which shard.
        examples: how many cases ran.
        seconds: how long they took.
        by: the kind of the verdict that found the mutant; None if no case did.
        message: what the verdict says, or why the mutant does not run.
        always: whether the mutant raised in every case.
        broken: whether the mutant does not import, or its kernels do not compile.
    """

    key: Key
    examples: int
    seconds: float
    by: str | None = None
    message: str = ""
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
        """Whether nothing more is to be learnt of the mutant and the seed."""
        return self.by is not None or self.broken


def order(mutant: Generated, seed: int, targets: Sequence[str], examples: int) -> list[Key]:
    """A mutant's shards in the order in which they run: the first shard of each target, the second of each, and so on.

    A profile with more examples begins with the shards of one with less.

    Args:
        targets: those that run the mutant.
        examples: for each target.
    """
    count = max(1, round(examples / runner.SHARD_EXAMPLES))
    return [Key(mutant.name, seed, target, i) for i in range(count) for target in targets]


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
    reaches = log.of_targets()
    queues: dict[tuple[str, int], list[Key]] = {}
    for mutant in mutants:
        targets = reach.targets_of(mutant.module, mutant.line, reaches)
        for seed in seeds:
            queues[mutant.name, seed] = order(mutant, seed, targets, plan.examples)
    by_name = {mutant.name: mutant for mutant in mutants}
    outcome = Outcome([])
    while keys := [key for turn in _turns(queues, log) for key in turn]:
        plans = [_plan(plan, key, by_name[key.mutant]) for key in keys]
        outcome = _run(plans, keys, log, workers, report)
        if outcome.interrupted or outcome.error:
            break
    return outcome


def _run(plans: list[FuzzPlan], keys: list[Key], log: Log, workers: int, report: Callable[[Log], None]) -> Outcome:
    over = {trial.key[:2] for trial in log.trials.values() if trial.is_last}

    def note(index: int, progress: Progress) -> None:
        log.add(trial := Trial.of(keys[index], progress))
        if trial.is_last:
            over.add(trial.key[:2])
        report(log)

    return runner.run(plans, workers, stop_at_failure=False, ended=note, wanted=lambda index: keys[index][:2] not in over)


def _turns(queues: dict[tuple[str, int], list[Key]], log: Log) -> Iterator[list[Key]]:
    """The next shards of all mutants and seeds that are not over: the first of each, the second of each, and so on."""
    over = {trial.key[:2] for trial in log.trials.values() if trial.is_last}
    waiting = [queue for name, queue in queues.items() if name not in over]
    left = [turn for queue in waiting for turn, key in enumerate(queue) if key not in log.trials]
    begin = min(left, default=0)
    for turn in range(begin, begin + SHARDS_AT_ONCE):
        yield [queue[turn] for queue in waiting if turn < len(queue) and queue[turn] not in log.trials]


def _plan(plan: FuzzPlan, key: Key, mutant: Generated) -> FuzzPlan:
    whole = msgspec.structs.replace(plan, target=key.target, seed=key.seed, mutant=mutant.mutant, shrinks=False)
    return runner.shards(whole)[key.shard]


def _digest(package: str) -> str:
    text = "".join(text_of(module) for module in modules_of(package))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
