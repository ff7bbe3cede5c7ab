"""The log of a campaign: a line for each trial of a mutant, and for what a target or tests run."""

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.errors import InputError
from attn_fuzz.outputs import Lines
from attn_fuzz.patches.source import modules_of, text_of
from attn_fuzz.run.shard import Progress
from attn_fuzz.text import one_line
from attn_lab.mutate.line_coverage import Reach, RecordedTests

SCHEMA = "attn-parity.mutants-log/1"
STARTS = f'{{"schema":"{SCHEMA}"'.encode()
PROBE = -1
"""In place of a shard's number: the first PROBED cases of the first shard, which a mutant runs alone."""
MAX_LOG_BYTES = 1 << 28
NOT_COMPILED = ("InterpreterError", "CompilationError")
"""Triton's exceptions for a kernel that is no program."""


class Log:
    """The file of a campaign. Its first line says what it is of; each other line is a result, or what a target or tests run.

    Args:
        path: the path of the file. Without one the first entry makes it.
        package: the package of the mutants.

    Raises:
        InputError: the file is of other sources, or it is no log.
    """

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.trials: dict[Key, Trial] = {}
        self.reaches: dict[str, Reach] = {}
        self.tests: dict[tuple[str, int], RecordedTests] = {}
        self._header = Header(schema=SCHEMA, sources=digest(package))
        self._lines: Lines | None = None
        if os.path.lexists(path):
            *lines, half = inputs.read_bytes(path, MAX_LOG_BYTES).split(b"\n")
            self._take(lines or [line for line in [half] if not STARTS.startswith(line[: len(STARTS)])])

    def _take(self, lines: Sequence[bytes]) -> None:
        """Take in the lines of the file. Without any it is to be begun."""
        try:
            if lines and msgspec.json.decode(lines[0], type=Header) != self._header:
                raise InputError(f"{self.path}: it is of other sources; give another file")
            for line in lines[1:]:
                self._keep(msgspec.json.decode(line, type=Trial | Reach | RecordedTests))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{self.path}: no results of mutants: {one_line(str(error), inputs.MAX_QUOTE)}") from None

    @contextmanager
    def alone(self) -> Iterator[Lines]:
        """Inside, entries can be added, and no other run writes the file. Half a line of a killed run goes.

        Raises:
            InputError: another run writes it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.held(self.path, MAX_LOG_BYTES, STARTS) as lines:
            self._take(lines.lines)  # another run may have added some
            if not lines.lines:
                lines.begin(msgspec.json.encode(self._header))
            self._lines = lines
            try:
                yield lines
            finally:
                self._lines = None

    def use_only(self, targets: Collection[str]) -> None:
        """Leave out what other targets run, which another call has recorded."""
        self.reaches = {name: each for name, each in self.reaches.items() if name in targets}

    def add(self, entry: "Trial | Reach | RecordedTests") -> None:
        with nullcontext(self._lines) if self._lines else self.alone() as lines:
            lines.add(msgspec.json.encode(entry))
        self._keep(entry)

    def _keep(self, entry: "Trial | Reach | RecordedTests") -> None:
        if isinstance(entry, Trial):
            self.trials[entry.key] = entry
        elif isinstance(entry, RecordedTests):
            self.tests[entry.file, entry.part] = entry
        else:
            self.reaches[entry.target] = entry


class Header(msgspec.Struct, frozen=True):
    schema: str
    sources: str


class Key(NamedTuple):
    """A shard of a campaign: the mutant, its seed, the target, and which of the target's shards, or PROBE."""

    mutant: str
    seed: int
    target: str
    shard: int


class Trial(msgspec.Struct, frozen=True, omit_defaults=True, tag="trial"):
    """The result of one shard.

    Attributes:
        key: which shard.
        examples: the number of cases that ran.
        seconds: the seconds that they took.
        by: the kind of the verdict that found the mutant; None if no case did.
        message: the verdict's message, or the reason why the mutant does not run.
        together: the number of installed mutants, this one included.
        always: True if the mutant raised in every case.
        broken: True if the mutant does not import, or its kernels do not compile.
    """

    key: Key
    examples: int
    seconds: float
    by: str | None = None
    message: str = ""
    together: int = 1
    always: bool = False
    broken: bool = False

    @classmethod
    def of(cls, key: Key, progress: Progress) -> "Trial":
        seconds = round(progress.seconds, 2)
        if progress.never_ran and not any(name in str(progress.broken) for name in NOT_COMPILED):
            return cls(key, progress.examples, seconds, "raised", str(progress.broken), always=True)
        if progress.broken:
            return cls(key, progress.examples, seconds, message=progress.broken, broken=True)
        if progress.failure is not None:
            verdict = progress.failure.verdict
            return cls(key, progress.failure.found_after, seconds, verdict.kind, verdict.message)
        return cls(key, progress.examples, seconds)

    @property
    def is_last(self) -> bool:
        """True if nothing more is to be learnt of the mutant and the seed."""
        return self.by is not None or self.broken


def digest(package: str) -> str:
    """A digest of the sources of a package, as they are now."""
    text = "".join(text_of(module) for module in modules_of(package))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
