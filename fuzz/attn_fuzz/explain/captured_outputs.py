"""Judges and explains the outputs that a captured call keeps, without a kernel."""

import json

from attn_contract import ContractError
from attn_fuzz.cases import captures, tensors
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.cases.tensors import Step
from attn_fuzz.explain import explanation, places
from attn_fuzz.explain.search import SeenOutput
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.judge import judge_call
from attn_fuzz.verdict.live import ROUNDING, UNKNOWN_KERNEL
from attn_fuzz.verdict.rounding import Rounding
from attn_fuzz.verdict.verdict import Verdict


def step(case: Case) -> Step | None:
    """The step of a captured case with the outputs that were kept; None if none were.

    Raises:
        CaseError: the file of tensors cannot be read, or is not the one that the case names.
    """
    if case.values.kind != "captured":
        return None
    held = captures.load(case)
    if "out" not in held:
        return None
    built = tensors.build(case)
    rows = case.query_start_loc[-1]
    built.out.view(built.q.shape[0], case.num_heads, case.v_head_size)[:rows] = held["out"]
    if built.lse is not None:
        built.lse[:, :rows] = held["lse"]
    return built


def verdict(case: Case, *, explains: bool = False) -> Verdict | None:
    """The verdict on the outputs that a captured case keeps; None if it keeps none. The HARD bound decides, as in a recording.

    Args:
        explains: True to search for mistakes that explain a wrong output.

    Raises:
        CaseError: as for `step`; or a request attends to NaN, or the file names a rounding that does not exist.
    """
    built = step(case)
    if built is None:
        return None
    try:
        kept = captures.metadata(case).get(ROUNDING)
        rounding = Rounding(**json.loads(kept)) if kept else UNKNOWN_KERNEL
        judgement = judge_call(built, built.out, built.lse, rounding)
    except (ContractError, TypeError, ValueError) as error:
        raise CaseError(f"{case.values.file}: its outputs cannot be judged: {error}") from None
    lines = list[str]()
    if explains and not judgement.agrees:
        out = built.out if built.out.dim() == 3 else built.out.unflatten(1, (case.num_heads, case.v_head_size))
        lines = places.wrong_places(judgement, built.batch)
        lines += explanation.explanation_lines([SeenOutput(built, out, built.lse, rounding, generic=False)])
    return Verdict(
        kind=judgement.kind,
        message=judgement.message,
        about=judgement.differences[0].tensor if judgement.differences else "",
        differences=judgement.differences,
        ratio=judgement.ratio,
        ratios=ratios.counts(case, judgement),
        pictures=ratios.pictures(case, built, judgement),
        explanation=tuple(lines),
    )
