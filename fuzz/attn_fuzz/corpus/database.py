"""A database of failures: each run adds the cases that it found, and the next one runs them first.

Hypothesis's example databases are stores of bytes under keys, such as folders or Redis sets. Here the bytes are cases as JSON,
not the choices that Hypothesis made for them: those mean other cases after every edit of a strategy, and are read by nobody.
"""

import hashlib
import os
import stat
from pathlib import Path

from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import SCHEMA, Case, CaseError
from attn_fuzz.cases.case_file import MAX_BYTES
from attn_fuzz.corpus.files import MAX_CASES
from attn_fuzz.errors import InputError
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

REDIS = ("redis://", "rediss://")
ANSWER_SECONDS = 10


class DatabaseError(InputError):
    """A database that cannot be reached, read or written."""


def connect(where: str) -> ExampleDatabase:
    """The database in a folder, or at a redis:// address.

    Raises:
        DatabaseError: it is no folder that can be written, holds what is no entry, or does not answer; or redis is missing.
    """
    return _redis(where) if where.startswith(REDIS) else _folder(Path(where))


def key(target: str, device_name: str) -> bytes:
    """Failures are a target's on one kind of device: what fails on a GPU may agree on a CPU."""
    return f"{SCHEMA} {target} {device_name}".encode()


def fetch(database: ExampleDatabase, key: bytes) -> tuple[dict[str, Case], list[str]]:
    """The cases under a key, by a digest of their contents, and why other entries are no cases.

    Raises:
        DatabaseError: it does not answer, or holds more than MAX_CASES.
    """
    cases, skipped = {}, []
    try:
        entries = sorted(database.fetch(key))
    except Exception as error:  # the errors of clients have no base in common
        raise DatabaseError(f"database: {error}") from error
    if len(entries) > MAX_CASES:
        raise DatabaseError(f"database: got {len(entries)} cases of this target, expected at most {MAX_CASES}")
    for entry in entries:
        name = hashlib.sha256(entry).hexdigest()[:12]
        try:
            if len(entry) > MAX_BYTES:
                raise CaseError(f"larger than {MAX_BYTES} bytes: not a case")
            cases[name] = case_file.loads(entry)
        except CaseError as error:
            skipped.append(f"database entry {name}: {error}")
    return cases, skipped


def save(database: ExampleDatabase, key: bytes, case: Case) -> None:
    """Add a case.

    Raises:
        DatabaseError: it is not there afterwards, as on a full disk.
    """
    entry = case_file.dumps(case).encode()
    try:
        database.save(key, entry)
        kept = entry in database.fetch(key)
    except Exception as error:
        raise DatabaseError(f"database: {error}") from error
    if not kept:
        raise DatabaseError("database: it did not keep the case")


def _folder(path: Path) -> ExampleDatabase:
    """Its files are looked at first: to read a pipe takes forever, and a huge file all memory."""
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
        raise DatabaseError("--database: redis is not installed: pip install 'attn-parity[redis]'") from None
    try:
        client = redis.Redis.from_url(address, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS)
        client.ping()
    except (redis.RedisError, ValueError) as error:
        raise DatabaseError(f"--database: Redis does not answer: {error}") from None
    return RedisExampleDatabase(client)
