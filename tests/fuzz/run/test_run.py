"""One seed is one run, whoever runs it; what breaks the fuzzer is not blamed on the kernel; Ctrl-C loses nothing."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run import drawing, runner, shard
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import DeclarationError
from attn_fuzz.targets.triton import GPU_STEPS_PER_LAYER


def test_a_seed_means_the_same_cases(fuzz_here):
    _, once = fuzz_here("planted:FLASH", examples=15, seed=5)
    _, again = fuzz_here("planted:FLASH", examples=15, seed=5)
    _, other = fuzz_here("planted:FLASH", examples=15, seed=6)
    assert once == again
    assert len(once) == 15
    assert once != other


@pytest.mark.nightly
def test_what_is_drawn_is_what_a_run_draws(fuzz_here, tmp_path):
    _, ran = fuzz_here("planted:FLASH", examples=20, seed=7)
    assert shard.drawn(FuzzPlan(target="planted:FLASH", device="cpu", examples=20, seed=7, folder=tmp_path)) == ran


DRAW = """
import pathlib, sys
import numbers_of_others
from attn_fuzz.cases import case_file
from attn_fuzz.run import shard
plan = shard.FuzzPlan(target="triton", device="cpu", examples=60, seed=0, folder=pathlib.Path())
sys.stdout.write("".join(map(case_file.dumps, shard.drawn(plan))))
"""


@pytest.mark.nightly
def test_neither_hashes_nor_other_modules_change_what_is_drawn(tmp_path, child_environment):
    """Hypothesis mixes in numbers from the source of whatever is loaded; a seed would mean other cases after every edit.

    Here all modules of the tests are loaded. The other process has a seed of hashes of its own, and another module.
    """
    (tmp_path / "numbers_of_others.py").write_text("NUMBERS = (102, 345, 12345, 0.125)")
    environment = child_environment | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    command = [sys.executable, "-c", DRAW]
    drawn = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    plan = FuzzPlan(target="triton", device="cpu", examples=60, seed=0, folder=tmp_path)
    assert drawn == "".join(map(case_file.dumps, shard.drawn(plan)))


def test_shards_cover_the_plan_with_seeds_of_their_own(tmp_path):
    plan = FuzzPlan(target="reference-fp32", device="cpu", examples=1001, seed=3, folder=tmp_path)
    shards = runner.shards(plan)
    assert sum(each.examples for each in shards) == 1001
    assert len({each.seed for each in shards}) == len(shards) > 1


def test_families_of_a_shard_run_apart_on_a_gpu_and_are_those_of_the_shard(tmp_path):
    plan = FuzzPlan(target="triton", device="cuda", examples=14, seed=3, folder=tmp_path)
    support = registry.load(plan.target).support(plan.device)
    whole, turns = shard.drawn(plan), [shard.drawn(turn) for turn in runner.in_turns([plan], support, 16)]
    families = len(turns) // runner.PARTS
    assert families == -(-14 // support.steps_per_layer)
    assert min(map(len, turns[:families])) > 0
    assert sorted(map(repr, whole)) == sorted(repr(case) for turn in turns for case in turn)
    first_family = [case for turn in turns[::families] for case in turn]
    assert first_family == whole[: len(first_family)]
    many = [msgspec.structs.replace(plan, examples=support.steps_per_layer * runner.FEW_FAMILIES)]
    assert len(runner.in_turns(many, support, 16)) == runner.FEW_FAMILIES


@pytest.mark.parametrize("workers", [1, 2, 7, 16, 500])
def test_shards_on_a_cpu_keep_all_workers_busy(tmp_path, workers):
    plan = FuzzPlan(target="triton", device="cpu", examples=300, seed=3, folder=tmp_path)
    whole = runner.shards(plan)
    turns = runner.in_turns(whole, registry.load(plan.target).support(plan.device), workers)
    assert min(workers, 300 // runner.TURN_EXAMPLES) <= len(turns) <= 300 // runner.TURN_EXAMPLES
    assert workers > len(whole) or turns == whole


def test_layers_are_counted_once_where_several_workers_share_a_family(tmp_path):
    plan = FuzzPlan(target="triton", device="cuda", examples=14, seed=3, folder=tmp_path)
    target = registry.load(plan.target)
    pieces = runner.in_turns([plan], target.support(plan.device), 16)

    def layers(plan):
        tally = Tally()
        drawing.draw_cases(plan, target, lambda case, number: None, tally)
        return tally.families

    assert 14 // GPU_STEPS_PER_LAYER <= layers(plan) < 14
    assert sum(map(layers, pieces)) == layers(plan)


def test_workers_that_divide_a_shard_run_its_cases_each_by_its_number(tmp_path):
    """By the number, one case in 25 is compared exactly."""
    plan = FuzzPlan(target="triton", device="cpu", examples=30, seed=3, folder=tmp_path)
    target = registry.load(plan.target)
    drawn = {}
    for turn in runner.in_turns([plan], target.support(plan.device), 3):
        drawing.draw_cases(turn, target, lambda case, number: drawn.update({number: case}), Tally())
    assert [drawn[number] for number in range(1, 31)] == shard.drawn(plan)


def test_a_declaration_that_admits_no_case_is_told_in_a_line(tmp_path):
    target = registry.load("reference-fp32")
    support = dataclasses.replace(target.support("cpu"), exclude=lambda case: "no heads")
    nothing = dataclasses.replace(target, support=lambda device: support, refuses=False)
    plan = FuzzPlan(target="mine", device="cpu", examples=2, seed=1, folder=tmp_path)
    told = r"^target mine: its Support admits none of (\d+) drawn cases: \1 for Support.exclude: no heads$"
    with pytest.raises(DeclarationError, match=told):
        drawing.draw_cases(plan, nothing, lambda case, number: None, Tally())


def test_turns_together_tell_what_their_shard_tells(tmp_path):
    plan = FuzzPlan(target="planted:FLASH", device="cpu", examples=12, seed=3, folder=tmp_path)
    whole, *turns = runner.run(
        [plan, *(msgspec.structs.replace(plan, turn=(i, 3)) for i in range(3))], 1, stop_at_failure=True
    ).progress
    assert [progress.examples for progress in turns] == [4, 4, 4]
    assert sum((Counter(progress.features) for progress in turns), Counter()) == whole.features
    assert [progress.rejected for progress in turns] == [whole.rejected, {}, {}]


def test_a_seed_means_the_same_run_with_any_number_of_workers(tmp_path):
    plan = FuzzPlan(target="planted:FLASH", device="cpu", examples=20, seed=3, folder=tmp_path)
    plans = [plan, FuzzPlan(target="planted:FLASH", device="cpu", examples=20, seed=4, folder=tmp_path)]
    one, two = (runner.run(plans, workers, stop_at_failure=True) for workers in (1, 2))
    assert one.finished == two.finished == {0, 1}
    assert [p.examples for p in one.progress] == [20, 20]
    assert [(p.examples, p.ratio) for p in one.progress] == [(p.examples, p.ratio) for p in two.progress]
    assert list(tmp_path.iterdir()) == []


def test_the_first_failing_shard_is_the_same_however_fast_the_others_fail(step_case, tmp_path):
    passes = msgspec.structs.replace(step_case, requests=())
    plan = FuzzPlan(target="planted:ONE_KEY_SHORT", device="cpu", examples=0, seed=0, folder=tmp_path, on_failure="stop")
    slow, fast = (msgspec.structs.replace(plan, past=(*[passes] * count, step_case)) for count in (200, 0))
    outcome = runner.run([slow, fast, slow], 2, stop_at_failure=True)
    assert outcome.progress[0].failure is not None
    assert outcome.finished == {0, 1}


def test_a_run_that_agrees_exits_0_and_says_what_it_did(attn_parity, tmp_path):
    run = attn_parity("fuzz", "--target", "planted:FLASH", "--examples", 15, "--seed", 7, "--workers", 1, "--json", "run.json")
    assert run.code == 0
    assert "15 examples" in run.out
    assert "--seed 7" in run.out
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["schema"] == "attn-parity.fuzz/1"
    assert (result["target"], result["seed"], result["examples"]) == ("planted-flash", 7, 15)
    assert (result["failures"], result["interrupted"]) == ([], False)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".hypothesis" not in path.parts] == [
        tmp_path / "run.json"
    ]


def test_a_run_says_how_many_examples_took_each_path_of_the_target(attn_parity, fuzz_here, tmp_path):
    progress, cases = fuzz_here("planted:FLASH", examples=15)
    assert progress.events == {"ragged": sum(len(case.requests) > 1 for case in cases)}
    run = attn_parity("fuzz", "--target", "planted:FLASH", "--examples", 15, "--seed", 3, "--workers", 1, "--json", "run.json")
    events = json.loads((tmp_path / "run.json").read_text())["events"]
    assert 0 < events["ragged"] < 15
    assert f"{events['ragged']} ragged" in run.out


def test_minutes_end_all_shards(attn_parity, tmp_path):
    run = attn_parity(
        "fuzz", "--target", "reference-fp32", "--minutes", "0.02", "--examples", 100_000, "--workers", 1, "--json", "run.json"
    )
    result = json.loads((tmp_path / "run.json").read_text())
    assert run.code == 0
    assert result["planned"] == 100_000
    assert result["examples"] < 100_000


def test_a_fault_of_the_harness_is_not_blamed_on_the_kernel(step_case, tmp_path):
    contradiction = msgspec.structs.replace(step_case, unwritten=(99,))
    with Executor("planted:FLASH", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        with pytest.raises(ExecutorError, match="the fuzzer itself failed"):
            executor.run(contradiction)
        assert executor.run(step_case).kind == "agree"
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_breaks_the_judge_is_to_blame(step_case, tmp_path):
    with Executor("planted:BREAKS_THE_JUDGE", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(step_case)
    assert verdict.kind == "crashed"
    assert "not callable" in verdict.message


def test_a_target_that_loads_here_and_not_in_a_worker_is_an_error(attn_parity, tmp_path):
    (tmp_path / "at_home.py").write_text(
        "import multiprocessing\n"
        "assert multiprocessing.parent_process() is None, 'only at home'\n"
        "from planted import FLASH as TARGET\n"
    )
    run = attn_parity("fuzz", "--target", "at_home:TARGET", "--examples", 5, "--workers", 1)
    assert run.code == 2
    assert "only at home" in run.err
    assert "Traceback" not in run.err
    assert not list(tmp_path.rglob("*.json"))
