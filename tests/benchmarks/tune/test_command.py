"""`python -m benchmarks tune`, end to end on a CPU, interrupted, and its errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from attn_optimized.launch.table import entry_for

from benchmarks.steps.drawn import draw_cases
from benchmarks.tune.command import _check_table, _Gpu
from benchmarks.tune.results import SCHEMA, Tuning
from tests.support import processes

ROOT = Path(__file__).parents[3]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


FEW = """
import runpy
from benchmarks.tune import run as tune
every = tune.variants
tune.variants = lambda *arguments: every(*arguments)[:3]
runpy.run_module("benchmarks", run_name="__main__")
"""
# few candidates; and the first step has heads that are wider than our kernels serve
WIDE = """
import dataclasses
import runpy
from benchmarks.steps import drawn
from benchmarks.tune import run as tune
variants = tune.variants
tune.variants = lambda *arguments: variants(*arguments)[:3]
every = drawn.draw_cases
def with_wide_heads(number, seed):
    first, *others = every(number, seed)
    return [dataclasses.replace(first, head_size=528), *others]
drawn.draw_cases = with_wide_heads
runpy.run_module("benchmarks", run_name="__main__")
"""


def read(path: Path) -> Tuning:
    return msgspec.json.decode(path.read_bytes(), type=Tuning)


def test_a_tiny_run_tries_candidates_and_writes_all_of_them(tmp_path):
    path = tmp_path / "tune.json"
    refused = draw_cases(2, 9)[0].name
    arguments = ("tune", "--tiny", "--json", path, "--drawn", "2", "--seed", "9")
    ended = processes.run(["-c", WIDE, *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    found = read(path)
    assert (found.schema, found.of_value, found.machine, found.unfinished) == (SCHEMA, False, "CPU", [])
    assert list(found.refused) == [refused]
    assert f"left out: {refused}: attn_optimized: head size 528" in ended.stdout
    assert found.classes
    for searched in found.classes:
        assert f"{searched.name}: {searched.why}" in ended.stdout
        today, *others = searched.candidates
        assert today.verdict == "final"
        assert "final" in {each.verdict for each in others} <= {"final", "slower"}
        assert {*searched.cases} == today.times.keys()


def test_the_table_that_is_checked_is_the_one_that_is_written(monkeypatch):
    checked = []
    monkeypatch.setattr("attn_parity.files.check_writable", lambda path, option: checked.append((path.name, option)))
    _check_table(_Gpu(torch.device("cuda"), "sm90", 132, is_here=True), write=True)
    assert checked == [("sm90.json", "--write")]


@pytest.mark.nightly
def test_binaries_for_a_gpu_that_is_not_here_are_ranked(tmp_path):
    path = tmp_path / "tune.json"
    only = "prefill, 16 bits, D 64, 8-bit cache"
    options = ("--arch", "gfx1201", "--only", only, "--drawn", "20", "--seed", "1", "--workers", "1", "--json", str(path))
    environment = {**os.environ, **ON_CPU}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", FEW, "tune", *options]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = read(path)
    assert (found.architecture, found.of_value) == ("gfx1201", True)
    (searched,) = found.classes
    assert f"{searched.name}: " in ended.stdout
    today = searched.candidates[0]
    assert today.parameters == entry_for("gfx1201", phase="prefill", itemsize=2, block_d=64, quantized=True).parameters
    assert today.verdict == "ranked"
    assert today.facts is not None
    assert today.facts.spills is not None
    assert today.facts.matrix_instructions
    assert today.facts.shared_bytes
    assert today.facts.waves
    assert today.facts.instructions
    assert not any(each.times for each in searched.candidates), "nothing is timed"


@pytest.mark.nightly
def test_an_interrupt_keeps_what_was_found(tmp_path):
    path = tmp_path / "tune.json"
    arguments = ["-m", "benchmarks", "tune", "--tiny", "--json", path, "--drawn", 5, "--seed", 1]
    env = {**os.environ, **ON_CPU}
    ended = processes.signalled(arguments, lambda _: path.is_file(), signal.SIGINT, cwd=tmp_path, env=env)
    assert ended.returncode == 130, ended.stderr
    found = read(path)
    assert len(found.unfinished) == len(found.classes) > 1
    assert f"interrupted: 0 classes searched, {len(found.unfinished)} not" in " ".join(ended.stdout.split())
