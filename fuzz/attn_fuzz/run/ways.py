"""Trials that look at a case in one way alone, for `attn_fuzz.run.executor.Executor.trial`.

`attn_fuzz.run.trial.try_case` looks in all ways, one after another, and the first that finds something decides. So its verdicts
do not say which other way would have found the same fault. Each of these trials runs the case and looks in one way.

A target that raises is a verdict of the judge. For the other ways there is nothing to look at then: they call the case refused.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.run.attempt import Attempt
from attn_fuzz.run.checks import forbidden_access
from attn_fuzz.run.trial import followed, try_case, wrong_by_properties
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.judge import check_scores
from attn_fuzz.verdict.verdict import Verdict

Drawn = Literal["judge", "property", "sanitizer", "exact"]
TRIALS: Final[Mapping[Drawn, str]] = {
    "judge": f"{__name__}:by_judge",
    "property": f"{__name__}:by_property",
    "sanitizer": f"{__name__}:by_sanitizer",
    "exact": f"{__name__}:by_exact",
}


def target_of(way: Drawn, name: str) -> str | None:
    """The target on which a way looks at the kernels of another target; None if no target lets it.

    Properties are those that a target promises. Where a target promises none, its kernels' properties are checked on the target
    of its name with "-properties" or "-invariant" behind it.
    """
    if way == "sanitizer":
        return name if registry.load(name).can_be_sanitized("cpu") else None
    if way != "property":
        return name
    known = registry.names()
    names = [one for one in (name, f"{name}-properties", f"{name}-invariant") if one in known]
    return next((one for one in names if registry.load(one).properties), None)


def by_judge(case: Case, target: Target, device: str) -> Verdict:
    """What the call has left is compared with what it should have left: outputs within their bounds, all other memory bit by
    bit."""
    return try_case(case, dataclasses.replace(target, properties=()), device)


def by_property(case: Case, target: Target, device: str) -> Verdict:
    """Outputs are compared with those of variants of the call, and with no reference."""
    attempt = Attempt(case, target, device)
    if attempt.error is not None or attempt.beyond:
        return Verdict(kind="refused", seconds=attempt.seconds)
    started = time.perf_counter()
    wrong = wrong_by_properties(attempt)
    verdict = Verdict(kind="agree", seconds={**attempt.seconds, "judge": time.perf_counter() - started}, events=attempt.events)
    if wrong is None or wrong[0] != "property":
        return verdict
    kind, about, message = wrong
    return msgspec.structs.replace(verdict, kind=kind, about=about, message=message)


def by_sanitizer(case: Case, target: Target, device: str) -> Verdict:
    """Addresses of interpreted kernels are checked, and no number is looked at. The executor has to sanitize."""
    attempt = Attempt(case, target, device)
    if wrong := forbidden_access(attempt):
        return Verdict(kind="sanitizer", message=wrong.message, about=wrong.about, seconds=attempt.seconds)
    return Verdict(kind="agree" if attempt.error is None else "refused", seconds=attempt.seconds, events=attempt.events)


def by_exact(case: Case, target: Target, device: str, *, exactly: bool = True) -> Verdict:
    """The call is followed in exact mode, and each element of its outputs is compared with the formula of attention."""
    assert exactly
    if target.oracle:
        check_scores(case)
    return followed(case, target, device, Verdict(kind="agree", seconds={"judge": 0.0}))
