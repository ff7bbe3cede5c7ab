"""Failing cases of targets in the mode beyond: does an engine send them?"""

import contextlib
import tempfile
from pathlib import Path

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.corpus.adapting import adapted
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets import registry


def why(case: Case, device: str, case_seconds: float) -> str | None:
    """The property of a failing case that the target's engine never sends, in words, with the engine's code where it is cited.

    None if the engine sends the case, or sends a like one (`corpus.adapting`) that fails, too. None also without the mode.
    """
    base, beyond, others = case.target.partition("@beyond")
    if not beyond:
        return None
    name = base + others
    support = registry.load(name).support(device)
    like, _ = adapted(msgspec.structs.replace(case, target=name), support)
    reason = support.engine.not_sent(case)
    if reason is None or (like is not None and _fails(like, device, case_seconds)):
        return None
    cited = support.engine.cited.get(reason.split()[0].rstrip(","))
    return f"{reason} ({cited})" if cited else reason


def _fails(case: Case, device: str, case_seconds: float) -> bool:
    with (
        contextlib.suppress(ExecutorError, InputError),
        tempfile.TemporaryDirectory() as scratch,
        Executor(case.target, device, case_seconds, Path(scratch, "case.json")) as executor,
    ):
        return executor.run(case).failed
    return False
