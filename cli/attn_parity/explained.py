"""The explanation of a failing case, found in a process of its own."""

import tempfile
from pathlib import Path

from attn_fuzz.cases.case import Case

EXPLAIN = "attn_fuzz.explain.explanation:explain"


def explained(case: Case, first: Case | None, target: str, device: str, case_seconds: float) -> tuple[str, ...]:
    """Lines about where the outputs of a failing case are wrong, and which mistake explains them; none if no output is
    wrong."""
    from attn_fuzz.run.processes.executor import Executor  # a run without a failure does not need it

    with (
        tempfile.TemporaryDirectory() as scratch,
        Executor(target, device, case_seconds, Path(scratch, "case.json"), trial=EXPLAIN) as executor,
    ):
        return executor.run(case, first=first).explanation
