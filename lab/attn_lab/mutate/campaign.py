"""A campaign: generated mutants, each by several seeds on the targets that run it, until a case fails.

Each mutant first runs PROBED cases of its quickest targets alone, which find most mutants. The others run in groups: up to
MAX_GROUP mutants are installed together, and a shard in which no case fails counts for each. When a case fails, each half
of the group runs the shard, until one mutant is left. So a mutant is found only by a run of its own. A mutant that hides
another one's failure after its first PROBED cases makes the other one survive. As many groups run at once as there are workers,
and none waits for another.

Each shard's result is written into the log when the shard ends. A second call goes on from there.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec
from attn_fuzz.patches.mutant import Mutant
from attn_fuzz.patches.source import PatchError, patched_sources
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import TargetError
from attn_lab.mutate import line_coverage
from attn_lab.mutate.generate import PACKAGE, Generated
from attn_lab.mutate.line_coverage import Reach
from attn_lab.mutate.log import PROBE, Key, Log, Trial
from attn_parity.console import notes

PROBED, PROBED_TARGETS = 20, 3
"""Cases of a target that a mutant runs alone before it joins a group, and of how many targets."""
MAX_GROUP = 64
"""The most mutants that are installed together."""

Group = tuple[Key, ...]
"""One shard with several mutants, whose patches do not overlap."""


def usable(chosen: Sequence[str]) -> list[str]:
    """The targets that can run here. None compiles unless it is named."""
    found = []
    for name in chosen or [name for name in registry.battery() if not registry.load(name).compiles]:
        try:
            registry.usable(name, "cpu")
        except TargetError as error:
            if chosen:
                raise
            notes.print(f"left out: {error}")
        else:
            found.append(name)
    return found


def record_targets(log: Log, targets: Sequence[str], examples: int, plan: FuzzPlan, workers: int) -> None:
    """Record what targets run, unless the log knows it. Each is recorded in a process of its own."""

    def of_target(name: str) -> Reach:
        return line_coverage.record(
            FuzzPlan(target=name, device=plan.device, examples=examples, seed=plan.seed, folder=plan.folder), PACKAGE
        )

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in as_completed(pool.submit(of_target, name) for name in targets if name not in log.reaches):
                log.add(found := future.result())
                notes.print(f"recorded: {found.target}, {found.seconds:.2f} s for a case")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
                if group[0][1:] == key[1:] and len(group) < MAX_GROUP and self._can_be_installed([*group, key]):
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
