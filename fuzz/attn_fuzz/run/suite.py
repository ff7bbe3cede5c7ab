"""Runs of a test suite with a mutant installed: whether the project's own tests find it.

A file of tests is treated as a target is. It is recorded once what its tests run, and a mutant meets the files whose tests run
the changed statement. Only statements that run in the process of the tests count.
"""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attn_fuzz.run import prepared, reach
from attn_fuzz.run.campaign import Key, Log, Trial
from attn_fuzz.run.reach import Reach
from attn_fuzz.zoo import mutants, reached
from attn_fuzz.zoo.generate import Generated
from attn_fuzz.zoo.mutants import Mutant, MutantError

TESTS = -1
"""In place of a seed, in the keys of trials: the test suite draws nothing."""
PATIENCE, LEAST_SECONDS = 10, 60
"""A file hangs that takes PATIENCE times as long as without a mutant, and longer than LEAST_SECONDS."""
RECORD_SECONDS = 1800


def test_files(folder: Path) -> list[str]:
    """The files of tests of a folder, as paths."""
    return [str(path) for path in sorted(folder.rglob("test_*.py"))]


def record(file: str, package: str) -> Reach:
    """Run a file of tests, and record which statements of a package its tests run. A file that hangs runs none."""
    started = time.monotonic()
    cases, count, failing = _in_process(_record, (file, package), RECORD_SECONDS) or ({}, 1, ())
    return Reach(file, (time.monotonic() - started) / max(1, count), cases, tests=True, failing=failing)


def order(mutant: Generated, log: Log) -> list[Key]:
    """A mutant's files in the order in which they run, the quickest tests first."""
    return [Key(mutant.name, TESTS, file, 0) for file in reach.targets_of(mutant.module, mutant.line, log.of_tests())]


def run(mutants: Sequence[Generated], log: Log, workers: int, report: Callable[[Log], None] = lambda log: None) -> None:
    """Run what the log does not hold yet: for each mutant, file by file, until a test fails.

    Args:
        log: holds the reach of every file that is to be used; results are added as they come.
        workers: files at once.
        report: called after each file.
    """
    files = {each.target: each for each in log.of_tests()}

    def meet(mutant: Generated) -> None:
        for key in order(mutant, log):
            if key not in log.trials:
                log.add(_tried(key, mutant.mutant, files[key.target]))
                report(log)
            if log.trials[key].is_last:
                return

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(meet, mutant) for mutant in mutants]:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(key: Key, mutant: Mutant, file: Reach) -> Trial:
    num_tests = max((number for lines in file.cases.values() for number in lines.values()), default=1)
    started = time.monotonic()
    answer = _in_process(_test, (key.target, mutant, file.failing), max(LEAST_SECONDS, PATIENCE * file.seconds * num_tests))
    seconds = round(time.monotonic() - started, 2)
    if isinstance(answer, MutantError):
        return Trial(key, 0, seconds, message=str(answer), broken=True)
    if answer is None:
        return Trial(key, 0, seconds, "hung", f"no answer in {seconds:g} s")
    failed, count = answer
    return Trial(key, count, seconds, "test" if failed else None, failed)


def _in_process(function: Callable[..., None], arguments: tuple[Any, ...], limit: float) -> Any:
    """What a function sends from a process of its own; None if the process sends nothing within `limit` seconds."""
    context = prepared.context("cpu")
    ours, theirs = context.Pipe()
    process = prepared.process("cpu", function, theirs, *arguments)
    process.start()
    assert process.pid is not None
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit) else None
    except EOFError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the processes that tests have started, too
        process.kill()
        process.join()


def _record(connection: Connection, file: str, package: str) -> None:
    os.setsid()
    reached.install(package)
    notes = _Notes()
    _pytest(["-q", file], notes)
    connection.send((notes.lines(), notes.count, tuple(notes.failed)))


def _test(connection: Connection, file: str, mutant: Mutant, failing: tuple[str, ...]) -> None:
    os.setsid()
    try:
        mutants.install(mutant)
        mutants.import_patched(mutant)
    except MutantError as error:
        connection.send(error)
        return
    notes = _Notes()
    code = _pytest(["-x", "-q", file, *(f"--deselect={test}" for test in failing)], notes)
    failed = notes.failed or ["its tests cannot be collected"] * (code not in (0, 1, 5))
    connection.send(("".join(failed[:1]), notes.count))


class _Notes:
    """A plugin of pytest that counts tests, and notes which of them fail and which statements they run."""

    def __init__(self) -> None:
        self.count = 0
        self.failed: list[str] = []
        self._cases: Counter[tuple[str, int]] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "teardown":
            self.count += 1
            self._cases.update((module, line) for module, lines in reached.take().items() for line in lines)

    def lines(self) -> dict[str, dict[int, int]]:
        found: dict[str, dict[int, int]] = {}
        for (module, line), number in self._cases.items():
            found.setdefault(module, {})[line] = number
        return found


def _pytest(arguments: list[str], plugin: _Notes) -> int:
    import pytest

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        return int(pytest.main([*arguments, "-p", "no:cacheprovider"], plugins=[plugin]))
