"""A mistake that a kernel may make, as a change of a part of the call, and the changes that many mistakes share."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import RULES, ContractError, UnsupportedError
from attn_fuzz.mistakes.part import Part

NOT_HERE = (ContractError, UnsupportedError, IndexError, RuntimeError, ValueError, AssertionError)
"""Exceptions of a mistake that leads out of a tensor, or makes a call that the contract does not have."""
Change = Callable[[Part], Part | None]
"""None: the mistake changes nothing here, or cannot be made. A change may raise what the reference and torch raise where a
reading leads out of a tensor."""


@dataclass(frozen=True)
class Mistake:
    """A mistake.

    Attributes:
        sentence: its name: what the kernel seems to do, for a person.
        changes: the part as the mistake makes it, for each of its sizes, such as that of a tile: each request may have another
            size.
        about: the rule or the setting of a call that the kernel gets wrong: a field of the layer or of the batch, or a word.
    """

    sentence: str
    changes: tuple[Change, ...]
    about: str = ""


def mistake(sentence: str, *changes: Change) -> Mistake:
    return Mistake(sentence, changes)


def about(subject: str, *mistakes: Mistake) -> tuple[Mistake, ...]:
    """Mistakes about one rule or setting."""
    return tuple(dataclasses.replace(each, about=subject) for each in mistakes)


def rule(name: str, change: Callable[[Any, Part], Any]) -> Change:
    """Another value of a field of the layer or the batch: `change(value, part)`, where the call asks for the rule."""

    def changed(part: Part) -> Part | None:
        holder = "layer" if hasattr(part.layer, name) else "batch"
        value = getattr(getattr(part, holder), name)
        if name in RULES and not RULES[name].is_asked(value):
            return None
        other = change(value, part)
        return (
            None
            if other is value or (not isinstance(value, torch.Tensor) and other == value)
            else part.ruled(**{holder: {name: other}})
        )

    return changed


def lost(name: str) -> Change:
    """Without a rule."""
    return rule(name, lambda value, part: RULES[name].off)


def without(keys: Callable[[Part], torch.Tensor | None]) -> Change:
    """Without the keys, [1, k] or [q, k], that `keys(part)` names."""

    def changed(part: Part) -> Part | None:
        hidden = keys(part)
        if hidden is None or not (hidden & part.request.visible).any():
            return None
        return part.having(visible=part.request.visible & ~hidden)

    return changed


def twice(keys: Callable[[Part], torch.Tensor | None]) -> Change:
    """A change that counts the keys of `keys(part)` twice."""

    def changed(part: Part) -> Part | None:
        doubled = keys(part)
        if doubled is None or not (doubled & part.request.visible).any():
            return None
        return part.adding(torch.where(doubled, math.log(2), 0.0))

    return changed
