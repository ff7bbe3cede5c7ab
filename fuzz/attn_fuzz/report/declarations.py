"""Declarations of distinct failures as findings."""

from collections.abc import Sequence

from attn_fuzz.findings.aspects import in_order
from attn_fuzz.report.run import Found
from attn_fuzz.text import one_line


def declarations(found: Sequence[Found]) -> str:
    """A module that declares what was found as findings, to be moved beside the target whose findings they become."""
    lines = [
        '"""Failures that a run has found, as findings: `findings=FINDINGS` in the target.',
        "",
        "Look at each predicate before you keep it: it hides every failure that it explains.",
        '"""',
        "",
        "from pathlib import Path",
        "",
        "from attn_fuzz.targets import Finding, needing",
        "",
        "CASES = Path(__file__).parent",
        "",
        "FINDINGS = (",
    ]
    for each in found:
        assert each.entry is not None
        verdict = each.failure.verdict
        needs = "".join(f"{name!r}, " for name in in_order(each.entry.needs))
        kinds = tuple(sorted(each.entry.kinds))
        lines += [
            "    Finding(",
            f"        name={each.name!r},",
            f"        what={one_line(f'{verdict.kind}: {verdict.message}', 200)!r},",
            '        cause="not known yet",',
            '        seen_in="not known yet",',
            "        folder=CASES,",
            f"        explains=needing({needs}kinds={kinds!r}, about={verdict.about!r}),",
            "    ),",
        ]
    return "\n".join([*lines, ")", ""])
