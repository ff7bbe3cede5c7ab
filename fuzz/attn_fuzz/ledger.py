"""Known findings: what a target is known to do wrong, as data, so that a run is drawn around it and finds the rest.

A finding is a predicate over cases that fail. One that it explains is counted and is no failure. Its stored case must fail:
`no_longer_failing` says which do not.

    python -m attn_fuzz.ledger > docs/generated/findings.md

writes the page of all targets' findings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attn_contract import AttentionConfig
from attn_fuzz import case as case_file
from attn_fuzz.case import Case

if TYPE_CHECKING:
    from attn_fuzz.executor import Executor
    from attn_fuzz.trial import Verdict

CASES = Path(__file__).parent / "findings"


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
    explains: "Callable[[Case, Verdict], bool]"

    @property
    def path(self) -> Path:
        return CASES / f"{self.name}.json"


def explanation(findings: Iterable[Finding], case: Case, verdict: "Verdict") -> Finding | None:
    """The first finding that explains a failure; None if it is a new one, or the case did not fail."""
    if not verdict.failed:
        return None
    return next((finding for finding in findings if finding.explains(case, verdict)), None)


def no_longer_failing(findings: Iterable[Finding], executor: "Executor") -> list[Finding]:
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
        "and the name of the finding. Written by `python -m attn_fuzz.ledger` from what targets declare.",
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
    from attn_fuzz import targets

    loaded = [targets.load(name) for name in targets.names()]
    print(page((target.name, target.findings) for target in loaded if target.findings), end="")
