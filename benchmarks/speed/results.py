"""The JSON file that a run writes: schema `attn-parity.speed/2`."""

import subprocess
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from attn_fuzz import inputs, outputs
from attn_parity.timing import Positive, Spread

from benchmarks.speed.machine import Rates

T = TypeVar("T")

SCHEMA = "attn-parity.speed/2"
MAX_BYTES = 16 << 20
"""The most bytes of a file that is read: a run of 1000 drawn cases has 1.2 MB."""


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one participant in one case.

    Attributes:
        verdict: `refused`: the participant cannot express the case. `wrong`: its error is larger than the check allows, and it
            is not timed. `failed`: it raised an error.
        error: relative error of the sampled rows.
        why: the reason for a verdict other than `measured`.
        calls: the number of calls in each replay.
    """

    verdict: Literal["measured", "refused", "wrong", "failed"]
    error: float | None = None
    why: str | None = None
    time: Spread | None = None
    calls: int | None = None


class CaseResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The results of one case. `traffic` is the kind of step of a drawn case."""

    name: str
    flops: float
    bytes: float
    floor_ms: Positive
    results: dict[str, Result]
    traffic: str | None = None


class Head(msgspec.Struct, kw_only=True):
    """The origin of the results of a run of any command.

    Attributes:
        of_value: True if the times mean anything: full sizes, on a GPU.
        commit: the commit of the code that was measured.
    """

    schema: str
    of_value: bool
    machine: str
    versions: dict[str, str]
    command: str
    commit: str


class Run(Head, kw_only=True):
    """One run on one machine.

    Attributes:
        host_us: microseconds of Python of one call, by participant; a sentence where there is none.
        unmeasured: cases for which the budget had no time, or before which the run was interrupted.
    """

    schema: str = SCHEMA
    rates: Rates
    cases: list[CaseResult] = msgspec.field(default_factory=list)
    host_us: dict[str, float] = msgspec.field(default_factory=dict)
    unmeasured: list[str] = msgspec.field(default_factory=list)


def commit() -> str:
    """Git's description of the code that is measured."""
    ended = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else "unknown"


def write(run: msgspec.Struct, path: Path) -> None:
    """Whole or not at all: an interrupt leaves the last one."""
    outputs.write(path, msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")


def read(path: Path) -> Run:
    """
    Raises:
        ValueError: as `read_as`.
    """
    return read_as(path, SCHEMA, Run)


def read_as(path: Path, schema: str, kind: type[T]) -> T:
    """
    Raises:
        ValueError: it is no such file, or a time or a rate is not positive.
    """
    try:
        return msgspec.convert(inputs.read_record(path, schema, MAX_BYTES), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {error}") from error
