"""Failures that known findings explain: those of cases that agree once the findings are repaired."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings import repairs
from attn_fuzz.findings.finding import Finding, explanation
from attn_fuzz.verdict.verdict import Verdict

if TYPE_CHECKING:
    from attn_fuzz.run.processes.executor import Executor


class Known(NamedTuple):
    """The finding that explains a failure.

    Attributes:
        agrees_repaired: True if the case agrees on sources in which the findings are repaired. False: they were not repaired,
            or the case could not be run there, so that the finding's predicate alone explains the failure.
    """

    finding: Finding
    agrees_repaired: bool


def explained(
    executor: "Executor", findings: Sequence[Finding], case: Case, verdict: Verdict, exactly: bool | None = None
) -> tuple[Verdict, Known | None]:
    """A verdict, and the finding that explains it if it is a failure. None if the failure is new.

    A failure that meets the predicate of a finding with a repair is run again, on sources in which all findings of the target
    are repaired, because a case may meet several of them at once. If it fails there, it is new, or a finding that is not
    repaired explains by its predicate how it fails there.
    """
    met = [finding for finding in findings if verdict.failed and finding.explains(case, verdict)]
    if not met:
        return verdict, None
    if not repairs.of_findings(met):
        return verdict, Known(met[0], agrees_repaired=False)
    repaired = executor.repaired(findings)
    names = foreign.repaired(repaired.environment)
    can_be_told = [finding for finding in met if finding.name in names]
    if not can_be_told:  # these sources have not the lines that are to be changed
        return verdict, Known(met[0], agrees_repaired=False)
    again = repaired.run(case, exactly=exactly)
    if not again.failed:
        return verdict, Known(can_be_told[0], agrees_repaired=again.passed)
    if rest := explanation([finding for finding in findings if finding.name not in names], case, again):
        return verdict, Known(rest, agrees_repaired=False)
    message = f"{verdict.message}; with {can_be_told[0].name} repaired, too: {again.kind}: {again.message}"
    return msgspec.structs.replace(verdict, message=message), None
