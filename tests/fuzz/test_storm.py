"""Processes of a run are killed at random moments: nothing that was found is lost, and nothing is left running.

`--kills N` draws N of them; `tox run -e faults` draws 200. Which process, which signal and when follow from a number.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from attn_fuzz.cases import case_file

from tests import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

PARENT, WORKER, KERNEL = "main process", "worker", "kernel's process"
KILLS = (
    (PARENT, signal.SIGKILL),
    (WORKER, signal.SIGSTOP),
    (WORKER, signal.SIGKILL),
    (PARENT, signal.SIGTERM),
    (PARENT, signal.SIGINT),
    (WORKER, signal.SIGTERM),
    (WORKER, signal.SIGINT),
    (KERNEL, signal.SIGKILL),
)
MOST_SECONDS = 240
LEFT_SECONDS = 5


class Process(NamedTuple):
    pid: int
    state: str
    parent: int
    group: int


def processes_of(called: Path) -> list[Process]:
    """The run's processes, zombies aside. A run is known by the file in which its kernels say that they were called."""
    found = []
    for pid in processes.with_environment(f"PLANTED_CALLED={called}"):
        with contextlib.suppress(OSError):
            state, parent, group, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found.append(Process(pid, state, int(parent), int(group)))
    return [process for process in found if process.state != "Z"]


def victims(main: int, called: Path, kind: str) -> list[int]:
    """Workers are in the group of the main process, and forks of its server. A kernel's process leads a group of its own."""
    if kind == PARENT:
        return [main]
    forks = [process for process in processes_of(called) if process.pid != main and process.parent != main]
    return [process.pid for process in forks if (process.group == process.pid) == (kind == KERNEL)]


def storm(number: int, folder: Path, environment: dict[str, str]) -> str:
    """Run a fuzz run, send one signal, and return what is wrong afterwards; empty if nothing is."""
    rng = random.Random(number)
    kind, what = KILLS[number % len(KILLS)]
    called, started = folder / "called", folder / "started"
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from attn_parity import main; "
    program += f"open({str(started)!r}, 'w').close(); main()"
    command = [
        sys.executable,
        "-c",
        program,
        "fuzz",
        "--target",
        "planted:SLOW_NAN",
        "--examples",
        "300",
        "--seed",
        str(number),
    ]
    main = subprocess.Popen(
        [*command, "--seed", str(number), "--workers", "2", "--corpus", "none", "--report", "runs"],
        cwd=folder,
        env=environment | {"PLANTED_CALLED": str(called)},
        start_new_session=True,
        stdout=(folder / "out").open("w"),
        stderr=(folder / "err").open("w"),
    )
    try:
        # half of the moments come before the first kernel runs, and half while failures are found and made small
        awaited = started if rng.random() < 0.5 and kind == PARENT else called
        while main.poll() is None and not awaited.exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4))
        chosen = victims(main.pid, called, kind) if main.poll() is None else []
        for pid in rng.sample(chosen, min(1, len(chosen))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)
        try:
            code = main.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it hangs: {processes_of(called)}"
        until = time.monotonic() + LEFT_SECONDS
        while processes_of(called) and time.monotonic() < until:
            time.sleep(0.05)
        return f"left running: {left}" if (left := processes_of(called)) else _lost(code, kind, what, folder)
    finally:
        for process in processes_of(called):
            os.kill(process.pid, signal.SIGKILL)
        main.wait()


def _lost(code: int, kind: str, what: signal.Signals, folder: Path) -> str:
    """What was found and is neither told nor on the disk. The planted kernel fails in its first case."""
    out, err = (folder / "out").read_text(), (folder / "err").read_text()
    cases = {path.name: case_file.load(path) for path in folder.glob("runs/*.json")}  # none is cut
    if "Traceback" in err:
        return err[-1000:]
    if kind == PARENT and what == signal.SIGKILL and code == -what:
        # a kernel was called: its case is in flight, or was written as a failure
        return "nothing on the disk" if (folder / "called").exists() and not cases else ""
    was_found = "as it was found" in out
    expected = {1} if was_found or kind != PARENT else {130, -signal.SIGTERM, -signal.SIGINT, 1}
    if code not in expected:
        return f"exit {code}, expected one of {expected}: {out[-500:]} {err[-500:]}"
    if was_found and not any("first" not in name for name in cases):
        return f"the smallest case is not written: {sorted(cases)}"
    if left := [name for name in cases if name.startswith("in-flight")]:
        return f"cases in flight were left: {left}"
    return ""


def test_nothing_is_lost_or_left_when_a_process_is_killed(tmp_path, request, child_environment):
    wrong = []
    for number in range(request.config.getoption("--kills")):
        folder = tmp_path / str(number)
        folder.mkdir()
        if message := storm(number, folder, child_environment):
            kind, what = KILLS[number % len(KILLS)]
            wrong.append(f"{number}: {what.name} to a {kind}: {message}")
    assert not wrong, "\n".join(wrong)
