"""Known findings: what a target is known to do wrong, as data, so that a run is drawn around it and finds the rest.

A finding is a predicate over cases that fail. One that it explains is counted and is no failure. Its stored case must fail:
`attn_fuzz.run.ledger` says which do not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from attn_contract import AttentionConfig
from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import Verdict

CASES = Path(__file__).parents[1] / "findings"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a target does wrong.

    Args:
        name: of the finding, and of its stored case `findings/NAME.json`.
        what: what goes wrong, and when.
        cause: why, with file and function.
        seen_in: the version in which the fuzzer saw it.
        link: its report, or None while it is not reported.
        meets: which layers can meet it.
        explains: whether it is why a case fails with a verdict; never asked about cases that do not fail.
    """

    name: str
    what: str
    cause: str
    seen_in: str
    link: str | None
    meets: Callable[[AttentionConfig], bool]
    explains: Callable[[Case, Verdict], bool]

    @property
    def path(self) -> Path:
        return CASES / f"{self.name}.json"


def explanation(findings: Iterable[Finding], case: Case, verdict: Verdict) -> Finding | None:
    """The first finding that explains a failure; None if it is a new one, or the case did not fail."""
    if not verdict.failed:
        return None
    return next((finding for finding in findings if finding.explains(case, verdict)), None)
