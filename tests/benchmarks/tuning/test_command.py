"""`python -m benchmarks tune`, end to end on a CPU, interrupted, and its errors."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from attn_optimized.launch.table import parameters_for
from click.testing import CliRunner

from benchmarks.speed.drawn import draw_cases
from benchmarks.tuning import command
from benchmarks.tuning.results import SCHEMA, Tuning
from tests import processes

ROOT = Path(__file__).parents[3]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


MODULE = ("-m", "benchmarks")
FEW = """
import runpy
from benchmarks.tuning import tune
every = tune.variants
tune.variants = lambda *arguments: every(*arguments)[:3]
runpy.run_module("benchmarks", run_name="__main__")
"""
# the first step has heads that are wider than our kernels serve
WIDE = """
import dataclasses
import runpy
from benchmarks.speed import drawn
every = drawn.draw_cases
def with_wide_heads(number, seed):
    first, *others = every(number, seed)
    return [dataclasses.replace(first, head_size=288), *others]
drawn.draw_cases = with_wide_heads
runpy.run_module("benchmarks", run_name="__main__")
"""
# a shell has what it starts in the background ignore interrupts
HEED = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def started(folder: Path, *arguments: str, run: tuple[str, str] = MODULE) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", *run, "tune", *arguments]
    environment = {**os.environ, **ON_CPU}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def read(path: Path) -> Tuning:
    return msgspec.json.decode(path.read_bytes(), type=Tuning)


def test_a_tiny_run_tries_candidates_and_writes_all_of_them(tmp_path):
    path = tmp_path / "tune.json"
    refused = draw_cases(4, 9)[0].name
    arguments = ("tune", "--tiny", "--json", path, "--drawn", "4", "--seed", "9")
    ended = processes.run(["-c", WIDE, *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    found = read(path)
    assert (found.schema, found.of_value, found.machine, found.unfinished) == (SCHEMA, False, "CPU", [])
    assert len(found.steps) == 3
    assert all(step.kernels and step.ms for step in found.steps)
    assert list(found.refused) == [refused]
    assert f"left out: {refused}: attn_optimized: head size 288" in ended.stdout
    assert found.classes
    for searched in found.classes:
        assert f"{searched.name}: {searched.why}" in ended.stdout
        today, *others = searched.candidates
        assert today.verdict == "final"
        assert "final" in {each.verdict for each in others} <= {"final", "slower"}
        assert {case.name for case in searched.cases} == today.times.keys()


@pytest.mark.nightly
def test_binaries_for_a_gpu_that_is_not_here_are_ranked(tmp_path):
    path = tmp_path / "tune.json"
    only = "prefill, 16 bits, D 64, 8-bit cache"
    options = ("--arch", "gfx1201", "--only", only, "--drawn", "20", "--seed", "1", "--workers", "1", "--json", str(path))
    process = started(tmp_path, *options, run=("-c", FEW))
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    found = read(path)
    assert (found.architecture, found.of_value) == ("gfx1201", True)
    (searched,) = found.classes
    assert f"{searched.name}: " in output
    today = searched.candidates[0]
    assert today.parameters == parameters_for("gfx1201", phase="prefill", itemsize=2, block_d=64, quantized=True)
    assert today.verdict == "ranked"
    assert today.facts is not None
    assert today.facts.spills is not None
    assert today.facts.matrix_instructions
    assert today.facts.shared_bytes
    assert today.facts.waves
    assert today.facts.instructions
    assert {each.parameters.num_stages for each in searched.candidates} == {today.parameters.num_stages}
    assert not any(each.times for each in searched.candidates), "nothing is timed"


@pytest.mark.nightly
def test_an_interrupt_keeps_what_was_found(tmp_path):
    path = tmp_path / "tune.json"
    run = ("-c", f"{HEED}; runpy.run_module('benchmarks', run_name='__main__')")
    process = started(tmp_path, "--tiny", "--json", str(path), "--drawn", "5", "--seed", "1", run=run)
    deadline = time.monotonic() + 300
    while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    found = read(path)
    assert len(found.steps) == 5
    assert len(found.unfinished) == len(found.classes) > 1
    assert f"interrupted: 0 classes searched, {len(found.unfinished)} not" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "torch sees no GPU here; --arch NAME derives from binaries, --tiny"),
        (("--tiny", "--write"), "--tiny: its results have no value"),
        (("--tiny", "--arch", "gfx942"), "--tiny: its results have no value"),
        (("--arch", "gfx000"), "--arch: got 'gfx000', expected one of gfx90a, gfx942"),
        (("--arch", "sm90"), "--arch: got 'sm90', expected one of gfx90a, gfx942"),
        (("--arch", "gfx942", "--drawn", "3", "--only", "none"), "no class of 3 drawn steps has 'none' in its name, such as"),
        (("--arch", "gfx942", "--json", "none/tune.json"), "--json: the folder none does not exist"),
        (("--tiny", "--budget", "0"), "--budget"),
        (("--tiny", "--workers", "0"), "--workers"),
    ],
)
def test_bad_arguments_are_named_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])  # the command changes it for its own process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = CliRunner().invoke(command.tune, (*arguments, "--seed", "1"))
    assert ended.exit_code == 2
    assert message in " ".join(ended.output.split())
    assert not list(tmp_path.iterdir())
