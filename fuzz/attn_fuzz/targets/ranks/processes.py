"""Ranks on one machine, which meet by gloo: the process that runs a target is rank 0, and each other rank is a fork of it.

So all ranks have the target's modules, Triton's interpreter and a mutant as they are there, and start in milliseconds. A fork
ends when the process of rank 0 ends, because the pipe between them closes.
"""

import io
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attn_fuzz.errors import HelperKilledError
from attn_fuzz.interpreted import new_memory

TIMEOUT = timedelta(seconds=20)
"""The time that a rank waits for another one that does not come."""
ENDED_SECONDS = 0.1


class RankProcesses:
    """Processes that run a function together. There can be one at a time: torch's groups are of a whole process.

    Args:
        count: the most ranks of a call.
        expected: exceptions that the function raises on purpose. After any other one, ranks would wait for the rank that raised
            it. So that rank leaves, which the others notice at once.
    """

    def __init__(self, count: int, expected: tuple[type[Exception], ...]) -> None:
        self._expected = expected
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name, "store")
        self._ends: list[Connection] = []
        self._forks: list[int] = []
        for rank in range(1, count):
            ours, theirs = Pipe()
            fork = os.fork()
            if fork == 0:
                for end in (ours, *self._ends):
                    end.close()  # or the process of an earlier rank would not see its pipe close
                _serve(theirs, rank, count, store, expected)
            theirs.close()
            self._ends.append(ours)
            self._forks.append(fork)
        self._groups = _groups(0, count, store)

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The result of `function(group, *arguments[rank])` on each rank, or the exception that it raises there.

        Args:
            function: a function of a module. Its arguments and its result can be pickled.
            arguments: the arguments of each rank, for at most as many ranks as there are.

        Raises:
            ChildProcessError: a process ended. No rank is to be used again.
            HelperKilledError: SIGKILL ended a process. No rank is to be used again.
            BaseException: what a rank has raised, if it is not expected. No rank is to be used again.
        """
        ends = self._ends[: len(arguments) - 1]
        try:
            for end, theirs in zip(ends, arguments[1:], strict=True):
                end.send_bytes(_packed((function, len(arguments), theirs, new_memory.holds_numbers)))
            results = [_result(function, self._groups[len(arguments)], arguments[0])]
            if _is_unexpected(results[0], self._expected):
                self._check_killed()
                raise results[0]
            results += [_unpacked(end.recv_bytes()) for end in ends]
        except (EOFError, ConnectionError):
            self._check_killed()
            raise ChildProcessError("the process of a rank ended while it attended") from None
        for result in results:
            if _is_unexpected(result, self._expected):
                raise result
        return results

    def _check_killed(self) -> None:
        """
        Raises:
            HelperKilledError: SIGKILL has ended a rank. Its connections close before the system reports how it ended.
        """
        until = time.monotonic() + ENDED_SECONDS
        ended: list[int] = []
        while not ended and time.monotonic() < until:
            looked = [(fork, *os.waitpid(fork, os.WNOHANG)) for fork in self._forks]
            self._forks = [fork for fork, pid, _ in looked if not pid]
            ended = [os.waitstatus_to_exitcode(status) for _, pid, status in looked if pid]
            if -signal.SIGKILL in ended:
                raise HelperKilledError("SIGKILL has ended the process of a rank")
            time.sleep(0.01)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        dist.destroy_process_group()
        self._folder.cleanup()


def _serve(end: Connection, rank: int, count: int, store: Path, expected: tuple[type[Exception], ...]) -> None:
    """Run what comes through the pipe until it closes. This does not return: what follows belongs to another process."""
    try:
        with suppress(EOFError, ConnectionError, KeyboardInterrupt):
            groups = _groups(rank, count, store)
            while True:
                function, size, arguments, holds_numbers = _unpacked(end.recv_bytes())
                with new_memory.filled(with_numbers=holds_numbers):
                    result = _result(function, groups[size], arguments)
                end.send_bytes(_packed(result))
                if _is_unexpected(result, expected):
                    return
    finally:
        os._exit(0)


def _groups(rank: int, count: int, store: Path) -> dict[int, Any]:
    """A group of the first ranks, for each number of them."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=TIMEOUT)
    return {size: dist.new_group(range(size)) for size in range(1, count + 1)}


def _result(function: Callable[..., Any], group: Any, arguments: tuple[Any, ...]) -> Any:
    try:
        return function(group, *arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


def _is_unexpected(result: Any, expected: tuple[type[Exception], ...]) -> bool:
    return isinstance(result, BaseException) and not isinstance(result, expected)


def _packed(what: Any) -> bytes:
    """Bytes by torch.save: pickle knows no tensors of float8."""
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
