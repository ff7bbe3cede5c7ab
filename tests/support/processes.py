"""Commands of Python in processes that have imported torch and Triton already: their imports take longer than most commands.

Such a process is a fork of the server of `attn_fuzz.run.processes.prepared`, and so is each process of a fuzz run in it. No
kernel of this project is imported there. Triton interprets there: what compiles, and what asks which modules are imported,
needs a new interpreter. So does what signals a whole process group, which the processes of the server are not part of.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from attn_fuzz.run.processes import prepared

ROOT = Path(__file__).parents[2]


def run(arguments: Sequence[object], *, cwd: Path, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """subprocess.run of [sys.executable, *arguments].

    Args:
        arguments: "-c" and a program, "-m" and a module, or the path of a file; then what the program finds in sys.argv.
    """
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "out"), Path(folder, "err")
        process = _start(given, cwd, dict(env), paths)
        process.join()
        out, err = (path.read_text() if path.exists() else "" for path in paths)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(given, process.exitcode, out, err)


def _start(*arguments: object) -> BaseProcess:
    if not torch.cuda.is_available():
        return prepared.start("cpu", _run, *arguments)
    process = prepared.spawn.Process(target=_run, args=arguments)  # the command says whether Triton interprets
    process.start()
    return process


def signalled(
    arguments: Sequence[object],
    when: Callable[[list[int]], bool],
    *numbers: int,
    cwd: Path,
    env: Mapping[str, str],
    group=False,
) -> subprocess.CompletedProcess[str]:
    """The result of a new interpreter that gets signals once `when` is true of its processes. In the end none of them is left.

    Args:
        group: True if the signals go to all processes of its group, as Ctrl-C does.
    """
    mark = f"SIGNALLED_IN={cwd}"
    given = [sys.executable, "-W", "ignore", *map(str, arguments)]
    environment = {**env, "SIGNALLED_IN": str(cwd)}
    # a shell that starts the tests in the background has them, and so their children, ignore Ctrl-C
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(given, cwd=cwd, env=environment, start_new_session=True, **pipes)
    signal.signal(signal.SIGINT, handler)
    try:
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until and not when(with_environment(mark)):
            time.sleep(0.05)
        for number in numbers:
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            time.sleep(0.05)
        out, err = process.communicate(timeout=120)
        until = time.monotonic() + 30
        while (left := with_environment(mark)) and time.monotonic() < until:
            time.sleep(0.1)  # helpers of multiprocessing end when they see that it has
        assert left == []
    finally:
        for pid in with_environment(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in err
    return subprocess.CompletedProcess(given, process.returncode, out, err)


def with_environment(variable: str) -> list[int]:
    """The processes of Linux that were started with NAME=VALUE in their environment. Zombies have no environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def _run(arguments: list[str], cwd: Path, env: dict[str, str], paths: tuple[Path, Path]) -> None:
    for number, path in enumerate(paths, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    how, rest = (arguments[0], arguments[1:]) if arguments[0] in ("-c", "-m") else ("", arguments)
    sys.argv = ["-c" if how == "-c" else rest[0], *rest[1:]]
    sys.path[:] = [str(cwd if how else Path(rest[0]).resolve().parent), *_path_of_a_new_interpreter(env)]
    if how == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(rest[0], run_name="__main__")


def _path_of_a_new_interpreter(env: Mapping[str, str]) -> list[str]:
    """The path without the folders that pytest and conftest.py have added."""
    tests = ROOT / "tests"
    installed = [entry for entry in sys.path if entry and Path(entry) != ROOT and not Path(entry).is_relative_to(tests)]
    return [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
