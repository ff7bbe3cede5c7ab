"""Explains a failing case: an `Executor` makes this trial in the process of the target."""

import dataclasses
import time
from typing import Any

import msgspec
import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.own_defaults import own_defaults
from attn_fuzz.explain import evidence, places, writes
from attn_fuzz.explain.measured import measured
from attn_fuzz.explain.search import SeenOutput, explanations
from attn_fuzz.mistakes import MISTAKES
from attn_fuzz.run.case.attempt import own_state
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.judge import judge_call
from attn_fuzz.verdict.verdict import Verdict

SECONDS = 6.0
"""The seconds of the CPU for the search for more outputs."""
READS_HIDDEN = (
    "explanation: it reads memory that it must not read: with numbers there instead of NaN the output is right. "
    "What was read has the weight 0, and 0 * NaN is NaN"
)
KEEPS = "explanation: it keeps something of an earlier call: the output is right if no earlier call has another {}"
UNWRITTEN = "explanation: what is wrong was never written"
TELLING = 2
"""The least number of telling outputs that a fact explains."""
_OF_16_BITS = dict.fromkeys(("logits", "products", "maximum", "sums", "outputs"), "q")
_COARSER = {torch.float32: {"operands": "tf32"}, torch.float16: _OF_16_BITS, torch.bfloat16: _OF_16_BITS}
"""Fields of `Rounding` that the author of a target may forget to declare, by the dtype of q."""


@own_defaults()
def explain(case: Case, target: Target, device: str, *, first: Case | None = None, seconds: float = SECONDS) -> Verdict:
    """A verdict whose `explanation` says which mistake has the outputs of a failing case. It is empty if no output is wrong.

    Args:
        first: the case as it was found, before it was shrunk.
        seconds: the time for the search for more outputs.
    """
    if not target.oracle:
        return Verdict(kind="agree")
    with own_state(case):
        lines = _lines(case, first, target, device, time.process_time() + seconds)
    return Verdict(kind="agree", explanation=tuple(lines))


def _lines(case: Case, first: Case | None, target: Target, device: str, until: float) -> list[str]:
    found = _outputs(case, first, target, device, until)
    if not found:
        cases = [evidence.with_random_numbers(case), *([] if first is None else [first])]
        if lines := writes.explanations(cases, target, device):
            return lines
        poisoned, plain = (evidence.seen(case, target, device, fill) for fill in (None, evidence.filled))
        reads = poisoned is not None and plain is not None and not poisoned.is_right and plain.is_right
        return [READS_HIDDEN] if reads else []
    if case.earlier:
        alone = evidence.seen(msgspec.structs.replace(case, earlier=()), target, device)
        if alone is not None and alone.is_right:
            return [KEEPS.format(" or ".join(case.earlier))]
    first_seen = found[0]
    judgement = judge_call(first_seen.call, first_seen.out, first_seen.lse, first_seen.rounding, generic=first_seen.generic)
    return [*places.wrong_places(judgement, first_seen.call.batch), *explanation_lines(found)]


def explanation_lines(seen: list[SeenOutput]) -> list[str]:
    """Lines that explain outputs. The first begins with "explanation", with "perhaps" if it is a guess, or with "no
    explanation". Few outputs, or outputs that are not all explained, leave a guess."""
    if all((right | each.unwritten(part)).all() for each in seen for part, right in zip(each.parts, each.right, strict=True)):
        return [UNWRITTEN]
    found, is_guess = explanations(seen), sum(each.is_telling for each in seen) < TELLING
    # several that are made in the wrong rows alone are made by none of them
    if found and found[0].has_all and (found[0].everywhere or len(found) == 1):
        return _lines_of([each.sentence for each in found], is_guess=is_guess)
    measurements = measured(seen)
    if whole := [words for words, held, everywhere in measurements if everywhere and held >= TELLING]:
        return _lines_of(whole[:1], is_guess=is_guess)
    guesses = [(held, words) for words, held, _ in measurements] + [(each.outputs, each.sentence) for each in found]
    most = max((held for held, _ in guesses), default=0)
    likely = [words for held, words in guesses if held == most > min(TELLING, len(seen) - 1)]
    none = f"no explanation: none of {len(MISTAKES)} mistakes has this output in all wrong rows"
    return [*(_lines_of(likely[:2], is_guess=True) or [none]), *_roundings(seen)]


def _lines_of(words: list[str], *, is_guess: bool) -> list[str]:
    return [f"{'or' if i else 'perhaps' if is_guess else 'explanation'}: {each}" for i, each in enumerate(words)]


def _roundings(seen: list[SeenOutput]) -> list[str]:
    """A line that names the coarser `Rounding` that would allow the outputs: single fields that the target lacks, or all of
    them."""
    q, declared = seen[0].call.q.dtype, seen[0].rounding
    fields = _COARSER.get(q, {})
    missing = {name: dtype for name, dtype in fields.items() if getattr(declared, name) is None}
    alone = [{name: dtype} for name, dtype in missing.items()]
    found = [each for each in alone if _allows(each, seen)] or [each for each in [missing] if each and _allows(each, seen)]
    choices = [", ".join(f"{name}={dtype!r}" for name, dtype in each.items()) for each in found]
    return [f"a Rounding with {' or '.join(choices)} would allow every number: does the kernel round there?"] if choices else []


def _allows(coarser: dict[str, str], seen: list[SeenOutput]) -> bool:
    fields: dict[str, Any] = {**coarser, "exact_division": False}
    wider = [dataclasses.replace(each, rounding=dataclasses.replace(each.rounding, **fields)) for each in seen]
    return all(
        bool((right | other.agrees(part)).all())
        for each, other in zip(seen, wider, strict=True)
        for part, right in zip(each.parts, each.right, strict=True)
    )


def _outputs(case: Case, first: Case | None, target: Target, device: str, until: float) -> list[SeenOutput]:
    """The wrong outputs of the case, of richer cases, and of the case as it was found, which may have several causes."""
    found = []

    def wrong(case: Case) -> bool:
        each = evidence.seen(case, target, device)
        if each is None or each.is_right:
            return False
        found.append(each)
        return True

    rich = evidence.with_random_numbers(case)
    if not wrong(rich):
        rich = case
        wrong(case)
    for grow in evidence.grown(rich):
        if time.process_time() < until and wrong(richer := grow(rich)):
            rich = richer
    # as it was found, it may have several causes
    other = first if first != case and sum(each.is_telling for each in found) < TELLING else None
    if other is not None and not wrong(evidence.with_random_numbers(other)):
        wrong(other)
    return found
