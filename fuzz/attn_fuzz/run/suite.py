"""Runs of a test suite with a mutant installed: whether the project's own tests find it.

Each test is recorded once without a mutant: whether it passes, how long it takes, and which statements run in its process. A
mutant meets the tests that pass and run its statement, the cheap ones first, until one fails. A failure counts if the same test
fails alone with the mutant, and passes alone with the modules installed in the same way, unchanged.
"""

import contextlib
import itertools
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from attn_fuzz.errors import ExecutorError
from attn_fuzz.run import prepared
from attn_fuzz.run.campaign import Key, Log, Trial
from attn_fuzz.run.reach import RecordedTests
from attn_fuzz.zoo import mutants, reached
from attn_fuzz.zoo.generate import Generated
from attn_fuzz.zoo.mutants import Mutant, MutantError
from attn_fuzz.zoo.patches import patched_sources, text_of

TESTS = -1
"""In place of a seed, in the keys of trials: the test suite draws nothing."""
PART = 25
"""How many tests of a file are recorded in one process, so that a long file is recorded in several at once."""
PART_SECONDS = 180.0
"""A test of a part that has not ended by then counts for nothing."""
TOGETHER = 250
"""How many of a mutant's tests run in one process. Their files are collected before the first of them runs."""
PATIENCE, LEAST_SECONDS = 10, 20.0
"""A test hangs that takes PATIENCE times as long as without a mutant, and longer than LEAST_SECONDS."""
WAKE_SECONDS = 0.5
UNDER = ("torch", "Triton", "numpy")


class Told(NamedTuple):
    """What a process of tests tells when a test has ended.

    Attributes:
        test: its name.
        outcome: "passed", "failed" or "skipped". A test that is expected to fail is skipped.
        seconds: how long it took.
        lines: the statements that it ran, by module.
    """

    test: str
    outcome: str
    seconds: float = 0.0
    lines: Mapping[str, set[int]] = {}


class Stop(NamedTuple):
    """Why a mutant's tests do not go on: `test` fails "test", has "hung" or "died"; or no time is left, and `by` is None."""

    by: str | None
    test: str


class _Interrupted(Exception):  # noqa: N818 - ends a thread, is no error
    pass


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
    """Which trial is a mutant's with these tests: with other tests it is another one."""
    return Key(mutant.name, TESTS, "tests", len(tests))


def record(files: Sequence[str], package: str, log: Log, workers: int, report: Callable[[RecordedTests], None]) -> None:
    """Record the tests of files, unless the log knows them.

    Args:
        package: whose statements note that they run.
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
            parts = range(1, math.ceil(log.tests[file, 0].count / PART))
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
        seconds: of tests for each mutant. The next call goes on with those that have not ended.
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
        ExecutorError: the tests were not collected.
    """
    until = time.monotonic() + PART_SECONDS
    with _process(_record, file, part, package) as connection:
        try:
            count, before = _received(connection, until, interrupted)
        except (EOFError, TimeoutError) as error:
            raise ExecutorError(f"{file}: its tests were not collected: {error or 'their process ended'}") from None
        told = [before]
        with contextlib.suppress(EOFError, TimeoutError):
            while True:
                told.append(_received(connection, until, interrupted))
    return _runs(file, part, count, told)


def _runs(file: str, part: int, count: int, told: Sequence[Told]) -> RecordedTests:
    """What tests run, of what their process has told; the first tells what ran before them."""
    modules = {module for one in told for module in one.lines}
    noted = {module: [one.lines.get(module, set()) for one in told] for module in modules}
    imported = {module: lines[0] | (reached.outside_functions(module) & set().union(*lines)) for module, lines in noted.items()}
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
    """How many of the tests pass, one after another, and what stops the next one; None if nothing does.

    Args:
        harmless: whether the modules that the mutant patches are installed as they are.

    Raises:
        MutantError: the mutant cannot be installed or imported.
    """
    with _process(_test, tuple(tests), mutant, harmless) as connection:
        for number, (test, seconds) in enumerate(tests.items()):
            patience = time.monotonic() + max(LEAST_SECONDS, PATIENCE * seconds)
            try:
                if number == 0:  # the files of all tests are collected
                    _received(connection, until, interrupted)
                told = _received(connection, min(until, patience), interrupted)
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


@contextlib.contextmanager
def _process(function: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A connection to a process that calls a function. At the end the process is killed, and what it has started."""
    context = prepared.context("cpu")
    ours, theirs = context.Pipe()
    process = prepared.process("cpu", function, theirs, *arguments)
    process.start()
    assert process.pid is not None
    theirs.close()
    try:
        yield ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()


def _received(connection: Connection, until: float, interrupted: threading.Event) -> Any:
    """What a process sends next.

    Raises:
        TimeoutError: it sends nothing in time.
        EOFError: it has ended.
        MutantError: it sends one.
    """
    while not connection.poll(max(0.0, min(WAKE_SECONDS, until - time.monotonic()))):
        if interrupted.is_set():
            raise _Interrupted
        if time.monotonic() >= until:
            raise TimeoutError("no answer in time")
    sent = connection.recv()
    if sent is None:
        raise EOFError
    if isinstance(sent, MutantError):
        raise sent
    return sent


def _record(connection: Connection, file: str, part: int, package: str) -> None:
    os.setsid()
    reached.install(package)
    _pytest(connection, [file], _Recorded(connection, part))


def _test(connection: Connection, tests: tuple[str, ...], mutant: Mutant, harmless: bool) -> None:
    os.setsid()
    try:
        if harmless:
            mutants.import_from({module: text_of(module) for module in patched_sources(mutant.patches)}, mutant.name)
        else:
            mutants.install(mutant)
    except MutantError as error:
        connection.send(error)
        return
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    # a file that the mutant keeps from being collected leaves the tests of others
    _pytest(connection, [*files, "-x", "--continue-on-collection-errors"], _Chosen(connection, tests, mutant))


class _Tells:
    """A plugin of pytest that tells of each test when it has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outcomes: list[str] = []
        self._seconds = 0.0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._outcomes.append(report.outcome)
        self._seconds += report.duration
        if report.when == "teardown":
            worst = next((each for each in ("failed", "skipped") if each in self._outcomes), "passed")
            self._connection.send(Told(report.nodeid, worst, round(self._seconds, 4), reached.take()))
            self._outcomes, self._seconds = [], 0.0


class _Recorded(_Tells):
    """Runs a part of the tests of a file. First it tells how many the file has, and what ran before the first of them."""

    def __init__(self, connection: Connection, part: int) -> None:
        super().__init__(connection)
        self._part = part

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self._connection.send((len(items), Told("", "", lines=reached.take())))
        items[:] = items[self._part * PART : (self._part + 1) * PART]


class _Chosen(_Tells):
    """Runs chosen tests in their order. A test that is not there any more has failed, and none runs after it."""

    def __init__(self, connection: Connection, tests: Sequence[str], mutant: Mutant) -> None:
        super().__init__(connection)
        self._tests, self._mutant = tests, mutant
        self._missing: str | None = None

    def pytest_sessionstart(self) -> None:
        try:
            mutants.import_patched(self._mutant)  # one that cannot be imported is not to be taken for the bug
        except MutantError as error:
            self._connection.send(error)
            raise

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        there = {item.nodeid: item for item in items}
        self._missing = next((test for test in self._tests if test not in there), None)
        items[:] = [there[test] for test in itertools.takewhile(lambda test: test in there, self._tests)]
        self._connection.send("collected")

    def pytest_sessionfinish(self) -> None:
        if self._missing is not None:
            self._connection.send(Told(self._missing, "failed"))


def _pytest(connection: Connection, arguments: list[str], plugin: _Tells) -> None:
    import pytest

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        pytest.main([*arguments, "-q", "-p", "no:cacheprovider", f"--rootdir={os.getcwd()}"], plugins=[plugin])
    connection.send(None)
