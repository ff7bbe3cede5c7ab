"""The ledger of known findings: which of them no longer fail, and their page.

    python -m attn_fuzz.run.ledger > docs/generated/findings.md

writes the page of all targets' findings.
"""

from collections.abc import Iterable

from attn_fuzz.cases import case as case_file
from attn_fuzz.run.executor import Executor
from attn_fuzz.targets.finding import Finding, explanation


def no_longer_failing(findings: Iterable[Finding], executor: Executor) -> list[Finding]:
    """The findings whose stored case is the executor's target's, and does not fail as it did."""
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
        "What the fuzzer has found in kernels that are not ours. `attn-parity select` lists those that a layer can meet in the",
        "backend that it selects. A run counts cases that one of these explains, and goes on; when a stored case no longer",
        "fails, it says so. Newer versions than the one that is named have not been run.",
        "",
        "A replay needs the kernel's package (`pip install -e '.[aiter]'`), starts in the repository's root, and exits with 1",
        "and the name of the finding. Written by `python -m attn_fuzz.run.ledger` from what targets declare.",
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
            f"- Targets: {', '.join(names)}",
            f"- Report: {finding.link or 'not reported yet'}",
            f"- Replay: `attn-parity replay fuzz/attn_fuzz/findings/{finding.path.name}`",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from attn_fuzz.targets import registry

    loaded = [registry.load(name) for name in registry.names()]
    print(page((target.name, target.findings) for target in loaded if target.findings), end="")
