"""Faults of the keys that attention gets."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """The kind of a fault.

    WRONG_SLOT is the key of another position of the request. In a layer with a sliding window it is WRONG_RING. OTHER_REQUEST
    is a key that another request still uses. STALE_BLOCK is a key that was freed, rolled back or written anew since. ALTERED is
    a key that was never written, neither with another rotation nor with another scale.
    """

    WRONG_SLOT = "wrong slot"
    WRONG_RING = "wrong ring"
    OTHER_REQUEST = "key of another request"
    STALE_BLOCK = "stale block"
    LOST_KEY = "lost key"
    WRONG_LENGTH = "wrong length"
    ROTATED_TWICE = "position rotated twice"
    NOT_ROTATED = "position not rotated"
    SCALE = "scale of another token"
    WRITE_AFTER_READ = "write after read"
    ALTERED = "altered key"


@dataclass(frozen=True)
class Written:
    """The write of a key: its request, position and step."""

    layer: Hashable
    request: Hashable
    position: int
    step: int
    freed: int | None = None
    """The step in which the request was freed."""

    def __str__(self) -> str:
        freed = "" if self.freed is None else f" (freed in step {self.freed})"
        return f"layer {self.layer}, request {self.request}{freed}, position {self.position}, step {self.step}"


@dataclass(frozen=True)
class CacheFault:
    """A wrong key, and the one that attention got instead. Its `str` is a line for people.

    Args:
        position: the first position of the request that is wrong.
        step: the number of the step that read.
        slot: the slot in which attention looks for this position; None in a cache without slots.
        expected_slot: the slot into which the position was written.
        expected: the write of this position; None if there was none.
        writer: the last write into the slot, or without slots that of the key that attention got; None if there was none.
        count: the number of wrong keys that attention got.
        detail: more, in words.
    """

    kind: FaultKind
    layer: Hashable
    request: Hashable
    position: int
    step: int
    slot: int | None = None
    expected_slot: int | None = None
    expected: Written | None = None
    writer: Written | None = None
    count: int = 1
    detail: str = ""

    def __str__(self) -> str:
        handed = "" if self.slot is None else f" was handed slot {self.slot}, last written"
        handed = handed or " was handed a key written"
        by = f"{handed} by {self.writer}" if self.writer else f"{handed} by nobody" if self.slot is not None else ""
        place = "" if self.expected_slot is None else f" in slot {self.expected_slot}"
        right = f"; right is the key of step {self.expected.step}{place}" if self.expected else "; no such key was written"
        more = f"; {self.count} keys are wrong" if self.count > 1 else ""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{self.kind}: layer {self.layer}, request {self.request}, position {self.position}, step {self.step}"
            f"{detail}{by}{right}{more}"
        )
