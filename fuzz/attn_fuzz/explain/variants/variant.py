"""A mistake that a kernel may make, as a change of a part of the call."""

from collections.abc import Callable
from dataclasses import dataclass

from attn_fuzz.explain.part import Part

Change = Callable[[Part], Part | None]


@dataclass(frozen=True)
class Variant:
    """A mistake.

    Attributes:
        name: one for each.
        sentence: what the kernel seems to do, for a person.
        change: the part as the mistake makes it. None: the mistake changes nothing here, or cannot be made. It may raise what
            the reference and torch raise where a reading leads out of a tensor.
    """

    name: str
    sentence: str
    change: Change
