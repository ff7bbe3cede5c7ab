"""Processes of a run are killed at random moments, and runs are interrupted by Ctrl-C at random moments.

No verdict is false, nothing that was found is lost, nothing is left running, and the exit code is a documented one.
`tox run -e nightly -- faults` kills 100 processes, and sends 20 Ctrl-C. Which command, which process, which signal and when
follow from a number.
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

import msgspec
import pytest
from attn_fuzz.cases import case_file

from tests.support import processes

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

FUZZ = "fuzz --corpus none --workers 2 --report runs --seed {number} --device cpu"
COMMANDS = {
    "fuzz": f"{FUZZ} --target planted:SLOW_NAN --examples 300",
    "agreeing": f"{FUZZ} --target planted:SLOW --examples 40",
    "keep going": f"{FUZZ} --keep-going --target planted:SLOW --examples 40",
    "replay": "replay case.json case.json case.json case.json case.json case.json --target planted:SLOW --device cpu",
    "zoo": "zoo run --only diagonal --examples 100 --workers 2 --device cpu",
    "emulated": f"{FUZZ} --target planted_emulated:SMALL_TRITON@gfx942 --examples 5 --no-sanitize",
    "compile": "compile --arch gfx942 --only merge --workers 1",
    "select": "select --heads 8 --head-size 64 --arch gfx942",
}
FAILS = {"fuzz": 1}
"""The exit code of a run that nobody disturbs; 0 of the others."""

PARENT, WORKER, KERNEL = "main process", "worker", "kernel's process"
SERVER, TRACKER, COMPILER = "multiprocessing.forkserver", "multiprocessing.resource_tracker", "attn_fuzz.emulated.compilation"
KILLS = (
    ("agreeing", SERVER, signal.SIGKILL),
    ("fuzz", PARENT, signal.SIGKILL),
    ("fuzz", WORKER, signal.SIGSTOP),
    ("fuzz", WORKER, signal.SIGKILL),
    ("fuzz", PARENT, signal.SIGTERM),
    ("fuzz", PARENT, signal.SIGINT),
    ("fuzz", WORKER, signal.SIGTERM),
    ("fuzz", WORKER, signal.SIGINT),
    ("fuzz", KERNEL, signal.SIGKILL),
    ("fuzz", SERVER, signal.SIGKILL),
    ("keep going", SERVER, signal.SIGKILL),
    ("replay", SERVER, signal.SIGKILL),
    ("zoo", SERVER, signal.SIGKILL),
    ("agreeing", WORKER, signal.SIGKILL),
    ("agreeing", KERNEL, signal.SIGTERM),
    ("agreeing", TRACKER, signal.SIGKILL),
    ("emulated", COMPILER, signal.SIGKILL),
)
MAX_SECONDS = 240
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
    """Workers and kernels' processes have the name of the server. A kernel's process leads a group of its own."""
    if kind == PARENT:
        return [main]
    others = [process for process in processes_of(called) if process.pid != main]
    if kind in (SERVER, TRACKER, COMPILER):
        return [one.pid for one in others if (one.parent == main or kind == COMPILER) and kind in _name(one.pid)]
    forks = [process for process in others if process.parent != main and SERVER in _name(process.pid)]
    return [process.pid for process in forks if (process.group == process.pid) == (kind == KERNEL)]


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


class Storm:
    """A run that is disturbed."""

    def __init__(self, command: str, number: int, folder: Path, environment: dict[str, str], case: Path) -> None:
        self.command, self.rng = command, random.Random(number)
        self.folder, self.called, self.started = folder, folder / "called", folder / "started"
        (folder / "case.json").write_bytes(case.read_bytes())
        program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from attn_parity import cli, main; "
        group = "__import__('attn_lab.__main__').__main__.lab" if command == "zoo" else "cli"
        program += f"open({str(self.started)!r}, 'w').close(); main(commands={group})"
        words = COMMANDS[command].format(number=number).split()
        self.main = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=folder,
            env=environment | {"PLANTED_CALLED": str(self.called)},
            start_new_session=True,
            stdout=(folder / "out").open("w"),
            stderr=(folder / "err").open("w"),
        )

    def wait_for(self, there) -> None:
        while self.main.poll() is None and not there():
            time.sleep(0.02)

    def wait_for_moment(self, kind: str) -> None:
        """Half of the moments come before the first kernel runs, and half while failures are found and made small."""
        early = self.rng.random() < 0.5 and kind in (PARENT, SERVER)
        planted = "planted:" in COMMANDS[self.command]
        self.wait_for((self.called if planted and not early else self.started).exists)

    def kill(self, kind: str, what: signal.Signals) -> None:
        self.wait_for_moment(kind)
        self.wait_for(lambda: victims(self.main.pid, self.called, kind))
        time.sleep(self.rng.uniform(0, 4))
        chosen = victims(self.main.pid, self.called, kind) if self.main.poll() is None else []
        for pid in self.rng.sample(chosen, min(1, len(chosen))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def interrupt(self) -> None:
        """Send Ctrl-C as a terminal does: to the group of the main process."""
        self.wait_for_moment(PARENT)
        time.sleep(self.rng.uniform(0, 8))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.main.pid, signal.SIGINT)

    def end(self, kind: str, what: signal.Signals) -> str:
        """The fault at the end of the run, in words; empty if there is none."""
        try:
            code = self.main.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it hangs: {processes_of(self.called)}"
        until = time.monotonic() + LEFT_SECONDS
        while processes_of(self.called) and time.monotonic() < until:
            time.sleep(0.05)
        return f"left running: {left}" if (left := processes_of(self.called)) else self._lost(code, kind, what)

    def _lost(self, code: int, kind: str, what: signal.Signals) -> str:
        """What was found and is neither told nor on the disk. The kernel SLOW_NAN fails in its first case, and SLOW in none."""
        out, err = (self.folder / "out").read_text(), (self.folder / "err").read_text()
        cases = {path.name: case_file.load(path) for path in self.folder.glob("runs/*.json")}  # none is cut
        if "Traceback" in err:
            return err[-1000:]
        if kind == PARENT and what == signal.SIGKILL and code == -what:
            # a kernel was called: its case is in flight, or was written as a failure
            return "nothing on the disk" if self.called.exists() and not cases else ""
        as_ever = FAILS.get(self.command, 0)
        was_found = "as it was found" in out
        expected = {as_ever}
        if kind == PARENT:
            expected = {1} if was_found else {130, as_ever}
        if code not in expected:
            return f"exit {code}, expected one of {expected}: {out[-500:]} {err[-500:]}"
        if was_found and not any("first" not in name for name in cases):
            return f"the smallest case is not written: {sorted(cases)}"
        log = self.folder / "log"
        if log.exists() and '"broken":true' in log.read_text():
            return f"a mutant that runs is told to be broken: {log.read_text()[-500:]}"
        if left := [name for name in cases if "in-flight" in name]:
            return f"cases in flight were left: {left}"
        return ""

    def __enter__(self) -> "Storm":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in processes_of(self.called):
            os.kill(process.pid, signal.SIGKILL)
        self.main.wait()


@pytest.fixture
def began(tmp_path, child_environment, step_case):
    """Begins a command in a folder of its own."""
    case_file.save(tmp_path / "case.json", msgspec.structs.replace(step_case, head_size=16))

    def begin(command: str, number: int) -> Storm:
        folder = tmp_path / f"{command}-{number}"
        folder.mkdir()
        return Storm(command, number, folder, child_environment, tmp_path / "case.json")

    return begin


def test_nothing_is_lost_or_left_or_false_when_a_process_is_killed(began, request):
    wrong = []
    for number in request.config.getoption("--kills"):
        command, kind, what = KILLS[number % len(KILLS)]
        with began(command, number) as storm:
            storm.kill(kind, what)
            if message := storm.end(kind, what):
                wrong.append(f"{number}: {command}: {what.name} to a {kind}: {message}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_lost_or_left_or_false_after_an_interrupt(began, request):
    wrong = []
    for number in request.config.getoption("--kills")[::5]:
        command = list(COMMANDS)[number // 5 % len(COMMANDS)]
        with began(command, number) as storm:
            storm.interrupt()
            if message := storm.end(PARENT, signal.SIGINT):
                wrong.append(f"{number}: {command}: {message}")
    assert not wrong, "\n".join(wrong)
