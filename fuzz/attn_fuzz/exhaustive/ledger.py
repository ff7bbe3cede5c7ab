"""A ledger: which launches of an exhaustive run have ended, so that the same run goes on where it was interrupted.

The file has a line of JSON for its run, and then one for each launch that has ended. A line is written when its launch has its
verdict, so a launch is either in the file, or runs again as a whole.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
from attn_fuzz import inputs
from attn_fuzz.errors import InputError

SCHEMA = "attn-parity.exhaust-ledger/1"
MAX_BYTES = 1 << 30


class LedgerError(InputError):
    """A ledger that cannot be read."""


class RunOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a ledger is of. A run with another line, such as one of changed sources, goes through other calls."""

    schema: str = SCHEMA
    target: str
    device: str
    scope: str
    shard: str
    sanitize: bool
    exactly: bool = False
    identity: dict[str, str]


class Ended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A launch that has its verdict.

    Attributes:
        launch: its number in the scope.
        calls: how many calls it stands for.
        ratio: the largest error / bound.
        seconds: where the time went, as `Verdict.seconds`.
        exact: in exact mode, whether the launch was compared exactly, or what exact mode could not carry of it.
        failed: the file of the smallest case in it that fails; None if all its calls agree.
    """

    launch: int
    calls: int
    ratio: float = 0.0
    seconds: dict[str, float] = {}
    exact: str = ""
    failed: str | None = None


@dataclass
class Ledger:
    """A ledger that is open for a run.

    Args:
        path: the file.
        ended: the launches of earlier runs and of this one, by number.
    """

    path: Path
    ended: dict[int, Ended] = field(default_factory=dict)
    _file: IO[bytes] | None = None

    def add(self, launch: Ended) -> None:
        """Write a line.

        Raises:
            OSError: the file cannot be written.
        """
        assert self._file is not None
        self._file.write(msgspec.json.encode(launch) + b"\n")
        self._file.flush()
        self.ended[launch.launch] = launch


def path_of(folder: Path, target: str, scope: str, shard: str) -> Path:
    name = f"exhaust-{target}-{scope}" + ("" if shard == "1/1" else f"-{shard.replace('/', '-of-')}")
    return folder / f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', name)}.jsonl"


@contextmanager
def opened(path: Path, run: RunOf) -> Iterator[Ledger]:
    """Open a run's ledger, or begin one. A ledger of another run is begun again, since its launches are not this run's.

    Raises:
        LedgerError: the file is there and is no ledger.
        OSError: the file cannot be read or written.
    """
    ledger = Ledger(path)
    lines = inputs.read_lines(path, MAX_BYTES) if os.path.lexists(path) else iter([])
    first = next(lines, None)
    if first is not None and _is_of(path, first, run):
        ledger.ended = {launch.launch: launch for launch in _launches(lines)}
    with path.open("wb") as file:  # anew: the last line of a killed run may be half a line
        file.write(msgspec.json.encode(run) + b"\n")
        for launch in ledger.ended.values():
            file.write(msgspec.json.encode(launch) + b"\n")
        file.flush()
        ledger._file = file
        yield ledger


def _is_of(path: Path, line: bytes, run: RunOf) -> bool:
    try:
        return msgspec.json.decode(line, type=RunOf) == run
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LedgerError(f"{path}: it is no ledger of `attn-parity exhaust`, and would be overwritten") from None


def _launches(lines: Iterator[bytes]) -> Iterator[Ended]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Ended)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # the run was killed while it wrote this line
