"""The ledger of known findings: which of them no longer fail, and their page.

    python -m attn_fuzz.run.ledger > docs/generated/findings.md

writes the page of all targets' findings.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from attn_fuzz.cases import case_file
from attn_fuzz.findings.finding import Finding, explanation
from attn_fuzz.run.executor import Executor
from attn_fuzz.targets import registry


def fixed(name: str, device: str, limit: float) -> list[Finding]:
    """A target's findings whose stored cases run on this device and no longer fail.

    Args:
        limit: seconds that one case may take.
    """
    target = registry.load(name)
    support = target.support(device)
    findings = [finding for finding in target.findings if support.limit(case_file.load(finding.path)) is None]
    with tempfile.TemporaryDirectory() as scratch, Executor(name, device, limit, Path(scratch, "finding.json")) as executor:
        return no_longer_failing(findings, executor)


def no_longer_failing(findings: Iterable[Finding], executor: Executor) -> list[Finding]:
    """The findings whose stored case no longer fails on the executor's target as the finding says."""
    stored = [(finding, case_file.load(finding.path)) for finding in findings]
    return [
        finding
        for finding, case in stored
        if case.target == executor.target and explanation([finding], case, executor.run(case)) is None
    ]


def page(targets: Iterable[tuple[str, Iterable[Finding]]]) -> str:
    """Findings, each with the targets that share it, as Markdown."""
    shared: dict[str, tuple[Finding, list[str]]] = {}
    for target, findings in targets:
        for finding in findings:
            shared.setdefault(finding.name, (finding, []))[1].append(target)
    lines = [
        "# Known findings",
        "",
        "Bugs that the fuzzer has found in kernels of other projects.",
        "",
        "| finding | seen in | reported |",
        "| --- | --- | --- |",
        *(f"| [{name}](#{name}) | {finding.seen_in} | {finding.link or 'not yet'} |" for name, (finding, _) in shared.items()),
        "",
        "- A run counts the cases that a finding explains, and goes on. It says when the stored case of a finding no longer",
        "  fails.",
        "- `attn-parity select` lists the findings that a layer can meet in the selected backend.",
        "- Versions newer than the named ones have not been run.",
        "- To replay a finding, install the package of the version that is named, without what it requires (`pip install",
        "  --no-deps vllm==0.33.0`), and start in the repository's root. The replay exits with 1 and names the finding.",
        "",
        "`python -m attn_fuzz.run.ledger` writes this page from the declarations of the targets.",
    ]
    for finding, names in shared.values():
        lines += [
            "",
            f"## {finding.name}",
            "",
            finding.what,
            "",
            f"- Seen in: {finding.seen_in}",
            f"- Cause: {finding.cause}",
            *([f"- Reach: {finding.reach}"] if finding.reach else []),
            f"- Targets: {', '.join(names)}",
            f"- Report: {finding.link or 'not reported yet'}",
            f"- Replay: `attn-parity replay fuzz/attn_fuzz/findings/{finding.path.name}`",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    loaded = [registry.load(name) for name in registry.names()]
    print(page((target.name, target.findings) for target in loaded if target.findings), end="")
