"""The explanation of a failing case, found in a process of its own."""

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attn_fuzz.cases.case import Case
from attn_fuzz.errors import ExecutorError, InputError

if TYPE_CHECKING:
    from attn_fuzz.run.shard import Failure, FuzzPlan

EXPLAIN = "attn_fuzz.explain.explanation:explain"
EXPLAINED = ("value", "lse", "nan", "bitwise", "unwritten", "cache", "rope")
"""The kinds of verdicts on outputs and on cache writes. Verdicts of other kinds need no explanation but their message."""


def explained(case: Case, first: Case | None, target: str, device: str, case_seconds: float) -> tuple[str, ...]:
    """Lines about where the outputs of a failing case are wrong, and which mistake explains them; none if no output is
    wrong."""
    from attn_fuzz.run.processes.executor import Executor  # a run without a failure does not need it

    with (
        tempfile.TemporaryDirectory() as scratch,
        Executor(target, device, case_seconds, Path(scratch, "case.json"), trial=EXPLAIN) as executor,
    ):
        return executor.run(case, first=first).explanation


def of_failure(failure: "Failure", plan: "FuzzPlan") -> tuple[str, ...]:
    """The same of a failure of a run. It has no lines if its message says all, or if no explanation can be made.

    A case that passes in a new process is told so. It has no explanation: that would be of another case's output.
    """
    from attn_fuzz.run import shard

    if words := shard.alone(plan, failure):
        return (words,)
    if failure.verdict.kind in EXPLAINED:
        with contextlib.suppress(ExecutorError, InputError):
            return explained(failure.case, failure.first, plan.target, plan.device, plan.case_seconds)
    return ()
