"""A database of failures: each run adds the cases that it found, and the next one runs them first.

Hypothesis's example databases store bytes under keys, in folders or Redis sets for example. Here the bytes are cases as JSON.
Hypothesis itself would store the choices behind a case, which are unreadable. They mean another case after every edit of a
strategy.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from attn_fuzz import extras
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import SCHEMA, Case, CaseError
from attn_fuzz.cases.case_file import MAX_BYTES
from attn_fuzz.corpus.files import MAX_CASES
from attn_fuzz.errors import InputError
from attn_fuzz.text import one_line
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

REDIS = ("redis://", "rediss://")
ANSWER_SECONDS = 10
MAX_TOTAL_BYTES = 1 << 26
"""The most bytes of all cases of a target: they are in memory at once."""


class DatabaseError(InputError):
    """A database that cannot be reached, read or written."""


def connect(where: str) -> ExampleDatabase:
    """The database in a folder, or at a redis:// address.

    Raises:
        DatabaseError: it is another address, the folder cannot be written or holds files that are no entries, redis is not
            installed, or the server does not answer.
    """
    if where.startswith(REDIS):
        return _redis(where)
    if "://" in where:
        raise DatabaseError(f"--database: got {one_line(where, 200)}, expected a folder, or an address of {' or '.join(REDIS)}")
    return _folder(Path(where))


def key(target: str, device_name: str) -> bytes:
    """The key of a target's failures on one kind of device: a case that fails on a GPU may pass on a CPU."""
    return f"{SCHEMA} {target} {device_name}".encode()


def fetch(database: ExampleDatabase, key: bytes) -> tuple[dict[str, Case], list[str]]:
    """The cases under a key, by a digest of their contents, and the reasons why other entries are no cases.

    Raises:
        DatabaseError: the database does not answer, or the key holds more than MAX_CASES, or than MAX_TOTAL_BYTES.
    """
    cases, skipped = {}, []
    try:
        entries = sorted(_bounded(database.fetch(key)))
    except DatabaseError:
        raise
    except Exception as error:  # clients of databases have no common base class of errors
        raise DatabaseError(f"database: {error}") from error
    for entry in entries:
        name = hashlib.sha256(entry).hexdigest()[:12]
        try:
            if len(entry) > MAX_BYTES:
                raise CaseError(f"larger than {MAX_BYTES} bytes: not a case")
            case = case_file.loads(entry)
            if case.values.file is not None:
                raise CaseError("a captured call, whose tensors a database does not hold")
            cases[name] = case
        except CaseError as error:
            skipped.append(f"database entry {name}: {error}")
    return cases, skipped


def _bounded(entries: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for number, entry in enumerate(entries):
        size += len(entry)
        if number >= MAX_CASES or size > MAX_TOTAL_BYTES:
            raise DatabaseError(
                f"database: expected at most {MAX_CASES} cases of this target, of {MAX_TOTAL_BYTES} bytes in all"
            )
        yield entry


def save(database: ExampleDatabase, key: bytes, case: Case) -> None:
    """Add a case.

    Raises:
        DatabaseError: the case is not in the database afterwards, for example because the disk is full. Or the case is a
            captured call.
    """
    if case.values.file is not None:
        raise DatabaseError(f"database: {case.values.file} is of a captured call, and a database holds no tensors")
    entry = case_file.dumps(case).encode()
    try:
        database.save(key, entry)
        kept = entry in database.fetch(key)
    except Exception as error:
        raise DatabaseError(f"database: {error}") from error
    if not kept:
        raise DatabaseError("database: it did not keep the case")


def _folder(path: Path) -> ExampleDatabase:
    """Checks files before it reads them: reading a pipe never ends, and reading a huge file needs all memory."""
    if path.exists() and not path.is_dir():
        raise DatabaseError(f"--database: {path} is not a folder")
    for root, _, names in os.walk(path):
        for name in names:
            entry = Path(root, name)
            status = entry.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise DatabaseError(f"--database: {entry} is not a file of at most {MAX_BYTES} bytes")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"--database: {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise DatabaseError(f"--database: {path} cannot be written")
    return DirectoryBasedExampleDatabase(path)


def _redis(address: str) -> ExampleDatabase:
    try:
        import redis
        from hypothesis.extra.redis import RedisExampleDatabase
    except ImportError:
        raise DatabaseError(f"--database: {extras.missing('redis')}") from None
    try:
        client = redis.Redis.from_url(address, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS)
        client.ping()
    except (redis.RedisError, ValueError) as error:
        raise DatabaseError(f"--database: Redis does not answer: {error}") from None
    return RedisExampleDatabase(client)
