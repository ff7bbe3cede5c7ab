"""A run of a target goes through the modes that the target declares, with a share of its examples."""

import json
from pathlib import Path

import msgspec
import pytest
from attn_fuzz.run import runner
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import modes, registry

WRONG_IN_A_MODE = """
import attn_reference
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Rounding, Support, Target
from attn_fuzz.targets.modes import returned

def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

def attend(q, k, v, kv_cache, layer, batch, *, out, lse):
    return 2 * attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

TARGET = Target(
    name="mine", description="wrong without out", attention=attention, refuses=False,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.BLOCKS_FIRST_NHD,), rules=("window",)),
    rounding=lambda device: Rounding(keys_per_tile=64), modes={"returned": returned.mode(attend)},
)
"""


def plan(target: str, **fields) -> FuzzPlan:
    return FuzzPlan(**{"device": "cpu", "examples": 300, "seed": 1, "folder": Path(), **fields}, target=target)


def through(examples: int, seed: int = 1, target: str = "triton") -> list[FuzzPlan]:
    bare = plan(target, examples=examples, seed=seed)
    in_modes = [msgspec.structs.replace(bare, target=name) for name in registry.with_modes(target, "cpu")[1:]]
    return runner.through_modes(bare, in_modes)


def test_a_run_has_all_modes_of_its_target_and_as_many_examples_as_asked():
    shards = through(300)
    assert sum(shard.examples for shard in shards) == 300
    assert {shard.target for shard in shards} == {*registry.with_modes("triton", "cpu")}
    assert {"triton@returned", "triton@far", "triton@planned"} < {shard.target for shard in shards}
    assert len({shard.seed for shard in shards}) == len(shards)
    assert shards[0].target == "triton"


def test_an_example_in_a_dear_mode_counts_for_several():
    examples = {shard.target: shard.examples for shard in through(300)}
    assert examples["triton@prompts"] * modes.cost("triton@prompts") == pytest.approx(examples["triton@far"], abs=2)
    assert modes.cost("triton@far") == 1 < modes.cost("triton@planned") < modes.cost("triton-latent@scaled@prompts@planned")


def test_the_cases_in_no_mode_are_the_first_of_those_without_modes():
    bare = [shard for shard in through(300) if shard.target == "triton"]
    alone = runner.shards(plan("triton"))
    assert [shard.seed for shard in bare] == [shard.seed for shard in alone]
    assert all(fewer.examples < more.examples for fewer, more in zip(bare, alone, strict=True))


def test_in_a_short_run_the_seed_says_which_modes_have_examples():
    assert [shard.target for shard in through(30)] == ["triton"]
    of_seeds = [{shard.target for shard in through(90, seed)} for seed in range(6)]
    assert all(len(targets) == 3 for targets in of_seeds)
    assert set().union(*of_seeds) == {*registry.with_modes("triton", "cpu")}


def test_a_long_run_meets_its_modes_early():
    targets = [shard.target for shard in through(40_000)]
    first = {target: targets.index(target) for target in registry.with_modes("triton", "cpu")}
    assert max(first.values()) < len(targets) / 2


def test_a_target_named_in_a_mode_is_alone_and_a_mode_that_cannot_run_is_left_out():
    assert registry.with_modes("triton@far", "cpu") == ["triton@far"]
    assert registry.with_modes("reference-fp32", "cpu") == ["reference-fp32"]
    assert "triton@planned" not in registry.with_modes("triton", "cuda")


def test_one_process_runs_a_target_in_its_modes_and_no_other(tmp_path):
    def executor(target, **fields):
        return Executor(target, "cpu", 9.0, tmp_path / "case.json", **fields)

    assert executor("triton").serves(executor("triton@far"))
    assert not executor("triton").serves(executor("triton-latent@far"))
    assert not executor("triton").serves(executor("triton@gfx942"))
    assert not executor("triton").serves(executor("triton@far", sanitize=True))


def test_what_fails_in_a_mode_alone_is_found_and_replayed(attn_parity, tmp_path):
    (tmp_path / "mine.py").write_text(WRONG_IN_A_MODE)
    options = ("fuzz", "--target", "mine:TARGET", "--examples", 40, "--seed", 1, "--corpus", "none", "--json", "run.json")
    ended = attn_parity(*options)
    assert ended.code == 1
    found = json.loads((tmp_path / "run.json").read_text())["failures"][0]
    assert found["case"]["target"] == "mine:TARGET@returned"
    assert found["explanation"]
    assert attn_parity("replay", found["case_file"], "--target", "mine:TARGET@returned").code == 1
    assert attn_parity(*options, "--no-modes").code == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["examples"], run["in_modes"]) == (40, {})


def test_a_run_says_how_many_examples_were_in_modes(attn_parity, tmp_path):
    (tmp_path / "mine.py").write_text(WRONG_IN_A_MODE.replace("2 * ", ""))
    options = ("fuzz", "--target", "mine:TARGET", "--examples", 40, "--seed", 1, "--corpus", "none", "--json", "run.json")
    ended = attn_parity(*options)
    assert ended.code == 0
    assert "examples in modes: 10 returned" in ended.err
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["examples"], run["in_modes"]) == (40, {"returned": 10})
    assert any("@returned" in mistake["places"] for mistake in run["account"])
