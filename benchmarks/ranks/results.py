"""The JSON file that `python -m benchmarks ranks` writes: schema `attn-parity.ranks/1`."""

from dataclasses import dataclass, field

import msgspec

from benchmarks.results import Head

SCHEMA = "attn-parity.ranks/1"
ONE = "one GPU"
"""The way to make an output that uses a single GPU."""


@dataclass
class RanksCase:
    """The report on a case, by the way to make its output. Times are milliseconds a step, of the slowest rank.

    Args:
        error: the largest difference of a row of any rank from the output of one device, as a share of `allowed`; infinite if
            it is not finite.
        eager, graph: the median over calls, and over replays of a CUDA graph that holds a call.
        build: the least of the process's own times to build a step's metadata, which is done once for all layers.
    """

    name: str
    cache_gigabytes: float
    error: dict[str, float] = field(default_factory=dict)
    eager: dict[str, float] = field(default_factory=dict)
    graph: dict[str, float] = field(default_factory=dict)
    build: dict[str, float] = field(default_factory=dict)


class RanksRun(Head, kw_only=True):
    """One run over `ranks` GPUs."""

    schema: str = SCHEMA
    ranks: int
    cases: list[RanksCase] = msgspec.field(default_factory=list)
