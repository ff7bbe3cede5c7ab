"""A function under torch.compile is run compiled, is counted, and a run says so: also where Dynamo leaves it to eager."""

import json

import pytest


@pytest.fixture
def fuzzed(attn_parity, tmp_path):
    """The end of a run of a planted target, and the run's JSON."""

    def run(name: str, examples: int, *options: object):
        drawn = ("--examples", examples, "--seed", 1, "--corpus", "none", "--workers", 1, "--json", "run.json")
        ended = attn_parity("fuzz", "--target", f"planted_compiled:{name}", *drawn, *options)
        return ended, json.loads((tmp_path / "run.json").read_text())

    return run


@pytest.mark.parametrize("name", ["RIGHT", "FLEX", pytest.param("FLEX_BY_INDUCTOR", marks=pytest.mark.nightly)])
def test_a_right_function_is_compiled_in_every_case(name, fuzzed):
    ended, run = fuzzed(name, 6)
    assert ended.code == 0, ended.out + ended.err
    assert run["events"]["compiled by Dynamo"] == 6
    assert "frames of Dynamo: " in ended.err
    assert " 0 left to eager" in ended.err
    assert "all agree, largest error" in ended.out


@pytest.mark.parametrize("name", ["DOUBLES", pytest.param("DOUBLES_BY_INDUCTOR", marks=pytest.mark.nightly)])
def test_a_function_that_is_wrong_only_where_it_is_compiled_is_found_in_nearly_every_case(name, fuzzed):
    ended, _ = fuzzed(name, 12, "--keep-going")
    *_, last = ended.out.splitlines()
    assert ended.code == 1, ended.out + ended.err
    assert int(last.split(" later cases")[0].split()[-1]) >= 8, last


def test_a_run_says_that_dynamo_left_frames_to_eager(fuzzed):
    ended, run = fuzzed("BREAKS", 4)
    assert ended.code == 0, ended.out
    assert run["events"]["left to eager by Dynamo"] == 4
    assert "all agree, not all of it compiled" in ended.out
    assert "warning: Dynamo left frames to eager" in ended.err


def test_what_dynamo_cannot_compile_of_this_tool_is_a_limit(fuzzed):
    ended, run = fuzzed("TRACES_THE_TOOL", 2)
    assert ended.code == 3, ended.out
    assert list(run["limits"])[0].startswith("torch.compile cannot compile what this tool does at interpreted/new_memory.py:")
