"""A process that runs tests and tells of each one when it has ended."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event
from typing import Any, NamedTuple

from attn_fuzz.patches import installation
from attn_fuzz.patches.mutant import Mutant, MutantError
from attn_fuzz.patches.source import patched_sources, text_of
from attn_fuzz.run.processes import prepared
from attn_lab.mutate import line_recording

PART = 25
"""The number of tests of a file that are recorded in one process, so that several processes record a long file at once."""
WAKE_SECONDS = 0.5


class Told(NamedTuple):
    """The message of a process of tests when a test has ended.

    Attributes:
        test: its name.
        outcome: "passed", "failed" or "skipped". A test that is expected to fail is skipped.
        seconds: the seconds that it took.
        lines: the statements that it ran, by module.
    """

    test: str
    outcome: str
    seconds: float = 0.0
    lines: Mapping[str, set[int]] = {}


class Interrupted(Exception):  # noqa: N818 - ends a thread, is no error
    pass


class Ended(EOFError):  # noqa: N818 - is no error
    """All tests of a process have run."""


@contextlib.contextmanager
def started(function: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that calls a function, and a connection to it. At the end the process is killed, and what it has started."""
    ours, theirs = multiprocessing.Pipe()
    process = prepared.start("cpu", function, theirs, *arguments)
    assert process.pid is not None
    theirs.close()
    try:
        yield process, ours
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()


def received(connection: Connection, until: float, interrupted: Event) -> Any:
    """The next message of a process.

    Raises:
        TimeoutError: it sends nothing in time.
        Ended: all its tests have run.
        EOFError: it has ended before.
        MutantError: it sends one.
    """
    while not connection.poll(max(0.0, min(WAKE_SECONDS, until - time.monotonic()))):
        if interrupted.is_set():
            raise Interrupted
        if time.monotonic() >= until:
            raise TimeoutError("no answer in time")
    sent = connection.recv()
    if sent is None:
        raise Ended
    if isinstance(sent, MutantError):
        raise sent
    return sent


def record(connection: Connection, file: str, part: int, package: str) -> None:
    _stand_alone()
    line_recording.install(package)
    _pytest(connection, [file], _Recorded(connection, part))


def test(connection: Connection, tests: tuple[str, ...], mutant: Mutant, harmless: bool) -> None:
    _stand_alone()
    try:
        if harmless:
            installation.import_from({module: text_of(module) for module in patched_sources(mutant.patches)}, mutant.name)
        else:
            installation.install(mutant)
    except MutantError as error:
        connection.send(error)
        return
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    # a file that the mutant keeps from being collected leaves the tests of others
    _pytest(connection, [*files, "-x", "--continue-on-collection-errors"], _Chosen(connection, tests, mutant))


def _stand_alone() -> None:
    """Tests kill the server of their processes, and their own group."""
    os.setsid()
    prepared.leave_server()


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
            self._connection.send(Told(report.nodeid, worst, round(self._seconds, 4), line_recording.take()))
            self._outcomes, self._seconds = [], 0.0


class _Recorded(_Tells):
    """Runs a part of the tests of a file. First it tells how many the file has, and what ran before the first of them."""

    def __init__(self, connection: Connection, part: int) -> None:
        super().__init__(connection)
        self._part = part

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self._connection.send((len(items), Told("", "", lines=line_recording.take())))
        items[:] = items[self._part * PART : (self._part + 1) * PART]


class _Chosen(_Tells):
    """Runs chosen tests in their order. A test that is not there any more has failed, and none runs after it."""

    def __init__(self, connection: Connection, tests: Sequence[str], mutant: Mutant) -> None:
        super().__init__(connection)
        self._tests, self._mutant = tests, mutant
        self._missing: str | None = None

    def pytest_sessionstart(self) -> None:
        try:
            installation.import_patched(self._mutant)  # one that cannot be imported is not to be taken for the bug
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

    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may send it; that of a terminal reaches no other session
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        pytest.main([*arguments, "-q", "-p", "no:cacheprovider", f"--rootdir={os.getcwd()}"], plugins=[plugin])
    connection.send(None)
