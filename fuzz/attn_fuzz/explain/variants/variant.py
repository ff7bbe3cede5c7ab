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
        changes: the part as the mistake makes it, for each of its sizes, such as that of a tile: each request may have another
            one. None: the mistake changes nothing here, or cannot be made. A change may raise what the reference and torch
            raise where a reading leads out of a tensor.
    """

    name: str
    sentence: str
    changes: tuple[Change, ...]

    @classmethod
    def of(cls, name: str, sentence: str, *changes: Change) -> "Variant":
        return cls(name, sentence, changes)
