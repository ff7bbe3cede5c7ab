"""Runs of a test suite with a mutant installed: whether the project's own tests find it.

Each test is recorded once without a mutant: whether it passes, how long it takes, and which statements run in its process. A
mutant meets the tests that pass and run its statement, the cheap ones first, until one fails. A failure counts if the same test
fails alone with the mutant, and passes alone with the modules installed in the same way, unchanged.
"""

import contextlib
import itertools
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from attn_fuzz.errors import ExecutorError
from attn_fuzz.patches.mutant import Mutant, MutantError
from attn_fuzz.run.processes import prepared
from attn_lab.mutate import line_recording, suite_process
from attn_lab.mutate.generate import Generated
from attn_lab.mutate.line_coverage import RecordedTests
from attn_lab.mutate.log import Key, Log, Trial
from attn_lab.mutate.suite_process import Told

TESTS = -1
"""In place of a seed, in the keys of trials: the test suite draws nothing."""
PART_SECONDS = 180.0
"""A test of a part that has not ended by then counts for nothing."""
TOGETHER = 250
"""The number of a mutant's tests that run in one process. Their files are collected before the first of them runs."""
PATIENCE, MIN_SECONDS = 10, 20.0
"""A test hangs that takes PATIENCE times as long as without a mutant, and longer than MIN_SECONDS."""
UNDER = ("torch", "Triton", "numpy")


class Stop(NamedTuple):
    """The reason why a mutant's tests do not go on: `test` fails "test", has "hung" or "died"; or no time is left, and `by` is
    None."""

    by: str | None
    test: str


def test_files(folder: Path) -> list[str]:
    """The files of tests of a folder, as paths."""
    return [str(path) for path in sorted(folder.rglob("test_*.py"))]


def tests_of(mutant: Generated, recorded: Sequence[RecordedTests]) -> dict[str, float]:
    """The tests that run a mutant's statement, in the order in which it meets them, and how long each takes.

    Tests of one order of magnitude stay together by file, because each return to a file sets up its fixtures again.
    """
    found = [(each.tests[name], each.file, name) for each in recorded for name in each.that_run(mutant.module, mutant.line)]
    found.sort(key=lambda one: (math.ceil(math.log10(max(one[0], 0.01))), one[1]))
    return {name: seconds for seconds, _, name in found}


def key(mutant: Generated, tests: Mapping[str, float]) -> Key:
    """The key of a mutant's trial with these tests. With other tests it is another trial."""
    return Key(mutant.name, TESTS, "tests", len(tests))


def record(files: Sequence[str], package: str, log: Log, workers: int, report: Callable[[RecordedTests], None]) -> None:
    """Record the tests of files, unless the log knows them.

    Args:
        package: the package whose statements note that they run.
        log: results are added as they come.
        workers: processes at once.
        report: called after each part of a file.
    """
    waiting: list[Future[None]] = []

    def meet(file: str, part: int) -> None:
        if (file, part) not in log.tests:
            recorded = _recorded(file, part, package, interrupted)
            log.add(recorded)
            report(recorded)
        if part == 0:
            parts = range(1, math.ceil(log.tests[file, 0].count / suite_process.PART))
            waiting.extend(pool.submit(meet, file, other) for other in parts)

    with _threads(workers) as (pool, interrupted):
        waiting.extend(pool.submit(meet, file, 0) for file in files)
        for future in waiting:  # a file's first part adds the others
            future.result()


def run(
    mutants: Sequence[Generated], log: Log, workers: int, seconds: float, report: Callable[[Log], None] = lambda log: None
) -> None:
    """Run what the log does not hold yet: for each mutant, test by test, until one fails.

    Args:
        log: holds the tests; results are added as they come.
        workers: mutants at once.
        seconds: the most seconds of tests for each mutant. The next call goes on with the tests that have not ended.
        report: called after each mutant.
    """
    recorded = [*log.tests.values()]
    passes: dict[tuple[str, str], bool] = {}

    def meet(mutant: Generated) -> Trial | None:
        tests = tests_of(mutant, recorded)
        before = log.trials.get(key(mutant, tests))
        if before is not None and (before.is_last or before.examples == len(tests)):
            return None
        return _trial(mutant, before or Trial(key(mutant, tests), 0, 0.0), tests, seconds, passes, interrupted)

    with _threads(workers) as (pool, interrupted):
        for future in as_completed(pool.submit(meet, mutant) for mutant in mutants):
            if (trial := future.result()) is not None:
                log.add(trial)
                report(log)


def _trial(
    mutant: Generated,
    before: Trial,
    tests: Mapping[str, float],
    seconds: float,
    passes: dict[tuple[str, str], bool],
    interrupted: threading.Event,
) -> Trial:
    """Have a mutant meet its tests, from where an earlier trial ended.

    Args:
        passes: by test and module, whether the test passes alone with the module as it is.
    """
    started = time.monotonic()

    def fails_alone(test: str, *, harmless: bool) -> bool:
        return _first_stop({test: tests[test]}, mutant.mutant, math.inf, interrupted, harmless=harmless)[1] is not None

    def counts(test: str) -> bool:
        if not fails_alone(test, harmless=False):
            return False
        if (test, mutant.module) not in passes:
            passes[test, mutant.module] = not fails_alone(test, harmless=True)
        return passes[test, mutant.module]

    def ended(examples: int, **changes: Any) -> Trial:
        return Trial(before.key, examples, round(before.seconds + time.monotonic() - started, 2), **changes)

    done = before.examples
    try:
        while done < len(tests):
            left = dict(itertools.islice(tests.items(), done, done + TOGETHER))
            passed, stop = _first_stop(left, mutant.mutant, started + seconds, interrupted)
            done += passed + (stop is not None and stop.by is not None)
            if stop is not None and stop.by is None:
                break
            if stop is not None and counts(stop.test):
                return ended(done, by=stop.by, message=stop.test)
    except MutantError as error:
        return ended(done, message=str(error), broken=True)
    return ended(done)


def _recorded(file: str, part: int, package: str, interrupted: threading.Event) -> RecordedTests:
    """
    Raises:
        ExecutorError: the tests were not collected, or their process was killed from outside.
    """
    until = time.monotonic() + PART_SECONDS
    with suite_process.started(suite_process.record, file, part, package) as (process, connection):
        try:
            count, before = suite_process.received(connection, until, interrupted)
        except (EOFError, TimeoutError) as error:
            raise ExecutorError(f"{file}: its tests were not collected: {error or 'their process ended'}") from None
        told = [before]
        try:
            while True:
                told.append(suite_process.received(connection, until, interrupted))
        except (suite_process.Ended, TimeoutError):
            pass
        except EOFError:
            if prepared.is_killed(process):
                raise ExecutorError(f"{file}: the process of its tests was killed from outside") from None
    return _runs(file, part, count, told)


def _runs(file: str, part: int, count: int, told: Sequence[Told]) -> RecordedTests:
    """The record of a file's tests, from the messages of their process. The first message has the statements run at import."""
    modules = {module for one in told for module in one.lines}
    noted = {module: [one.lines.get(module, set()) for one in told] for module in modules}
    imported = {
        module: lines[0] | (line_recording.outside_functions(module) & set().union(*lines)) for module, lines in noted.items()
    }
    passed = [one for one in told[1:] if one.outcome == "passed"]
    runs: dict[str, dict[int, list[int]]] = {}
    for number, one in enumerate(passed):
        for module, lines in one.lines.items():
            for line in sorted(lines - imported[module]):
                runs.setdefault(module, {}).setdefault(line, []).append(number)
    return RecordedTests(
        file=file,
        part=part,
        count=count,
        under={"Python": platform.python_version(), **{name: version(name.lower()) for name in UNDER}},
        tests={one.test: one.seconds for one in passed},
        runs=runs,
        imported={module: sorted(lines) for module, lines in imported.items()},
        failed=tuple(one.test for one in told[1:] if one.outcome == "failed"),
        skipped=sum(one.outcome == "skipped" for one in told[1:]),
    )


def _first_stop(
    tests: Mapping[str, float], mutant: Mutant, until: float, interrupted: threading.Event, *, harmless: bool = False
) -> tuple[int, Stop | None]:
    """The number of tests that pass, one after another, and what stops the next one; None if nothing does.

    Args:
        harmless: True if the modules that the mutant patches are installed as they are.

    Raises:
        MutantError: the mutant cannot be installed or imported.
    """
    with suite_process.started(suite_process.test, tuple(tests), mutant, harmless) as (_, connection):
        for number, (test, seconds) in enumerate(tests.items()):
            patience = time.monotonic() + max(MIN_SECONDS, PATIENCE * seconds)
            try:
                if number == 0:  # the files of all tests are collected
                    suite_process.received(connection, until, interrupted)
                told = suite_process.received(connection, min(until, patience), interrupted)
            except TimeoutError:
                return number, Stop("hung" if patience < until else None, test)
            except EOFError:
                return number, Stop("died", test)
            if told.outcome == "failed":
                return number, Stop("test", test)
    return len(tests), None


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads, and the event that ends what they wait for: it is set when the block ends by an exception."""
    interrupted = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool, interrupted
        except BaseException:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
