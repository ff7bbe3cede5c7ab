"""A cache of compiled files in a folder of the user, by a digest of all that they depend on.

XDG_CACHE_HOME names the folder that holds the folder attn-parity; default: ~/.cache. Where nothing can be written there, what
is made is kept until this process ends. What was damaged since it was written is made anew.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

_DIGEST = "sha256"
"""The file that has the digest of all others of its folder."""


def cached(kind: str, parts: Iterable[str], make: Callable[[Path], object]) -> Path:
    """A folder with the files that `make` writes into an empty one, or wrote earlier.

    Args:
        kind: the name of the folder that holds it, such as "hip".
        parts: all that the files depend on.
    """
    name = sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attn-parity" / kind / name
    if _is_whole(folder):
        return folder
    made = _made(folder.parent, make)
    with contextlib.suppress(OSError):
        if not _is_whole(folder):  # no other process was faster
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
            return folder
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _is_whole(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / _DIGEST).read_bytes() == digest_of(folder, without=_DIGEST).encode()
    return False


def _made(beside: Path, make: Callable[[Path], object]) -> Path:
    try:
        beside.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=beside))
    except OSError:
        folder = Path(tempfile.mkdtemp())
    try:
        make(folder)
        with contextlib.suppress(OSError):
            (folder / _DIGEST).write_text(digest_of(folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def digest_of(folder: Path, without: str = "") -> str:
    """A digest of all files of a folder but one, with their places in it."""
    digest = sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != without:
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
