"""The trial of an `Executor` that explains a failing case, where the target runs."""

import time

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.explain import evidence, places
from attn_fuzz.explain.search import Seen, explanations
from attn_fuzz.explain.variants import VARIANTS
from attn_fuzz.run.attempt import own_state
from attn_fuzz.run.checks import CHECKS
from attn_fuzz.run.attempt import Attempt
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.judge import judge
from attn_fuzz.verdict.verdict import Verdict

SECONDS = 8.0
"""How long more outputs are looked for."""
READS_HIDDEN = (
    "explanation: it reads memory that it must not read. With numbers there instead of NaN the output is right: "
    "what was read has the weight 0, and 0 * NaN is NaN"
)
UNWRITTEN = "explanation: what is wrong was never written"


def explain(case: Case, target: Target, device: str, *, first: Case | None = None, seconds: float = SECONDS) -> Verdict:
    """A verdict whose `explanation` says what is wrong with the outputs of a case, and which mistake has these outputs.

    Nothing is said of a target that raises, or that writes what it must not: the check that found it has said what.

    Args:
        first: the case as it was found, before it was shrunk.
        seconds: how long to look for more outputs.
    """
    until = time.monotonic() + seconds
    with own_state():
        attempt = Attempt(case, target, device)
        if attempt.error is not None or not target.oracle or any(check(attempt) for _, check in CHECKS):
            return Verdict(kind="agree")
        judgement = judge(case, attempt.step, target.rounding(device))
        if judgement.agrees:
            return Verdict(kind="agree")
        lines = [f"wrong in {line}" for line in places.wrong_places(judgement, attempt.step.batch)]
        found = _outputs(case, first, target, device, until)
        lines += said(found) if found else [READS_HIDDEN] if _is_nan(judgement.kind) else []
    return Verdict(kind=judgement.kind, message=judgement.message, explanation=tuple(lines))


def _is_nan(kind: str) -> bool:
    return kind in ("nan", "lse")


def said(seen: list[Seen], *, seconds: float | None = None) -> list[str]:
    """What explains outputs, in lines that begin with "explanation" or "no explanation"."""
    if all(((right | each.unwritten(part)).all()) for each in seen for part, right in zip(each.parts, each.right, strict=True)):
        return [UNWRITTEN]
    found = explanations(seen) if seconds is None else explanations(seen, seconds=seconds)
    if not found:
        return [f"no explanation: none of {len(VARIANTS)} mistakes, alone or in pairs, has this output in all wrong rows"]
    return [f"{'or' if i else 'explanation'}: {each.sentence}" for i, each in enumerate(found)]


def _outputs(case: Case, first: Case | None, target: Target, device: str, until: float) -> list[Seen]:
    """Wrong outputs of the case, of the case as it was found, and of richer ones."""
    found = []

    def wrong(case: Case) -> bool:
        each = evidence.seen(case, target, device)
        if each is None or each.is_right:
            return False
        found.append(each)
        return True

    random = evidence.with_random_numbers(case)
    if not wrong(random):
        random = case
        wrong(case)
    if first is not None and first != case and time.monotonic() < until:
        wrong(evidence.with_random_numbers(first)) or wrong(first)
    rich = random
    for grow in evidence.grown(random):
        if time.monotonic() < until and wrong(richer := grow(rich)):
            rich = richer
    return found


__all__ = ["explain", "said"]
