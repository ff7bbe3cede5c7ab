"""Targets of code for GPUs that are emulated: what any of them needs, and those whose code is not Triton's."""

import dataclasses
import functools
import importlib.util
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from attn_fuzz import extras
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_amdgcn import Schedule

ARCHITECTURES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")
"""The modes that compile for an architecture."""
STEPS_PER_LAYER = 8
"""The number of cases that share a layer, because compiling takes longer than most cases."""
CHECKED = 0.3
"""The share of launches that run twice, in two orders, and in which races are looked for."""
_ORDERS = ("ascending", "descending", "drawn")


def unavailable(device: str) -> str | None:
    """The reason why nothing can be emulated on a device type here; None if it can."""
    if device != "cpu":
        return "it emulates a GPU that is not here: --device cpu"
    if importlib.util.find_spec("yaml") is None:
        return extras.missing("yaml")
    return None


def with_architecture(
    name: str,
    description: str,
    *,
    architectures: Sequence[str],
    attention: Callable[..., None],
    support: Callable[[str], Support],
    rounding: Callable[[str], Rounding],
    unavailable: Callable[[str, str], str | None],
    events: Callable[[str, Step], Iterable[str]] = lambda architecture, step: (),
    findings: tuple[Finding, ...] = (),
) -> Target:
    """A target of code that is not Triton's, such as assembly, which runs as NAME@ARCHITECTURE alone.

    Args:
        architectures: the architectures of its code. NAME itself declares its support on the first one.
        attention, support, rounding, events: as in Target, with the architecture before the other arguments.
        unavailable: for one of these architectures and a device, the reason why it cannot run there.
        findings: the findings of NAME@ARCHITECTURE. The pages of findings have scripts only for Triton's kernels.
    """
    needed = f"name an architecture, as in --target {name}@{architectures[0]}"

    def drawn(architecture: str) -> Support:
        return dataclasses.replace(support(architecture), steps_per_layer=STEPS_PER_LAYER, own_numbers=True)

    def on(architecture: str) -> Target:
        def unavailable_here(device: str) -> str | None:
            if architecture not in architectures:
                return f"{name} has nothing for {architecture}, but for {', '.join(architectures)}"
            return unavailable(architecture, device)

        return dataclasses.replace(
            base,
            name=f"{name}@{architecture}",
            description=f"{description}: for {architecture}, emulated",
            attention=functools.partial(attention, architecture),
            support=lambda device: drawn(architecture),
            rounding=lambda device: rounding(architecture),
            unavailable=unavailable_here,
            events=functools.partial(events, architecture),
            findings=findings,
        )

    def needs_architecture(*arguments: object, **outputs: object) -> None:
        raise NotImplementedError(needed)

    base = Target(
        name=name,
        description=description,
        attention=needs_architecture,
        support=lambda device: drawn(architectures[0]),
        refuses=False,
        rounding=lambda device: rounding(architectures[0]),
        unavailable=lambda device: "; ".join(filter(None, (unavailable(architectures[0], device), needed))),
        compiled_for=on,
        compiles=True,
    )
    return base


def schedules(rng: random.Random, *, races: bool = True) -> "list[Schedule]":
    """The schedules of a launch: one, or for a share of the launches two, which differ in order and in uninitialized registers.

    Args:
        races: True if races are looked for in a launch that runs in two orders.
    """
    from attn_amdgcn import Schedule

    first = Schedule(seed=rng.randrange(1 << 31))
    if rng.random() >= CHECKED:
        return [first]
    another = Schedule(rng.choice(_ORDERS), rng.choice(_ORDERS), rng.randrange(1 << 31))
    return [dataclasses.replace(first, races=races), another]
