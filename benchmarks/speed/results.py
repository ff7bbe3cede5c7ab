"""The JSON file that a run writes: schema `attn-parity.speed/2`."""

from pathlib import Path
from typing import Literal

import msgspec
from attn_fuzz import inputs
from attn_parity.timing import Positive, Spread

from benchmarks.measuring.machine import Rates
from benchmarks.results import Head

SCHEMA = "attn-parity.speed/2"


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


def read(path: Path) -> Run:
    """
    Raises:
        InputError: as `read_as`; a time or a rate that is not positive is refused, too.
    """
    return inputs.read_as(path, SCHEMA, Run, inputs.MAX_LARGE_BYTES)
