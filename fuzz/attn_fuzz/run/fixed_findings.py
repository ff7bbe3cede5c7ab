"""Known findings whose stored cases no longer fail."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from attn_fuzz.cases import case_file
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets import registry

if TYPE_CHECKING:
    from attn_fuzz.run.processes.executor import Executor


def find(name: str, device: str, case_seconds: float) -> list[Finding]:
    """A target's findings whose stored cases run on this device and no longer fail.

    Args:
        case_seconds: seconds that one case may take.
    """
    from attn_fuzz.run.processes.executor import Executor

    target = registry.load(name)
    support = target.support(device)
    findings = [finding for finding in target.findings_on(device) if support.not_drawn(case_file.load(finding.path)) is None]
    with (
        tempfile.TemporaryDirectory() as scratch,
        Executor(name, device, case_seconds, Path(scratch, "finding.json")) as executor,
    ):
        return no_longer_failing(findings, executor)


def no_longer_failing(findings: Iterable[Finding], executor: "Executor") -> list[Finding]:
    """The findings whose stored case passes on the executor's target. A case that fails in another way says nothing about the
    bug."""
    stored = [(finding, case_file.load(finding.path)) for finding in findings]
    own = [(finding, executor.run(case)) for finding, case in stored if case.target == executor.target]
    return [finding for finding, verdict in own if verdict.kind != "limit" and not verdict.failed]
