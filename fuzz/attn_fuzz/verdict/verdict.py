"""The verdict on one case: agreement, a rightful refusal, or what went wrong first."""

from typing import Literal

import msgspec
from attn_fuzz.verdict.judge import Difference

VerdictKind = Literal[
    "agree",
    "refused",
    "limit",
    "value",
    "nan",
    "bitwise",
    "exact",
    "unwritten",
    "lse",
    "property",
    "cache",
    "rope",
    "input",
    "guard",
    "sanitizer",
    "fence",
    "raised",
    "served",
    "crashed",
    "hung",
]


COMPARED, NOT_CARRIED = "compared exactly", "not compared exactly"
"""Events of exact mode. The second is followed by the reason."""
COMPILED, IN_EAGER = "compiled by Dynamo", "left to eager by Dynamo"
"""Events of a case in a process where Dynamo has compiled frames, and of one where it has given up frames."""
FENCED = "fenced"
"""The event of a case whose calls were made with unmapped pages beside its tensors, too: a failure with it is one of these."""
MALFORMED = "malformed: "
"""The beginning of the event of a case with a corrupted call (`attn_fuzz.run.case.malformed`). Its kind follows."""
EARLIER_CALL, EARLIER_WRITE = "the earlier call ", "the earlier write "
"""The beginnings of the names of an earlier call and of an earlier write that were left out."""


_OF_WRONG_CALL = {"agree": "accepted with the right output", "refused": "refused", "hung": "hung"} | dict.fromkeys(
    ("crashed", "raised"), "crashed"
)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one case, and what a report shows of it.

    Attributes:
        kind: "agree"; "refused", rightly; "limit", if this tool cannot run the case; or what went wrong first: a value past its
            bound, NaN, an inexact sum, a number that is not what the formula gives (`attn_fuzz.exact`), a row never written,
            the LSE, outputs that contradict each other, a wrong or stray byte in the cache, a wrongly rotated q, a changed
            input, a byte outside the owned outputs, an access that `attn_fuzz.interpreted.sanitizer` or the emulator forbids,
            one of an unmapped page beside a tensor (`attn_fuzz.run.case.fence`), an exception, a call served that is to be
            refused, a dead process, no answer in time.
        message: one line for a person; empty if they agree.
        about: the subject of the failure, such as the tensor that is wrong, the type of the exception, or the property that
            does not hold. A failure of a call that the target should have refused also names the part to be refused.
        differences: the worst element per request.
        ratio: the largest error / bound.
        ratios: counts of elements by error / bound, by tensor, dtype and phase; none of what was compared bitwise.
        pictures: by tensor, a byte per row and head; see `attn_fuzz.verdict.ratios`.
        seconds: the seconds of building, of the target, and of the oracle with the judge and exact mode.
        events: paths that the target took, and properties that were asked of it.
        frames: Dynamo's counts in this case (`attn_fuzz.interpreted.dynamo`).
        launches: by Triton kernel, how often it was launched, where this project interprets or emulates it.
        left_out: pairs of a property, or an earlier call or write, that the case did not ask of the target, and the reason.
        places, answers: the places that the case was in, and which mistakes it would have shown (`attn_fuzz.account`).
        explanation: lines about where the outputs are wrong, and which mistake explains them (`attn_fuzz.explain`).
    """

    kind: VerdictKind
    message: str = ""
    about: str = ""
    differences: tuple[Difference, ...] = ()
    ratio: float = 0.0
    ratios: dict[str, list[int]] = {}
    pictures: dict[str, bytes] = {}
    seconds: dict[str, float] = {}
    events: tuple[str, ...] = ()
    frames: dict[str, int] = {}
    launches: dict[str, int] = {}
    left_out: tuple[tuple[str, str], ...] = ()
    places: tuple[str, ...] = ()
    answers: bytes = b""
    explanation: tuple[str, ...] = ()

    @property
    def of_wrong_call(self) -> str:
        """What became of the case's corrupted call; empty if the case has none, or met a limit of this tool."""
        if self.kind == "limit" or not any(event.startswith(MALFORMED) for event in self.events):
            return ""
        return _OF_WRONG_CALL.get(self.kind, "accepted and wrong")

    @property
    def passed(self) -> bool:
        return self.kind in ("agree", "refused")

    @property
    def failed(self) -> bool:
        """True if the target is at fault. A case that neither passed nor failed is beyond a limit of this tool."""
        return not self.passed and self.kind != "limit"


def what_failed(verdict: Verdict) -> tuple[str, str]:
    """The identity of a failure. Two cases with equal answers fail in the same way, so the smaller may stand for both.

    The answer is the verdict's kind and what the verdict is about. Four kinds count as one kind, "number". Where only the
    values of a case change, a wrong number of a tensor may become NaN, or a sum that is not exact. And a float8 output cannot
    tell NaN from a number that was never written.

    All other kinds stay apart, because they have different causes:

    - The output and the LSE are computed from the same weights, but they are divided, scaled and stored by different code.
    - A stray write, a changed input or a forbidden access may kill the process in another case. But a process also dies of
      something else, and a dead process says neither what was written nor where.
    - An exception of another type is raised at another place.
    - A property that does not hold says nothing of the other properties.

    How a process died says little (a wild pointer ends in SIGSEGV, SIGBUS or SIGABRT), so all deaths count as one.
    """
    return ("number" if verdict.kind in ("value", "nan", "bitwise", "unwritten") else verdict.kind), verdict.about
