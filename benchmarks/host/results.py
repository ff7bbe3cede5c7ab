"""The JSON file that `python -m benchmarks host` writes: schema `attn-parity.host-time/1`."""

import msgspec
from attn_parity.timing import Positive

from benchmarks.results import Head

SCHEMA = "attn-parity.host-time/1"


class Times(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Microseconds of one participant in one step.

    Attributes:
        build: time to build the step's metadata; None: not measured.
        write: time of a layer's cache write; None: not measured.
        attention: time of a layer's attention.
        layer: time of the whole step, divided by its layers.
    """

    build: Positive | None = None
    write: Positive | None = None
    attention: Positive
    layer: Positive


class HostStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
        times: by participant.
        refused: why a participant does not take part, by its name.
    """

    name: str
    times: dict[str, Times]
    refused: dict[str, str]


class HostRun(Head, kw_only=True):
    """One run on one machine: steps of a model of `layers` layers."""

    schema: str = SCHEMA
    layers: int
    steps: list[HostStep] = msgspec.field(default_factory=list)
