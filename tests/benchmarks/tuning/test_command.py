"""`python -m benchmarks tune`, end to end on a CPU, interrupted, and its errors."""

import io
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
from rich.console import Console

from benchmarks.tuning import command, tune
from benchmarks.tuning.classes import CLASSES
from benchmarks.tuning.results import SCHEMA, Candidate, Tuning
from tests import processes

ROOT = Path(__file__).parents[3]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


MODULE = ("-m", "benchmarks")
FEW = """
import itertools, runpy
from benchmarks.tuning import tune
every = tune.candidates
tune.candidates = lambda *arguments: itertools.islice(every(*arguments), 6)
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
    arguments = ("tune", "--tiny", "--json", path, "--only", "window, 32 bits, D 64")
    ended = processes.run(["-m", "benchmarks", *arguments], cwd=tmp_path, env={**os.environ, **ON_CPU})
    assert ended.returncode == 0, ended.stderr
    found = read(path)
    assert (found.schema, found.of_value, found.machine, found.unfinished) == (SCHEMA, False, "CPU", [])
    assert [each.name for each in found.classes] == ["window, 32 bits, D 64", "window, 32 bits, D 64, 8-bit cache"]
    for searched in found.classes:
        assert f"{searched.name}: {searched.why}" in ended.stdout
        assert [each.verdict for each in searched.candidates] == ["final"] * 3
        assert all(each.rounds for each in searched.candidates)


def test_binaries_for_a_gpu_that_is_not_here_are_ranked(tmp_path):
    path = tmp_path / "tune.json"
    only = "prefill, 16 bits, D 64, 8-bit cache"
    process = started(tmp_path, "--arch", "gfx1201", "--only", only, "--workers", "1", "--json", str(path), run=("-c", FEW))
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
    assert not any(each.rounds for each in searched.candidates), "nothing is timed"


def test_an_interrupt_keeps_what_was_found(tmp_path):
    path = tmp_path / "tune.json"
    run = ("-c", f"{HEED}; runpy.run_module('benchmarks', run_name='__main__')")
    process = started(tmp_path, "--tiny", "--json", str(path), "--only", "decode", run=run)
    deadline = time.monotonic() + 300
    while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    found = read(path)
    done = [each.name for each in found.classes if each.name not in found.unfinished]
    assert done
    assert found.unfinished
    assert f"interrupted: {len(done)} classes searched, {len(found.unfinished)} not" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "torch sees no GPU here; --arch NAME derives from binaries, --tiny"),
        (("--tiny", "--write"), "--tiny: its results have no value"),
        (("--tiny", "--arch", "gfx942"), "--tiny: its results have no value"),
        (("--arch", "gfx000"), "--arch: got 'gfx000', expected one of gfx90a, gfx942"),
        (("--arch", "sm90"), "--arch: got 'sm90', expected one of gfx90a, gfx942"),
        (("--arch", "gfx942", "--only", "nothing like it"), "no class has 'nothing like it' in its name, such as 'decode, 16"),
        (("--arch", "gfx942", "--json", "none/tune.json"), "none is no folder"),
        (("--tiny", "--budget", "0"), "--budget"),
        (("--tiny", "--workers", "0"), "--workers"),
    ],
)
def test_bad_arguments_are_named_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", os.environ["TRITON_INTERPRET"])  # the command changes it for its own process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = CliRunner().invoke(command.tune, arguments)
    assert ended.exit_code == 2
    assert message in " ".join(ended.output.split())
    assert not list(tmp_path.iterdir())


def run(search, *, budget=60.0, output=None):
    """Three classes, and what was saved of them."""
    found, saved = Tuning(of_value=False, architecture="sm90", machine="", versions={}, command="", commit="", source=""), []
    arguments = {"budget": budget, "started": time.monotonic(), "console": Console(file=output or io.StringIO(), width=160)}
    try:
        tune.tune(found, CLASSES[:3], search, save=lambda call_class, searched: saved.append(searched.name), **arguments)
    except KeyboardInterrupt:
        saved.append("interrupted")
    return found, saved


def test_each_class_is_saved_and_one_that_is_interrupted_is_unfinished():
    def search(found, call_class, deadline, step):
        if call_class == CLASSES[1]:
            raise KeyboardInterrupt
        found.why = "done"

    found, saved = run(search)
    assert saved == [CLASSES[0].name, "interrupted"]
    assert [each.why for each in found.classes] == ["done", "not finished"]
    assert found.unfinished == [CLASSES[1].name, CLASSES[2].name]


def test_candidates_without_time_are_counted():
    def search(found, call_class, deadline, step):
        found.candidates.append(Candidate(parameters=found.candidates[0].parameters))
        found.candidates[0].verdict, found.why = "final", "done"

    run(search, output=(output := io.StringIO()))
    assert output.getvalue().count("done (no time for 1 of 2 candidates)") == 3


def test_the_budget_is_shared_by_what_is_left_and_what_has_none_is_named():
    boxes = []

    def search(found, call_class, deadline, step):
        boxes.append(deadline - time.monotonic())

    found, _ = run(search, budget=30.0)
    assert [round(box) for box in boxes] == [10, 15, 30]
    assert not found.unfinished
    found, saved = run(search, budget=1e-9)
    assert not saved
    assert found.unfinished == [each.name for each in CLASSES[:3]]
