"""Files that a command writes: each is written as a whole, or stays as it was. Importing this module needs no extra."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from attn_fuzz.errors import InputError


def write(path: Path, content: bytes | str) -> None:
    """Write a file in one step. If the disk is full, an old file stays as it was, and a new file is not created.

    Raises:
        OSError: the file cannot be written. The error names it, as the error of a full disk does not.
    """
    data = _bytes(content)
    with _errors_that_name(path):
        if _is_pipe(path):
            raise OSError(0, "it is a pipe, which may have no reader")
        if _is_device(path):
            path.write_bytes(data)
            return
        whole = path.resolve()
        partial = _partial(whole)
        try:
            partial.write_bytes(data)
            partial.replace(whole)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # the write may have failed, or a signal may have ended it


def write_once(path: Path, content: bytes | str) -> bool:
    """Write a file in one step, unless there is one. Return whether the file has this content now.

    If several processes write the file at once, one of them does, and the others are told False.

    Raises:
        OSError: as `write`.
    """
    data, partial = _bytes(content), _partial(path)
    with _errors_that_name(path):
        try:
            stream = partial.open("xb")  # while it is there, no other process writes the file
        except FileExistsError:
            return False
        try:
            with stream:
                is_free = not os.path.lexists(path)
                if is_free:
                    stream.write(data)
            if is_free:
                partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return is_free or (path.is_file() and path.read_bytes() == data)


def check(path: Path, option: str) -> None:
    """Check before the work that a file can be written after it.

    Raises:
        InputError: it cannot. The message begins with `option`.
    """
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist")
    if _is_pipe(path):
        raise InputError(f"{option}: {path} is a pipe, which may have no reader; expected a file")
    if not os.access(path if _is_device(path) else path.resolve().parent, os.W_OK):
        raise InputError(f"{option}: {path} cannot be written")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{option}: {path} cannot be written")


@contextlib.contextmanager
def _errors_that_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _partial(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f"{path.name}.partial")


def _is_pipe(path: Path) -> bool:
    """Whether a path names a pipe. /dev/stdout does not, although it may lead to one."""
    real = Path(os.path.realpath(path))
    return real.exists() and stat.S_ISFIFO(real.stat().st_mode)


def _is_device(path: Path) -> bool:
    """Whether what a path leads to is written as it is, such as /dev/null and /dev/stdout."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)
