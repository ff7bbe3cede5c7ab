"""Modes of targets: `NAME@far` is the target NAME in the mode "far". A mode makes another target of a target, or says why not.

Most modes apply to any target. `Target.modes` has the target's own modes, and its own versions of modes that are named here.
"""

import dataclasses
import math
from collections.abc import Sequence

from attn_fuzz.targets.modes import beyond, compiled, far, planned, properties
from attn_fuzz.targets.of_architecture import ARCHITECTURES
from attn_fuzz.targets.target import Mode, NoModeError, Target

MODES = {
    "invariant": "batch-invariant calls: each request also alone, and in other batches, bit by bit",
    "returned": "called without `out`; the returned tensor is judged",
    "properties": "without an oracle: relations between its own outputs, also at sizes at which the reference is too slow",
    "planned": "interpreted, with the launch plan of a GPU that this machine lacks",
    "beyond": "calls that its engine never sends, too",
    "far": "tensors that reach beyond 2^31 elements",
}
"""A description of each mode, except those that compile for an architecture."""
_OF_ANY_TARGET: dict[str, Mode | str] = {
    "invariant": "batch-invariant calls are not promised: modes={'invariant': invariant.mode(attention)} of its Target",
    "returned": "whether the output is returned is not known: modes={'returned': returned.mode(attention)} of its Target",
    "properties": properties.mode(None),
    "planned": planned.on_drawn_gpus,
    "beyond": beyond.of_any_engine,
    "far": far.in_a_large_cache,
}
"""What `Target.modes` is for a target that says nothing else."""
_COSTS = {"invariant": 2.0, "properties": 1.5, "planned": 2.0, "prompts": 4.0}
COMPILED = "compiled for an architecture of AMD, and emulated"
_ORDER = {**dict.fromkeys(MODES, 1), "far": 2, **dict.fromkeys(ARCHITECTURES, 3)}
"""Modes with one number exclude each other, and a name has them in this order. Other modes of a target's own come first."""


def applied(target: Target, modes: Sequence[str], attribute: str) -> Target:
    """A target in modes, from the left to the right.

    Args:
        attribute: module and attribute of the target, as its entry point has them. Another process loads its kernels by them.

    Raises:
        NoModeError: a mode is unknown, or comes after one that it cannot come after, or the target has no such mode.
    """
    own = target.modes
    for before, mode in zip((None, *modes), modes, strict=False):
        if mode not in own and mode not in _ORDER:
            raise NoModeError(f"expected one of {', '.join(dict.fromkeys((*own, *_ORDER)))} after the @")
        if before is not None and _order(before) >= _order(mode):
            reason = "one excludes the other" if _order(before) == _order(mode) else f"write @{mode}@{before}"
            raise NoModeError(f"@{before}@{mode}: {reason}")
        if "planned" in modes[: modes.index(mode)] and mode in ARCHITECTURES:
            raise NoModeError(f"@planned@{mode}: @{mode} alone plans for {mode}")
        changed = _in_mode(target, mode, attribute)
        says = MODES.get(mode, COMPILED if mode in ARCHITECTURES else "")
        description = f"{target.description}: {says}" if says else changed.description
        target = dataclasses.replace(changed, name=f"{target.name}@{mode}", description=description)
    return target


def _order(mode: str) -> int:
    return _ORDER.get(mode, 0)


def _in_mode(target: Target, mode: str, attribute: str) -> Target:
    own = target.modes.get(mode, _OF_ANY_TARGET.get(mode))
    if isinstance(own, str):
        raise NoModeError(own)
    return compiled.compiled_for(target, attribute, mode) if own is None else own(target)


def cost(name: str) -> float:
    """About the time of an example of a target that is named in modes, in examples of the target in no mode."""
    return math.prod(_COSTS.get(mode, 1.0) for mode in name.split("@")[1:])


def declared(target: Target) -> list[str]:
    """The modes that a target declares, alone and after its formats, without those that compile."""
    own = [mode for mode, how in target.modes.items() if callable(how)]
    if target.planned is not None and "planned" not in target.modes:
        own.append("planned")
    of_any = [mode for mode in own if mode in MODES]
    return [*own, *(f"{form}@{mode}" for form in own if form in target.formats for mode in of_any)]


def descriptions(target: Target, attribute: str) -> dict[str, str]:
    """The description of each mode, or "no" and the reason why the target has no such mode."""
    found: dict[str, str] = {}
    for mode in dict.fromkeys((*target.modes, *_ORDER)):
        try:
            description = applied(target, [mode], attribute).description
        except NoModeError as error:
            found[mode] = f"no: {error}"
        else:
            found[mode] = description.removeprefix(f"{target.description}: ")
    return found
