"""Processes in which torch and Triton are imported already, and no kernel is.

On a CPU a process is a fork of a server that has imported them. Its first case has run after half a second instead of five.
Runs of many mutants need that, and so does shrinking a case that kills its process. No target is imported in the server, so a
process can still install a mutant. A run has one server: a worker is a fork of it, and so is the process that a worker starts.
"""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

# its BLAS works on small matrices, and other workers need the other cores
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# or Python would put the current folder before all others, until the process has the path of its parent
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# Triton reads it when a kernel is defined, and its own language has jitted functions
INTERPRETS = {"TRITON_INTERPRET": "1"}
_IMPORTED = [
    "attn_fuzz.run.importing",
    *("torch", "triton", "triton.runtime.interpreter"),
    *("triton.compiler.code_generator", "triton.experimental.gluon"),  # a process's first launch imports them
    *("attn_fuzz.run.runner", "attn_fuzz.run.trial", "attn_fuzz.run.server"),
]

_STARTS = threading.Lock()
"""Held while the environment of this process is that of the server."""


class _SpawnProcess(multiprocessing.context.SpawnProcess):
    def start(self) -> None:
        with _STARTS, _environment(SAFE_PATH):
            super().start()


class _SpawnContext(SpawnContext):
    Process = _SpawnProcess


spawn = _SpawnContext()
"""Starts processes from nothing. They import nothing from the current folder."""


def context(device: str) -> SpawnContext | ForkServerContext:
    """How to start a process that runs a target on "cpu" or "cuda".

    With a GPU every process starts from nothing: CUDA survives no fork, and compiling takes longer than importing.
    """
    if device != "cpu":
        os.environ.update(ONE_THREAD)
        return spawn
    if not _reuses_server():
        forkserver.set_forkserver_preload(_IMPORTED)
        with _STARTS, _environment(ONE_THREAD | INTERPRETS | SAFE_PATH):
            forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def process(device: str, function: Callable[..., None], *arguments: object, daemon: bool = False) -> BaseProcess:
    """A process, not started yet, that calls a function in the environment that this process has now."""
    return context(device).Process(target=_call, args=(dict(os.environ), function, arguments), daemon=daemon)


def _call(environment: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.clear()  # a fork has the environment in which its server was started
    os.environ.update(environment)
    end_with_parent()
    function(*arguments)


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """An interrupt that comes meanwhile is raised behind the block; the first one of several.

    A process that is started by `spawn` reads what it is to do from its parent. If the parent ends before it has written all of
    it, the process prints a traceback.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def end_with_parent(*, group: bool = False) -> None:
    """Have this process end as soon as its parent has ended: the process that started it, not the server that forked it.

    On Linux the system itself sends SIGKILL when the parent's end of a pipe closes. This reaches a process that is stopped, or
    that a kernel keeps in C code. On other systems a thread watches the pipe.

    Args:
        group: whether all processes of this process's group end, too.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not hasattr(fcntl, "F_SETSIG"):
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
        return
    sentinel: Any = parent.sentinel
    fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp() if group else os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():  # it ended before the signal was asked for
        os._exit(1)


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _reuses_server() -> bool:
    """Have a fork of a server use that server for its own processes, and return whether this process is such a fork.

    Python has told the fork where the server is, but `ensure_running` starts another server unless this process started one.
    """
    server: Any = forkserver._forkserver
    has_key = getattr(server, "_forkserver_authkey", "needs none") is not None  # a Python that asks for a key may withhold it
    if server._forkserver_address is None or server._forkserver_pid is not None or not has_key:
        return False
    server.ensure_running = lambda: None
    return True


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
