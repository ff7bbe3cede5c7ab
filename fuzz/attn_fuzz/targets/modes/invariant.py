"""NAME@invariant: what a request gives must not depend, in any bit, on what else is in its batch."""

import dataclasses
from collections.abc import Callable

from attn_fuzz import properties
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.target import AttentionFunction, Mode, Target


def mode(attention: AttentionFunction, queries_per_tile: Callable[[Step], int] | None = None) -> Mode:
    """The mode of a target, for `Target.modes`.

    Args:
        attention: attends in the same way in whatever batch a request is.
        queries_per_tile: returns for a step how many queries a tile of prefills has. A prefill that is cut into steps of whole
            tiles must then give the same bits. None: nothing is said of prefills that are cut.
    """

    def invariant(target: Target) -> Target:
        support = target.support("cpu")
        held = [properties.batch_composition()]
        if queries_per_tile is not None:
            held.append(properties.chunked_prefill(queries_per_tile))
        if {"bidirectional_ranges", "per_request_causal"} <= {*support.rules}:
            held.append(properties.neighbours_rules())
        if "window" in support.rules and support.engine.windows == ("any",) and support.unused_slots == "NaN":
            held.append(properties.far_keys())
        return dataclasses.replace(target, attention=attention, properties=tuple(held), events=lambda step: ())

    return invariant
