"""The JSON file that a search writes: schema `attn-parity.tune/3`."""

from typing import Literal

import msgspec
from attn_optimized.launch.table import Parameters
from attn_parity.timing import Spread

from benchmarks.results import Head
from benchmarks.tune.facts import WorstFacts

SCHEMA = "attn-parity.tune/3"


class Candidate(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Parameters that were tried.

    Attributes:
        verdict: `waiting`: its turn had not come at the end of the time or at an interrupt; `pruned` by the facts of its
            binaries; `failed` to compile or to run; `wrong` by the reference; `slower` than others in its timed cases;
            `final`: timed in every case beside today's; `ranked` only by its facts, without a GPU.
        why: the reason for `pruned`, `failed` and `wrong`.
        facts: the facts of its binaries, the worst of each.
        times: milliseconds of a call, by case.
    """

    parameters: Parameters
    verdict: Literal["waiting", "pruned", "failed", "wrong", "slower", "final", "ranked"] = "waiting"
    why: str | None = None
    facts: WorstFacts | None = None
    times: dict[str, Spread] = msgspec.field(default_factory=dict)


class Search(msgspec.Struct, kw_only=True):
    """The search for one class of calls.

    Attributes:
        chosen: the parameters that replace today's; None: these stay.
        why: the reason for the choice, in one line.
        gain: today's time over that of the chosen ones, the geometric mean over the cases.
        cases: the names of timed cases, beginning with those of the first stage.
        candidates: the candidates, today's parameters first.
    """

    name: str
    chosen: Parameters | None = None
    why: str = "not finished"
    gain: float | None = None
    cases: list[str] = msgspec.field(default_factory=list)
    candidates: list[Candidate] = msgspec.field(default_factory=list)


class Tuning(Head, kw_only=True):
    """One run for one architecture.

    Attributes:
        refused: the reasons of drawn steps that our kernels do not serve, and that are in no class.
        unfinished: classes whose search did not end within the budget, or before an interrupt.
    """

    schema: str = SCHEMA
    architecture: str
    source: str
    refused: dict[str, str] = msgspec.field(default_factory=dict)
    classes: list[Search] = msgspec.field(default_factory=list)
    unfinished: list[str] = msgspec.field(default_factory=list)
