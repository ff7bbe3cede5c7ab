"""Files that a command writes: each is replaced as a whole, or stays as it was. Importing this module needs no extra."""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from attn_fuzz.errors import InputError


def write(path: Path, content: bytes | str) -> None:
    """Write a file in one step. If the disk is full, an old file stays as it was, and a new file is not created.

    Raises:
        OSError: the file cannot be written. The error names it, as the error of a full disk does not.
    """
    data = content.encode() if isinstance(content, str) else content
    _replace(path, lambda partial: partial.write_bytes(data))


def copy(source: Path, path: Path) -> None:
    """Copy a file in one step.

    Raises:
        OSError: as `write`.
    """
    _replace(path, lambda partial: shutil.copyfile(source, partial))


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


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    try:
        if _is_pipe(path):
            raise OSError(0, "it is a pipe, which may have no reader")
        if _is_device(path):
            fill(path)
            return
        whole = path.resolve()
        partial = whole.with_name(f"{whole.name}.partial")
        try:
            fill(partial)
            partial.replace(whole)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # the write may have failed, or a signal may have ended it
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _is_pipe(path: Path) -> bool:
    """Whether a path names a pipe. /dev/stdout does not, although it may lead to one."""
    real = Path(os.path.realpath(path))
    return real.exists() and stat.S_ISFIFO(real.stat().st_mode)


def _is_device(path: Path) -> bool:
    """Whether what a path leads to is written as it is, such as /dev/null and /dev/stdout."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)
