"""Files that a command writes. Importing this module needs no extra.

A file is written as a whole, or stays as it was.
"""

import contextlib
import itertools
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from attn_fuzz.errors import InputError

RUNS = Path("attn-parity-runs")
"""The folder in which commands leave the files of their runs, unless they are told another one."""


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
        with partial_file(whole) as partial:
            partial.write_bytes(data)
            partial.replace(whole)


def create(path: Path, content: bytes | str) -> bool:
    """Write a file in one step, unless its name is taken. Return whether it was written.

    Of several processes that create a file at once, one does.

    Raises:
        OSError: as `write`.
    """
    if os.path.lexists(path):
        return False
    with _errors_that_name(path), partial_file(path) as partial:
        partial.write_bytes(_bytes(content))
        try:
            _name(partial, path)
        except FileExistsError:
            return False
        return True


def keep(paths: Iterable[Path], content: bytes | str) -> Path:
    """Write a file under the first name that no other file has, and return its path. A file that has this content stays.

    Raises:
        OSError: as `write`.
    """
    return next(path for path in paths if create(path, content) or holds(path, content))


def holds(path: Path, content: bytes | str) -> bool:
    """True if a path is a file with this content. One that cannot be read is another's."""
    try:
        return path.is_file() and path.read_bytes() == _bytes(content)
    except OSError:
        return False


def numbered(path: Path, separator: str = "-") -> Iterator[Path]:
    """A path, and then those whose names end in -2, -3 and so on."""
    yield path
    yield from (path.with_name(f"{path.stem}{separator}{number}{path.suffix}") for number in itertools.count(2))


def check(path: Path, option: str) -> None:
    """Check before the work that a file can be written after it.

    Raises:
        InputError: it cannot. The message begins with `option`.
    """
    try:
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
        if not _is_device(path):
            # /proc takes no file although root may write there, and a name may be too long
            with partial_file(path.resolve()) as partial:
                partial.touch()
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _errors_that_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """The path at which a file is written before it gets its name. No other process writes there, nor did one that was
    killed."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # the write may have failed, or a signal may have ended it


def _name(partial: Path, path: Path) -> None:
    """Give a file its name, unless the name is taken, which a rename would not see.

    Raises:
        FileExistsError: it is taken.
    """
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        path.touch(exist_ok=False)
        partial.replace(path)


def _is_pipe(path: Path) -> bool:
    """True if a path names a pipe. /dev/stdout does not, although it may lead to one."""
    real = Path(os.path.realpath(path))
    return real.exists() and stat.S_ISFIFO(real.stat().st_mode)


def _is_device(path: Path) -> bool:
    """True if what a path leads to is written as it is, such as /dev/null and /dev/stdout."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)
