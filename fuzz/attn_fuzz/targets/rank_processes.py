"""Ranks that are processes on one machine, and meet by gloo.

Each is a fork of the process that runs a target. So it has the target's modules, Triton's interpreter and a mutant as they are
there, and starts in milliseconds. It ends when that process ends, because the pipe between them closes.
"""

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=20)
"""How long a rank waits for another one that does not come."""


class RankProcesses:
    """Processes that run a function together.

    Args:
        count: the most ranks of a call.
    """

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._ends: list[Connection] = []
        for rank in range(count):
            ours, theirs = Pipe()
            if os.fork() == 0:
                for end in (ours, *self._ends):
                    end.close()  # or the process of an earlier rank would not see its pipe close
                _serve(theirs, rank, count, Path(self._folder.name, "store"))
            theirs.close()
            self._ends.append(ours)

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What `function(group, *arguments[rank])` returns on each rank, or the exception that it raises there.

        Args:
            function: of a module. Its arguments and its result can be pickled.
            arguments: of each rank; at most as many as there are processes.

        Raises:
            ChildProcessError: a process ended. The others may wait for it: none of them is to be used again.
        """
        try:
            for end, own in zip(self._ends, arguments, strict=False):
                end.send_bytes(_packed((function, len(arguments), own)))
            return [_unpacked(end.recv_bytes()) for end, _ in zip(self._ends, arguments, strict=False)]
        except (EOFError, BrokenPipeError):
            raise ChildProcessError("the process of a rank ended while it attended") from None

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self._folder.cleanup()


def _serve(end: Connection, rank: int, count: int, store: Path) -> None:
    """Run what comes through the pipe until it closes. This does not return: what follows belongs to another process."""
    try:
        with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=TIMEOUT)
            groups = {size: dist.new_group(range(size)) for size in range(1, count + 1)}
            while True:
                function, size, arguments = _unpacked(end.recv_bytes())
                try:
                    answer = function(groups[size], *arguments)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    answer = error
                end.send_bytes(_packed(answer))
    finally:
        os._exit(0)


def _packed(what: Any) -> bytes:
    """What torch saves: pickle knows no tensors of float8."""
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
