"""Runs a case on a target and reaches a verdict: by checks of memory, by the judge, and by properties."""

import random
import time
from collections.abc import Callable, Sequence

import msgspec
import torch
from attn_contract import MiscompiledError
from attn_contract.rules import label_of
from attn_fuzz.account import asking
from attn_fuzz.account.account import Accounts
from attn_fuzz.cases.case import CHOICES, MODE, Case, CaseError
from attn_fuzz.cases.earlier import restored
from attn_fuzz.cases.own_defaults import own_defaults
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.exact import comparison
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.interpreted import dynamo, program_order, sanitizer
from attn_fuzz.properties.relation import CallTarget, Outputs, again, same_bits
from attn_fuzz.run.case import devices, malformed
from attn_fuzz.run.case.attempt import Attempt, call_attention, own_state
from attn_fuzz.run.case.checks import CHECKS, CHECKS_OF_ERRORS, stray_write
from attn_fuzz.run.case.exceptions import described, message_of
from attn_fuzz.run.case.fence import Fence
from attn_fuzz.run.case.limits import check_no_fault, limit_of
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from attn_fuzz.text import one_line
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.judge import Judgement, check_scores, judge, judge_finite
from attn_fuzz.verdict.rounding import Rounding
from attn_fuzz.verdict.verdict import COMPARED, NOT_CARRIED, Verdict, VerdictKind

PROPERTIES_OF_CASE = 2
SEEDS_OF_SECOND_LOOK = (8 * CHOICES, 16 * CHOICES)
PLANNED_ANEW = {"max_query_len", "max_seq_len", "num_actual_tokens", "requests", MODE}
"""Changes of an earlier call after which the keys of a call may be split into other parts."""
MAX_CAPS, MIN_SCALE = 2.0**64, 2.0**-100
Judge = Callable[[Case, Step, Rounding], Judgement]
"""Compares the outputs of a step with the right ones, given where the target rounds."""


@own_defaults()
def try_case(
    case: Case,
    target: Target,
    device: str,
    judge_step: Judge = judge,
    *,
    exactly: bool = False,
    accounts: Accounts | None = None,
) -> Verdict:
    """Run a case on a target and judge it. A target that raises is a verdict, not an exception.

    A target that promises refusals passes a case outside its support only by refusing it. Any other target passes it if the
    result is right.

    An error beyond the statistical bound may be within the bound HARD. Such a case is run again with two fresh seeds. It fails
    if it fails with one of these seeds, too.

    Args:
        judge_step: judges the outputs.
        exactly: True if the case's own call is made a second time if nothing is wrong with the first, followed in exact mode
            and compared with the formula of attention (`attn_fuzz.exact`). What exact mode cannot carry becomes an event.
        accounts: which mistakes earlier cases would have shown. Then the verdict on a case that agrees says which ones it
            would have. None: nobody asks.

    Raises:
        CaseError: the target's outputs are judged, and the case is too large for the reference. Or the case's captured tensors
            come from another file, or its queries attend to NaN.
        FaultError: the target met a fault of this tool.
    """
    if target.oracle:
        check_scores(case)
    verdict, judgement = _tried(case, target, device, judge_step, accounts)
    if not _may_be_chance(verdict, judgement):
        return followed(case, target, device, verdict) if exactly and verdict.kind == "agree" else verdict
    for more in SEEDS_OF_SECOND_LOOK:
        values = msgspec.structs.replace(case.values, seed=(case.values.seed + more) % (1 << 32))
        again, _ = _tried(msgspec.structs.replace(case, values=values), target, device, judge_step)
        if again.failed:
            return verdict
    return msgspec.structs.replace(verdict, kind="agree", message="", differences=())


@own_defaults()
def try_fenced(case: Case, target: Target, device: str, fences: Sequence[Fence]) -> Verdict:
    """Make the calls of a case with one fence after another. Outputs are not judged.

    The verdict is "fence" if a GPU tells of an illegal access. On a CPU, and under some drivers of GPUs, such an access ends
    the process.

    Raises:
        NoPagesError: the device has no memory between unmapped pages.
    """
    seconds = 0.0
    for each in fences:
        try:
            attempt = Attempt(case, target, device, fenced=each)
        except torch.OutOfMemoryError as error:
            return Verdict(kind="raised", message=described(error), about=type(error).__name__)
        seconds += attempt.seconds["build"] + attempt.seconds["target"]
        if attempt.error is not None and not devices.is_sound(device):
            first_line = one_line(str(attempt.error).partition("\n")[0], 200)
            return Verdict(kind="fence", message=first_line, about=each.words, seconds={"target": seconds})
        for kind, check in CHECKS_OF_ERRORS:
            if wrong := check(attempt):
                where = f"with unmapped pages {each.words}"
                about, message = f"{wrong.about} {where}", f"{where}: {wrong.message}"
                return Verdict(kind=kind, message=message, about=about, seconds={"target": seconds})
    return Verdict(kind="agree", seconds={"target": seconds})


@own_defaults()
def try_malformed(case: Case, target: Target, device: str) -> Verdict:
    """Make the calls of a case, one of them corrupted. If that is accepted, it is judged by what the legal call gives."""
    corruption, corrupting = malformed.corrupting(case, target)
    verdict, _ = _tried(msgspec.structs.replace(case, earlier=()), corrupting, device, judge)
    return malformed.named(verdict, corruption)


def _may_be_chance(verdict: Verdict, judgement: Judgement | None) -> bool:
    """True if the only fault is an error beyond the statistical bound. Independent roundings break it once in many millions."""
    return judgement is not None and verdict.failed and verdict.kind == judgement.kind and not judgement.breaks_hard


def _tried(
    case: Case, target: Target, device: str, judge_step: Judge, accounts: Accounts | None = None
) -> tuple[Verdict, Judgement | None]:
    """The verdict on one attempt, and the judgement, or None if the outputs were not judged."""
    attempt = Attempt(case, target, device)
    attended, paths = time.perf_counter(), attempt.events

    def verdict(
        kind: VerdictKind, message: str, judgement: Judgement | None = None, about: str = "", ratio: float = 0.0
    ) -> tuple[Verdict, Judgement | None]:
        seconds = {**attempt.seconds, "judge": time.perf_counter() - attended}
        plain = Verdict(kind=kind, message=message, about=about, ratio=ratio, seconds=seconds, events=attempt.events)
        plain = msgspec.structs.replace(plain, launches=attempt.launches, left_out=tuple(attempt.left_out))
        return (plain if judgement is None else _with_judgement(plain, attempt, judgement)), judgement

    if attempt.error is not None:
        if limit := limit_of(attempt.error):
            return verdict("limit", described(attempt.error), about=limit)
        check_no_fault(attempt.error)
    if isinstance(attempt.error, FailedCheckError):
        error = attempt.error
        return verdict(error.kind, f"{error}{attempt.during}", about=error.about, ratio=error.ratio)
    for kind, check in CHECKS:
        if wrong := check(attempt):
            shows_outputs = check is stray_write and target.oracle
            judgement = judge_step(case, attempt.step, target.rounding(device)) if shows_outputs else None
            return verdict(kind, wrong.message, judgement, wrong.about)
    if attempt.error is not None:
        message = message_of(attempt.error)
        return verdict("refused", message, about=message if isinstance(attempt.error, MiscompiledError) else "")
    judgement = judge_step(case, attempt.step, target.rounding(device)) if target.oracle else judge_finite(attempt.step)
    if case.values.kind == "captured" and any(worst.expected != worst.expected for worst in judgement.differences):
        raise CaseError(f"values.file: {case.values.file}: NaN or infinity in what a request attends to")
    if not judgement.agrees:
        about = f"{attempt.not_refused}{judgement.differences[0].tensor}"
        return verdict(judgement.kind, f"{attempt.not_refused}{judgement.message}", judgement, about)
    if not attempt.beyond and (wrong := _wrong_by_properties(attempt)):
        kind, about, message = wrong
        return verdict(kind, message, judgement if kind == "property" else None, about)
    agrees, _ = verdict("agree", "", judgement)
    # a mistake may index past a tensor: on a GPU that breaks the process, on a CPU it is an error
    may_be_asked = target.oracle and target.attention is not REFERENCE_FP32.attention and not attempt.step.q.is_cuda
    if accounts is not None and may_be_asked:
        agrees = _with_answers(agrees, attempt, judgement, paths, accounts)
    return agrees, judgement


def _with_answers(
    verdict: Verdict, attempt: Attempt, judgement: Judgement, paths: Sequence[str], accounts: Accounts
) -> Verdict:
    case, started, where = attempt.case, time.perf_counter(), asking.places(attempt.case, paths)
    with own_state(case):
        rounding = attempt.target.rounding(attempt.device)
        answers = asking.answers(case, attempt.step, judgement, rounding, where, accounts)
    seconds = {**verdict.seconds, "account": time.perf_counter() - started}
    return msgspec.structs.replace(verdict, places=where, answers=answers, seconds=seconds)


def _with_judgement(verdict: Verdict, attempt: Attempt, judgement: Judgement) -> Verdict:
    return msgspec.structs.replace(
        verdict,
        differences=judgement.differences,
        ratio=judgement.ratio,
        ratios=ratios.counts(attempt.case, judgement),
        pictures=ratios.pictures(attempt.case, attempt.step, judgement),
    )


def followed(case: Case, target: Target, device: str, verdict: Verdict) -> Verdict:
    """The verdict on a case with which nothing is wrong so far, after its call was followed in exact mode.

    The formula is that of the case as it should be: of the cache that the reference writes, and of inputs that nobody has
    changed.
    """
    if dynamo.begun:
        return msgspec.structs.replace(
            verdict, events=(*verdict.events, f"{NOT_CARRIED}: Dynamo compiles what the target calls")
        )
    started = time.perf_counter()
    attempt = Attempt(case, target, device, follows=True)
    assert attempt.followed is not None
    event, wrong = COMPARED, None
    try:
        if attempt.error is not None:
            raise NotCarriedError(attempt.followed.refusal or f"{type(attempt.error).__name__}: {message_of(attempt.error)}")
        if case.logits_soft_cap is not None and abs(case.scale) > MAX_CAPS * case.logits_soft_cap:
            raise NotCarriedError("kernels may clamp a scale above 2^64 times logits_soft_cap")
        if 0 < abs(case.scale) < MIN_SCALE:
            raise NotCarriedError("kernels may clamp a scale below 2^-100")
        wrong = comparison.inequality(attempt.followed, attempt.step, attempt.expected)
    except NotCarriedError as error:
        event = f"{NOT_CARRIED}: {attempt.followed.refusal or error}"
    seconds = {**verdict.seconds, "judge": verdict.seconds["judge"] + time.perf_counter() - started}
    verdict = msgspec.structs.replace(verdict, events=(*verdict.events, event), seconds=seconds)
    if wrong is None:
        return verdict
    return msgspec.structs.replace(verdict, kind="exact", message=wrong.message, about=wrong.tensor)


def _wrong_by_properties(attempt: Attempt) -> tuple[VerdictKind, str, str] | None:
    """The failure that properties find in variants of the step, as kind, about and message of a verdict; None if they hold."""
    try:
        with own_state(attempt.case), program_order.programs(attempt.case.program_order, attempt.case.values.seed):
            broken = _broken_property(attempt)
    except sanitizer.Violation as violation:
        return "sanitizer", violation.about, f"on a variant of the step: {violation}"
    except FailedCheckError as error:
        return error.kind, error.about, f"on a variant of the step: {error}"
    except Exception as error:
        if limit := limit_of(error):
            return "limit", limit, f"on a variant of the step: {described(error)}"
        check_no_fault(error)
        return "raised", type(error).__name__, f"on a variant of the step: {described(error)}"
    return ("property", *broken) if broken else None


def _broken_property(attempt: Attempt) -> tuple[str, str] | None:
    """The name of the first property that does not hold, and a message; or None. Properties become events of the attempt, and
    those that do not apply to the case are `left_out`.

    Each property needs more calls of the target. So a case checks only PROPERTIES_OF_CASE of the properties that apply to it.
    The case's seed chooses them. A launch that an earlier call has left is looked for in all cases in which it may be another.
    """
    properties = attempt.target.properties
    calls = asked = 0

    def call_target(part: Step) -> None:
        nonlocal calls
        calls += 1
        call_attention(part, attempt.target)

    if message := _left_by_earlier_calls(attempt, call_target):
        return "earlier calls", f"without the earlier calls: {message}"
    for each in random.Random(attempt.case.values.seed).sample(properties, len(properties)):
        if (out := each.left_out(attempt.called)) is not None:
            attempt.left_out += ((each.name, f"{label_of(out[0])}: {out[1]}"),)
            continue
        before = calls
        if message := each(attempt.called, call_target):
            return each.name, f"{each.name}: {message}"
        if calls > before:
            attempt.events += (each.name,)
            asked += 1
        else:
            attempt.left_out += ((each.name, f"it applies to {each.applies}"),)
        if asked == PROPERTIES_OF_CASE:
            break
    return None


def _left_by_earlier_calls(attempt: Attempt, call_target: CallTarget) -> str | None:
    """The first bit that the call gives only after the earlier calls. Their launch may be right within the bound.

    q is random: sums of a case's own numbers may be the same in any order.
    """
    if not {*attempt.case.earlier} & PLANNED_ANEW or not attempt.target.repeats or attempt.target.compiles:
        return None
    step = attempt.called
    q = torch.randn(step.q.shape, generator=torch.Generator().manual_seed(attempt.case.values.seed))
    with restored([step.q]):
        step.q.copy_(q)
        after = again(step, call_target)
        attempt.target.forget()
        return same_bits(Outputs.of(again(step, call_target)), Outputs.of(after))
