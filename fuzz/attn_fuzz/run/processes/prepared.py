"""Processes in which torch and Triton are imported already, and no kernel is.

A process is a fork of a server that has imported them. Its first case has run after half a second instead of five. Runs of many
mutants need that, and so does shrinking a case that kills its process. No target is imported in the server, so a process can
still install a mutant. A run has one server: a worker is a fork of it, and so is the process that a worker starts. The server
of a run on a GPU has asked nothing of the GPU, because CUDA survives no fork.

A server may be killed, for example by a system that is short of memory. Nobody learns any more how its forks end, so the forks
say nothing about what they ran: each is `is_lost`, and is killed. The main process starts another server, and whatever ran in
a lost fork runs again.
"""

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, popen_forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from attn_fuzz.errors import ExecutorError
from attn_fuzz.patches.mutant import Mutant, MutantError

# its BLAS works on small matrices, and other workers need the other cores
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# each case takes and frees blocks of megabytes, and a page that came back from the system would have to be mapped and cleared
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}
# or Python would put the current folder before all others, until the process has the path of its parent
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
# Triton reads it when a kernel is defined, and its own language has jitted functions
INTERPRETS = {"TRITON_INTERPRET": "1"}
_IMPORTED = [
    "attn_fuzz.run.processes.prepared_first",
    *("torch", "triton", "triton.runtime.interpreter"),
    *("triton.compiler.code_generator", "triton.experimental.gluon"),  # a process's first launch imports them
    *("attn_fuzz.run.runner", "attn_fuzz.run.processes.executor", "attn_fuzz.run.case.trial"),
    "attn_fuzz.run.processes.prepared_last",
    *("attn_fuzz.run.drawing", "attn_fuzz.run.shrink", "attn_fuzz.run.needs"),
]

_STARTS = threading.Lock()
"""Held while this process has the environment of the server."""
MAX_DEATHS = 10
"""The most servers of a run that may die."""
_LOST = 256
"""The exit code of a process whose server died before it. No process ends with it."""
_INTERRUPTS = {signal.SIGINT}


class _Popen(popen_forkserver.Popen):
    _reading = threading.Lock()

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Python gives the exit code 255 to a process whose server died, although the process may run or may end with 255."""
        if self.returncode is None and connection.wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            with self._reading:
                if self.returncode is None:
                    self.returncode = self._read()
        return self.returncode

    def _read(self) -> int:
        try:
            return forkserver.read_signed(self.sentinel)
        except (EOFError, OSError):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return _LOST


class _Process(ForkServerProcess):
    _Popen = _Popen

    def start(self) -> None:
        """Start the process, and first another server if the server has died.

        A fork of a dead server cannot start one: it ends, because it is lost itself.

        Raises:
            ExecutorError: too many servers have died.
        """
        server: Any = forkserver._forkserver
        server.ensure_running = lambda: None  # Python's own would start a server in the environment of this process
        while True:
            if not _is_fork():
                with _STARTS:
                    have_server()
            try:
                return super().start()
            except (EOFError, ConnectionError):
                if _is_fork():
                    os._exit(2)


class _Context(ForkServerContext):
    Process = _Process


class LostError(EOFError):
    """The server died that had forked a process: see `is_lost`."""


class _SpawnProcess(SpawnProcess):
    def start(self) -> None:
        with _STARTS, _environment(SAFE_PATH):
            super().start()


class _SpawnContext(SpawnContext):
    Process = _SpawnProcess


spawn = _SpawnContext()
"""Starts processes from nothing. They import nothing from the current folder."""


FOLDER = "ATTN_PARITY_FOLDER_OF_SERVER"
"""Names the temporary folder of the run's process to the server, which removes it if the run was killed."""
_device: str | None = None
"""The device of the processes that this process's server starts, which Triton's kernels are interpreted or compiled for."""


def context(device: str) -> SpawnContext | ForkServerContext:
    """The context that starts processes for targets on "cpu" or "cuda".

    A process is forked by a server, or starts from nothing if this process has a server for the other device.
    """
    global _device
    _device = _device or device
    if device != _device:
        os.environ.update(ONE_THREAD)
        return spawn
    return _Context()


def have_server() -> None:
    """Start a server, unless this process has one that runs."""
    global deaths
    server: Any = forkserver._forkserver
    before = server._forkserver_pid
    forkserver.set_forkserver_preload(_IMPORTED)
    resource_tracker.ensure_running()  # before the interrupts wait: it lets them come again
    interprets = INTERPRETS if _device == "cpu" else {}
    folder = {FOLDER: util.get_temp_dir()}
    with _environment(ONE_THREAD | KEEPS_MEMORY | interprets | SAFE_PATH | folder), _interrupts_blocked():
        forkserver.ensure_running()
    deaths += before not in (None, server._forkserver_pid)
    if deaths > MAX_DEATHS:
        raise ExecutorError(f"the server that starts the processes of a run has died {deaths} times: is memory short?")


deaths = 0
"""The number of servers of this process that have died."""


def start(device: str, function: Callable[..., None], *arguments: object, daemon: bool = False) -> BaseProcess:
    """Start a process that calls a function in the environment that this process has now.

    Raises:
        ExecutorError: too many servers have died.
    """
    method = context(device)
    process = method.Process(target=_call, args=(device, dict(os.environ), function, arguments), daemon=daemon)
    with interrupts_later() if method is spawn else contextlib.nullcontext():
        process.start()
    return process


class _Later:
    """Arguments of a process that it unpickles itself, and so imports the modules of, when it calls `of`."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return _Pickled, (bytes(ForkingPickler.dumps(self._arguments)),)


class _Pickled:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def of(self) -> Any:
        return pickle.loads(self._data)


def start_patched(mutant: Mutant, function: Callable[..., None], *arguments: object, daemon: bool = False) -> BaseProcess:
    """`start` in a process that installs a mutant before it imports the modules of `function` and its arguments.

    The process starts from nothing, which takes seconds: a fork of the server has imported the contract.
    """
    os.environ.update(ONE_THREAD)
    held: Any = _Later(function, arguments)
    process = spawn.Process(target=_call_patched, args=(dict(os.environ), mutant, held), daemon=daemon)
    with interrupts_later():
        process.start()
    return process


def _call_patched(environment: dict[str, str], mutant: Mutant, held: _Pickled) -> None:
    from attn_fuzz.patches import installation

    with contextlib.suppress(MutantError):  # `function` installs it again, and tells why it cannot be
        installation.install(mutant)
    function, arguments = held.of()
    _call(None, environment, function, arguments)


def is_lost(process: BaseProcess) -> bool:
    """True if the end of a process cannot be known, because its server died before it. If it runs, it is killed."""
    return process.exitcode == _LOST


def _call(
    device: str | None, environment: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    global _device
    _device = device
    os.environ.clear()  # a fork has the environment in which its server was started
    os.environ.update(environment)
    end_with_parent()
    function(*arguments)


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """An interrupt that comes meanwhile is raised after the block; the first one of several.

    A process that is started by `spawn` reads what it is to do from its parent. If the parent ends before it has written all of
    it, the process prints a traceback. A process that is started meanwhile gets no Ctrl-C until it calls `end_with_parent`.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        with _interrupts_blocked():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal. One that starts meanwhile, which would print a traceback, gets none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that has started this one with its interrupts blocked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)


def end_with_parent(*, group: bool = False) -> None:
    """Have this process end as soon as its parent has ended: the process that started it, not the server that forked it.
    Ctrl-C is left to the parent.

    On Linux the system itself sends SIGKILL when the parent's end of a pipe closes. This reaches a process that is stopped, or
    that a kernel keeps in C code. On other systems a thread watches the pipe.

    Args:
        group: True if all processes of this process's group end, too.
    """
    ignore_interrupts()
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


def _is_fork() -> bool:
    """True if this process is a fork of a server, which starts the processes of its forks, too: Python has told it where."""
    server: Any = forkserver._forkserver
    has_key = getattr(server, "_forkserver_authkey", "needs none") is not None  # a Python that asks for a key may withhold it
    return server._forkserver_address is not None and server._forkserver_pid is None and has_key


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
