"""The verdict on one case: agreement, a rightful refusal, or what went wrong first."""

from typing import Literal

import msgspec
from attn_fuzz.verdict.judge import Difference

Kind = Literal[
    "agree",
    "refused",
    "value",
    "nan",
    "bitwise",
    "unwritten",
    "lse",
    "property",
    "cache",
    "rope",
    "input",
    "guard",
    "sanitizer",
    "raised",
    "crashed",
    "hung",
]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one case, and what a report shows of it.

    Attributes:
        kind: "agree"; "refused", rightly; or what went wrong first: a value past its bound, NaN, an inexact sum, a row never
            written, the LSE, outputs that contradict each other, a wrong or stray byte in the cache, a wrongly rotated q, a
            changed input, a byte outside the owned outputs, an access that `attn_fuzz.interpreted.sanitizer` forbids, an
            exception, a dead process, no answer in time.
        message: one line for a person; empty if they agree.
        differences: the worst element per request.
        ratio: the largest error / bound.
        ratios: counts of elements by error / bound, by tensor, dtype and phase; none of what was compared bitwise.
        pictures: by tensor, a byte per row and head; see `attn_fuzz.verdict.ratios`.
        seconds: where the time went: building, the target, and the oracle with the judge.
        events: paths that the target took, and properties that were asked of it.
    """

    kind: Kind
    message: str = ""
    differences: tuple[Difference, ...] = ()
    ratio: float = 0.0
    ratios: dict[str, list[int]] = {}
    pictures: dict[str, bytes] = {}
    seconds: dict[str, float] = {}
    events: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.kind not in ("agree", "refused")
