"""The statements of the optimized side that a target runs, recorded while it runs cases as a fuzz run draws them.

A target cannot find a mutant of a statement that it does not run.
"""

import time
from collections import Counter
from multiprocessing.connection import Connection

import msgspec
from attn_fuzz.errors import ExecutorError
from attn_fuzz.interpreted import interpreter
from attn_fuzz.run import runner, shard
from attn_fuzz.run.processes import prepared
from attn_fuzz.run.processes.executor import use_interpreter
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_lab.mutate import line_recording


class Reach(msgspec.Struct, frozen=True, omit_defaults=True, tag="reach"):
    """The statements that the cases of a target run.

    Attributes:
        target: its name.
        seconds: the seconds that a case takes.
        cases: by module and line, how many of them run the statement that begins there. What runs at import counts once.
    """

    target: str
    seconds: float
    cases: dict[str, dict[int, int]]

    def count(self, module: str, line: int) -> int:
        """The number of cases that run the statement of a module that begins on a line."""
        return self.cases.get(module, {}).get(line, 0)


class RecordedTests(msgspec.Struct, frozen=True, omit_defaults=True, tag="tests"):
    """The statements that tests of a file run which pass without a mutant.

    Attributes:
        file: its path.
        part: which part of its tests this is, from 0.
        count: the number of tests in the file, in all parts.
        under: versions of what they ran under.
        tests: the seconds of each test, by name.
        runs: by module and line, which of them run the statement that begins there, by number from 0.
        imported: by module, the lines of statements that run when the file or a module is imported, which is for all of them.
        failed: the names of those that fail.
        skipped: the number of skipped tests.
    """

    file: str
    part: int
    count: int
    under: dict[str, str]
    tests: dict[str, float]
    runs: dict[str, dict[int, list[int]]]
    imported: dict[str, list[int]]
    failed: tuple[str, ...] = ()
    skipped: int = 0

    def that_run(self, module: str, line: int) -> list[str]:
        """The tests that run the statement of a module that begins on a line."""
        names = [*self.tests]
        return names if line in self.imported.get(module, ()) else [names[at] for at in self.runs.get(module, {}).get(line, ())]


def record(plan: FuzzPlan, package: str) -> Reach:
    """Run the cases of a plan on a CPU, where Triton's kernels are Python, and record what they run of a package.

    Raises:
        TargetError: the target cannot run on a CPU.
        ExecutorError: its process ended before it had run all cases.
    """
    registry.usable(plan.target, "cpu")
    try:
        return prepared.answer("cpu", None, _record, plan, package)
    except EOFError:
        raise ExecutorError(f"target {plan.target}: its process ended while its lines were recorded") from None


def targets_of(module: str, line: int, reaches: list[Reach]) -> list[str]:
    """The targets that run the statement on this line, the quickest first."""
    found = [reach for reach in reaches if reach.count(module, line)]
    return [reach.target for reach in sorted(found, key=lambda reach: reach.seconds)]


def _record(connection: Connection, plan: FuzzPlan, package: str) -> None:
    use_interpreter("cpu")
    line_recording.install(package)
    import torch
    from attn_fuzz.run.case.trial import try_case

    torch.set_num_threads(1)
    interpreter.install()
    target = registry.load(plan.target)
    cases = [case for part in runner.shards(plan) for case in shard.drawn(part)]
    count: Counter[tuple[str, int]] = Counter()
    started = time.perf_counter()
    for case in cases:
        try_case(case, target, "cpu")
        count.update((module, line) for module, lines in line_recording.take().items() for line in lines)
    seconds = (time.perf_counter() - started) / len(cases)
    lines: dict[str, dict[int, int]] = {}
    for (module, line), number in count.items():
        lines.setdefault(module, {})[line] = number
    connection.send(Reach(plan.target, seconds, lines))
