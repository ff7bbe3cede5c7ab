"""A function under torch.compile is run compiled, is counted, and a run says so: also where Dynamo leaves it to eager."""

from collections.abc import Callable

import pytest
from attn_fuzz.report.run import of_frames
from attn_fuzz.run import shard
from attn_fuzz.run.processes import executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.verdict.verdict import COMPILED, IN_EAGER, Verdict


@pytest.fixture
def verdicts(tmp_path) -> Callable[..., list[Verdict]]:
    """The verdicts on the first cases of a planted target, all in one process."""

    def run(name: str, examples: int, **fields) -> list[Verdict]:
        plan = FuzzPlan(target=f"planted_compiled:{name}", device="cpu", examples=examples, seed=1, folder=tmp_path, **fields)
        cases = shard.drawn(plan)
        with shard.start_executor(plan) as started:
            return [started.run(case) for case in cases]

    return run


@pytest.mark.parametrize(
    "name", ["FLEX", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("RIGHT", "FLEX_BY_INDUCTOR"))]
)
def test_a_right_function_is_compiled_and_agrees(name, verdicts):
    found = verdicts(name, 3)
    assert [each.kind for each in found] == ["agree"] * 3, found
    assert all(COMPILED in each.events and IN_EAGER not in each.events for each in found)
    assert found[0].frames["compiled"] > 0


@pytest.mark.parametrize("name", ["DOUBLES", pytest.param("DOUBLES_BY_INDUCTOR", marks=pytest.mark.nightly)])
def test_a_function_that_is_wrong_only_where_it_is_compiled_is_found_as_often_as_one_that_always_is(name, verdicts):
    found, always = ([each.failed for each in verdicts(each, 8)] for each in (name, "ALWAYS_DOUBLES"))
    assert found == always
    assert any(always)


@pytest.mark.nightly
def test_frames_that_dynamo_leaves_to_eager_are_counted_and_told(verdicts):
    found = verdicts("BREAKS", 2)
    assert all(IN_EAGER in each.events for each in found), found
    assert "warning: Dynamo left frames to eager" in "".join(of_frames(found[0].frames))


@pytest.mark.nightly
def test_a_run_with_frames_in_eager_is_no_bare_agreement(attn_parity):
    drawn = ("--examples", 2, "--seed", 1, "--corpus", "none", "--workers", 1)
    ended = attn_parity("fuzz", "--target", "planted_compiled:BREAKS", *drawn)
    assert "all agree, not all of it compiled" in ended.out
    assert "warning: Dynamo left frames to eager" in ended.err


@pytest.mark.nightly
def test_what_dynamo_cannot_compile_of_this_tool_is_a_limit(verdicts):
    (found,) = verdicts("TRACES_THE_TOOL", 1)
    assert found.kind == "limit", found
    assert found.about.startswith("torch.compile cannot compile what this tool does at cases/poison.py:")


@pytest.mark.nightly
def test_a_compilation_without_an_end_is_a_limit_and_not_hung(verdicts, monkeypatch):
    monkeypatch.setattr(executor, "COMPILE_SECONDS", 0.01)
    (found,) = verdicts("DOUBLES", 1)
    assert found.kind == "limit"
    assert found.message == "Dynamo has compiled for 0.01 s"
