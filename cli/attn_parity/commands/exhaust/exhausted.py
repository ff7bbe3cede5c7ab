"""The result of `attn-parity exhaust`."""

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from attn_fuzz.exhaustive.ledger import Ended
from attn_fuzz.exhaustive.run import Counted, Plan
from attn_fuzz.run import provenance
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.verdict import COMPARED


class ExhaustedPart(TypedDict):
    """A part of a scope: what runs on the target, and by reason how many calls the target or the contract leaves out."""

    what: str
    block_sizes: list[int]
    layers: int
    calls: int
    launches: int
    left_out: dict[str, int]
    undefined: dict[str, int]


class Exhaust(TypedDict):
    """A run of `attn-parity exhaust`.

    `parts` are of the whole scope, `launches` of the shard. `ended_launches` and `ended_calls` count what has its verdict,
    earlier runs included, and `compared_exactly` those of these calls that --exact compared; `calls` and `seconds` are of this
    run. `spent` is the time of all workers by kind of work, and `failures` are the case files.
    """

    schema: Literal["attn-parity.exhaust/1"]
    target: str
    device: str
    versions: dict[str, str]
    scope: str
    shard: str
    parts: list[ExhaustedPart]
    launches: int
    ended_launches: int
    ended_calls: int
    compared_exactly: int
    calls: int
    seconds: float
    spent: dict[str, float]
    max_ratio: float | None
    interrupted: bool
    failures: list[str]


@dataclass
class Exhausted:
    """The result of a run.

    Attributes:
        parts: the parts of the scope, whole, with what is left out of them.
        ended: the launches that have a verdict, by number, with those of earlier runs.
        calls, seconds: the calls and the seconds of this run only.
    """

    plan: Plan
    target: Target
    parts: list[Counted]
    ended: dict[int, Ended] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def shard(self) -> str:
        return "{}/{}".format(*self.plan.shard)

    @property
    def total_calls(self) -> int:
        """The number of calls of the whole scope on this target."""
        return sum(part.calls for part in self.parts)

    @property
    def launches(self) -> int:
        """The number of launches of the shard."""
        total = sum(part.launches for part in self.parts)
        return len(range(self.plan.shard[0] - 1, total, self.plan.shard[1]))

    @property
    def failed_launches(self) -> list[Ended]:
        return [launch for launch in self.ended.values() if launch.failed]

    @property
    def is_whole(self) -> bool:
        return len(self.ended) == self.launches

    def to_json(self) -> Exhaust:
        plan, ended = self.plan, self.ended.values()
        spent: dict[str, float] = {}
        for launch in ended:
            for name, seconds in launch.seconds.items():
                spent[name] = spent.get(name, 0.0) + seconds
        return {
            "schema": "attn-parity.exhaust/1",
            "target": self.target.name,
            "device": plan.device,
            "versions": provenance.versions(),
            "scope": plan.scope,
            "shard": self.shard,
            "parts": [
                {
                    "what": part.part.what,
                    "block_sizes": list(part.block_sizes),
                    "layers": part.layers,
                    "calls": part.calls,
                    "launches": part.launches,
                    "left_out": dict(part.left_out.not_served),
                    "undefined": dict(part.left_out.undefined),
                }
                for part in self.parts
            ],
            "launches": self.launches,
            "ended_launches": len(ended),
            "ended_calls": sum(launch.calls for launch in ended),
            "calls": self.calls,
            "seconds": self.seconds,
            "spent": spent,
            "compared_exactly": sum(launch.calls for launch in ended if launch.exact == COMPARED),
            "max_ratio": max((launch.ratio for launch in ended), default=0.0),
            "interrupted": self.interrupted,
            "failures": [launch.failed for launch in ended if launch.failed],
        }
