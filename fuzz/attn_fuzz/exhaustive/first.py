"""The first failing launch of a scope on a target with a mutant."""

import functools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.exhaustive import run
from attn_fuzz.exhaustive.packing import Launch
from attn_fuzz.exhaustive.scope import SCOPES
from attn_fuzz.run.executor import Executor
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Kind
from attn_fuzz.zoo.mutants import KnownBug


@dataclass(frozen=True)
class First:
    """What a run of a scope came to.

    Attributes:
        launches, seconds: until the first failure, or until the end.
        kind: the verdict on the first failing launch; None if no launch fails.
        is_whole: whether a launch failed or all launches have run.
        error: why the mutant does not run, if it does not.
    """

    launches: int
    seconds: float
    kind: Kind | None = None
    is_whole: bool = True
    error: str | None = None


@functools.cache
def launches(scope: str, target: str, device: str) -> tuple[Launch, ...]:
    """The launches of a scope, kept for the next mutant of the target."""
    usable = registry.usable(target, device)
    return tuple(launch for _, launch in run.numbered(SCOPES[scope], target, usable, device, []))


def first_failure(mutant: KnownBug, scope: str, device: str, limit: float, until: float | None = None) -> First:
    """Run the launches of a scope in their order, until one fails or the time `until` (`time.time()`) has come.

    Args:
        limit: seconds that one launch may take.
    """
    count, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            every = launches(scope, mutant.target, device)
            started = time.monotonic()
            with Executor(mutant.target, device, limit, Path(folder, "launch.json"), mutant, trial=run.TRIAL) as executor:
                for count, launch in enumerate(every, 1):
                    verdict = executor.run(launch.case)
                    if not verdict.passed:
                        return First(count, time.monotonic() - started, verdict.kind)
                    if until is not None and time.time() > until:
                        return First(count, time.monotonic() - started, is_whole=count == len(every))
        except (InputError, ExecutorError) as error:
            return First(count, time.monotonic() - started, error=str(error))
    return First(count, time.monotonic() - started)
