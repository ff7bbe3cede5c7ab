"""A ledger: which launches of an exhaustive run have ended, so that the same run goes on where it was interrupted.

The file has a line of JSON for its run, and then one for each launch that has ended. A line is written when its launch has its
verdict, so a launch is either in the file, or runs again as a whole.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.outputs import Lines
from attn_fuzz.text import one_line

SCHEMA = "attn-parity.exhaust-ledger/1"
STARTS = f'{{"schema":"{SCHEMA}"'.encode()
MAX_BYTES = 1 << 30


class LedgerError(InputError):
    """A ledger that cannot be read."""


class RunOf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a ledger. A run with another first line, such as one of changed sources, goes through other calls."""

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
        calls: the number of calls that it stands for.
        ratio: the largest error / bound.
        seconds: the seconds of each kind of work, as in `Verdict.seconds`.
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
        ended: the launches of earlier runs and of this one, by number.
        lines: the file.
    """

    ended: dict[int, Ended]
    lines: Lines

    def add(self, launch: Ended) -> None:
        """Write a line.

        Raises:
            OSError: the file cannot be written. The launch has ended all the same.
        """
        self.ended[launch.launch] = launch
        self.lines.add(msgspec.json.encode(launch))


def path_of(folder: Path, target: str, scope: str, shard: str) -> Path:
    name = f"exhaust-{target}-{scope}" + ("" if shard == "1/1" else f"-{shard.replace('/', '-of-')}")
    return folder / f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', name)}.jsonl"


@contextmanager
def opened(path: Path, run: RunOf) -> Iterator[Ledger]:
    """Open a run's ledger, or begin one. A ledger of another run is begun again, since its launches are not this run's.

    Raises:
        LedgerError: the file is there and is no ledger.
        InputError: another run writes it.
        OSError: the file cannot be read or written.
    """
    with outputs.held(path, MAX_BYTES, STARTS) as lines:
        try:
            if lines.lines and msgspec.json.decode(lines.lines[0], type=RunOf) == run:
                launches = [msgspec.json.decode(line, type=Ended) for line in lines.lines[1:]]
            else:
                launches = []
                lines.begin(msgspec.json.encode(run))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LedgerError(f"{path}: no ledger of `attn-parity exhaust`: {one_line(str(error), inputs.MAX_QUOTE)}") from None
        yield Ledger({launch.launch: launch for launch in launches}, lines)
