"""A known finding: a bug that a target is known to have, as data, so that a run counts it and goes on to find others.

Each finding has a predicate over failing cases. A case that a finding explains is counted, and the run does not fail by it.
Each finding also has a stored case, which must fail: `attn_fuzz.run.fixed_findings` says which stored cases no longer do.

`attn-parity select` names findings too, and runs without the fuzz extra: this module imports nothing of the extra.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.verdict.judge import Difference
    from attn_fuzz.verdict.verdict import Verdict

CASES = Path(__file__).parent / "cases"
NUMBERS, WRONG = ("value", "bitwise"), ("nan", "value", "bitwise")
"""Kinds of verdicts about numbers of an output, without NaN and with it."""


def _every_layer(config: AttentionConfig) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A bug of a target that this project has found.

    Args:
        name: the name of the finding, and of its stored case NAME.json.
        what: the wrong behaviour, and its conditions.
        cause: why, with file and function.
        seen_in: the version in which the fuzzer saw the bug.
        link: the link of the bug's report; None while the bug is not reported.
        folder: where NAME.json is, and NAME.toml if the finding has a repair (`attn_fuzz.findings.repairs`). The default is the
            folder of the findings that come with the fuzzer. A finding of your own target is in a folder of your own.
        meets: True if a layer can meet the bug, for `attn-parity select`. The default is that every layer can.
        explains: True if a case that fails with a verdict may fail because of this finding. Only failing cases are asked
            about. If the finding has a repair, the case must agree with it, too (`attn_fuzz.run.known`).
        needs_gpu: True if only code compiled for a GPU shows the bug, and Triton's interpreter does not. Such a
            finding explains nothing on a CPU (`Target.findings_on`).
        is_in_sources: True if the sources that a run takes have the lines of the bug, which came after the release that the
            target is declared for. On others it explains nothing.
    """

    name: str
    what: str
    cause: str
    seen_in: str
    link: str | None = None
    folder: Path = CASES
    meets: Callable[[AttentionConfig], bool] = _every_layer
    explains: Callable[["Case", "Verdict"], bool]
    needs_gpu: bool = False
    is_in_sources: Callable[[], bool] = lambda: True

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"


def explanation(findings: Iterable[Finding], case: "Case", verdict: "Verdict") -> Finding | None:
    """The first finding that explains a failure. None if no finding does, or if the case did not fail."""
    if not verdict.failed:
        return None
    return next((finding for finding in findings if finding.explains(case, verdict)), None)


def failures_where(kinds: Collection[str], *holds: Callable[["Case"], object]) -> Callable[["Case", "Verdict"], bool]:
    """A predicate for `Finding.explains`: a failure of one of these kinds, in a case of which all of `holds` hold."""
    return lambda case, verdict: verdict.kind in kinds and all(hold(case) for hold in holds)


def has_several_queries(case: "Case") -> bool:
    return any(request.query_len > 1 for request in case.requests)


def has_idle_requests(case: "Case") -> bool:
    """True if a request has no query."""
    return any(request.query_len == 0 for request in case.requests)


def has_queries_without_keys(case: "Case") -> bool:
    """True if a request has a query and no key."""
    return any(request.query_len > request.seq_len == 0 for request in case.requests)


def has_hidden_keys(case: "Case") -> bool:
    """True if a window ends before the first key of a request."""
    return any(0 <= case.window[0] < request.seq_len - 1 for request in case.requests)


def is_nan(case: "Case", verdict: "Verdict") -> bool:
    """True if an output is NaN, or was NaN before it was clamped to float8, which makes it a number."""
    return verdict.kind == "nan" or (verdict.kind == "value" and case.output_dtype is not None)


def is_nan_before_windows(case: "Case", verdict: "Verdict") -> bool:
    """True if outputs are NaN, only of requests that have slots with NaN before the windows of all their queries.

    Other requests may be wrong by another finding. A float8 output does not say which of them are NaN: one of them has such
    slots.
    """
    if not is_nan(case, verdict) or not case.recycled or case.finite_slots or case.window[0] < 0:
        return False
    clamped = case.output_dtype is not None
    wrong = {difference.request for difference in verdict.differences if clamped or math.isnan(difference.got)}
    requests = (case.requests[index] for index in wrong)
    reads = [request.seq_len - request.query_len > case.window[0] for request in requests]
    return any(reads) if clamped else bool(reads) and all(reads)


def is_of_tf32(worst: "Difference") -> bool:
    """True if an error may come from operands of dots that were cut to TF32.

    A bound is made of roundings by 2^-24, of which each product of float32 has at least one. TF32 cuts up to 2^-10 off both
    operands.
    """
    return abs(worst.got - worst.expected) <= 2.0**15 * worst.bound
