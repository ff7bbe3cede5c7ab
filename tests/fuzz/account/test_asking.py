"""The account of a run says which mistakes its cases would have shown. A kernel that makes such a mistake is wrong there."""

import dataclasses
from pathlib import Path

import pytest
import torch
from attn_contract import AttentionType
from attn_fuzz.account import account, asking, gaps
from attn_fuzz.account.account import AGREES, ANYWHERE, DIFFERS, SIZES, Account
from attn_fuzz.cases.case import Case
from attn_fuzz.mistakes import MISTAKES
from attn_fuzz.mistakes.mistake import NOT_HERE
from attn_fuzz.mistakes.part import parts_of
from attn_fuzz.report import declared
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.run.shard import FuzzPlan, drawn
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING, WITH_LATENT
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.judge import Judgement, judge_call
from attn_fuzz.verdict.oracle import as_stored, requests
from attn_reference import attend

ROUNDING = TRITON.rounding("cpu")


def cases(seed: int, count: int) -> list[Case]:
    return drawn(FuzzPlan(target="triton", device="cpu", examples=count, seed=seed, folder=Path()))


def judged(case: Case, attempt: Attempt, out: torch.Tensor, lse: torch.Tensor | None) -> Judgement:
    return judge_call(attempt.step, out, lse, ROUNDING, generic=case.values.kind == "random")


def with_mistake(attempt: Attempt, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The outputs of a kernel that makes a mistake wherever it can."""
    step = attempt.step
    out, lse = step.out.clone(), None if step.lse is None else step.lse.clone()
    rows = out.view(len(out), step.layer.num_heads, step.layer.v_head_size)
    for part in parts_of(step, requests(step)):
        try:
            other = SIZES[index][1](part)
            state = None if other is None else attend(other.request, other.layer)
        except NOT_HERE:
            continue
        if other is None or state is None:
            continue
        wrong = state.out, state.lse.T
        wrong_out, wrong_lse = wrong if other.outputs is None else other.outputs(*wrong)
        rows[part.request.rows] = as_stored(wrong_out.float(), out.dtype, other.layer)
        if lse is not None:
            lse[:, part.request.rows] = wrong_lse.T.float()
    return out, lse


@pytest.mark.parametrize("seed", range(3))
def test_a_kernel_that_makes_a_mistake_that_a_case_would_have_shown_is_wrong_there(seed):
    """Beyond twice the bound of the mistake's case, roundings cannot hide it; the bound is that of the right output."""
    accounts, asked = {}, 0
    for case in cases(seed, 12):
        attempt = Attempt(case, REFERENCE_FP32, "cpu")
        judgement = judged(case, attempt, attempt.step.out, attempt.step.lse)
        where = asking.places(case, ())
        answers = asking.answers(case, attempt.step, judgement, ROUNDING, where, accounts)
        accounts = account.added(accounts, where, answers)
        shown = [index for index, answer in enumerate(answers) if answer == DIFFERS]
        for index in shown[seed::7]:
            asked += 1
            assert not judged(case, attempt, *with_mistake(attempt, index)).agrees, SIZES[index][0].sentence
    assert asked > 20


def test_a_mistake_that_cases_can_have_is_seen_in_some():
    """A rule or setting that is drawn and whose loss no case shows would be a fault of the strategies, or of the table."""
    accounts = {}
    for case in cases(1, 120):
        attempt = Attempt(case, REFERENCE_FP32, "cpu")
        judgement = judged(case, attempt, attempt.step.out, attempt.step.lse)
        where = asking.places(case, ())
        accounts = account.added(accounts, where, asking.answers(case, attempt.step, judgement, ROUNDING, where, accounts))
    rows = gaps.rows(accounts[ANYWHERE])
    assert [str(row) for row in rows if row.asked >= 2 * asking.MANY and not row.sizes_shown] == []
    assert sum(row.is_seen for row in rows) > 0.9 * len(rows)


def test_an_account_adds_up():
    answers = bytes([DIFFERS, AGREES, *bytes(len(SIZES) - 2)])
    first = account.added({}, (ANYWHERE, "split"), answers)
    both = account.together([first, first, {}])
    assert both["split"] == both[ANYWHERE] == Account(bytes([2, 2, *bytes(len(SIZES) - 2)]), bytes([2, *bytes(len(SIZES) - 1)]))
    assert account.added(first, (ANYWHERE,), b"") == first


def test_what_was_shown_enough_is_not_asked_again():
    shown = Account().with_answers(bytes([DIFFERS] * len(SIZES)))
    assert sum(Account().needs(ANYWHERE)) == len(SIZES)
    assert sum(shown.plus(shown).plus(shown).needs(ANYWHERE)) == 0
    of_layout = {SIZES[index][0].about for index, need in enumerate(Account().needs("SHUFFLED")) if need}
    assert of_layout == {"num_kv_heads", "keys and values", "block_table", "strides", "keys past the end"}


def test_every_mistake_says_what_it_is_about():
    assert [mistake.sentence for mistake in MISTAKES if not mistake.about] == []
    assert gaps.unknown(["window", MISTAKES[0].sentence]) == ""
    assert gaps.unknown(["windw"]).endswith("did you mean window?")


def test_lines_name_what_no_case_could_have_shown():
    window = [index for index, (mistake, _) in enumerate(SIZES) if mistake.about == "window"]
    everything = bytes([DIFFERS] * len(SIZES))
    without_window = bytes(0 if index in window else DIFFERS for index in range(len(SIZES)))
    one_agrees = bytes(AGREES if index == window[0] else DIFFERS for index in range(len(SIZES)))
    subjects = {"window", "keys"}
    assert gaps.lines({}, subjects) == []
    assert gaps.lines({ANYWHERE: Account().with_answers(everything)}, subjects) == []
    assert gaps.lines({ANYWHERE: Account().with_answers(without_window)}, subjects) == [
        "not seen, since no case has any: mistakes about window"
    ]
    assert gaps.lines({ANYWHERE: Account().with_answers(without_window)}, set()) == []
    accounts = {ANYWHERE: Account().with_answers(one_agrees), "split": Account().with_answers(everything)}
    assert gaps.lines(accounts, subjects) == ["not seen: the window is lost (drawn 1 time, never beyond the bound)"]
    accounts = {ANYWHERE: Account().with_answers(everything), "split": Account().with_answers(one_agrees)}
    assert gaps.lines(accounts, subjects) == ["not seen in split: the window is lost"]
    assert gaps.missing(accounts, ["window"]) == []
    assert len(gaps.missing({}, ["window"])) == 12


def test_mistakes_about_what_a_target_declares_away_are_no_gap():
    dense = dataclasses.replace(EVERYTHING, attn_types=(AttentionType.ENCODER,), output_dtypes=())
    assert {"window", "sinks"} <= declared.subjects(dense)
    assert declared.subjects(dense).isdisjoint(
        {"qq_bias", "bidirectional_ranges", "block_table", "k_scale, v_scale", "output_scale"}
    )
    assert {*gaps.SUBJECTS} - declared.subjects(WITH_LATENT) == set()
    assert declared.away(dataclasses.replace(EVERYTHING, rules=("window",)))["rules"][:2] == ["sink_tokens", "chunked_local"]
    only = dataclasses.replace(EVERYTHING, required_rules=("sinks",), unquantized=False)
    assert declared.away(only)["without"] == ["sinks", "a quantized cache"]


def test_what_an_engine_never_sends_is_told_with_its_code():
    engine = Engine(windows=("left",), empty_batches=False, cited={"windows": "flash.py:7"})
    support = dataclasses.replace(EVERYTHING, engine=engine)
    assert declared.line(support)[0].endswith("engine: windows (flash.py:7), empty_batches")
    with pytest.raises(ValueError, match=r"Engine\.cited: got 'slack', expected fields that it restricts: windows"):
        dataclasses.replace(engine, cited={"slack": "flash.py:8"})
