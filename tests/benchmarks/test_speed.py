"""The command, end to end on a CPU, and its errors."""

import os
import subprocess
from pathlib import Path

from benchmarks.participants.attention import OURS
from benchmarks.speed import page, performance, results
from tests.support import processes

ROOT = Path(__file__).parent.parent.parent
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def benchmarks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(["-m", "benchmarks", *arguments], cwd=folder, env={**os.environ, **ON_CPU})


def test_a_tiny_run_writes_its_file_and_the_page_renders(tmp_path):
    path = tmp_path / "cpu.json"
    names = ("decode, fp8 cache", "encoder", "cascade", "cache write", "RoPE", "merge", "index logits, 1 x 32k")
    only = [argument for name in names for argument in ("--only", name)]
    ended = benchmarks(tmp_path, "speed", "--tiny", "--commit", "abc", "--json", str(path), *only)
    assert ended.returncode == 0, ended.stderr
    run = results.read(path)
    assert (run.of_value, run.machine, run.commit, run.unmeasured) == (False, "CPU", "abc", [])
    assert len(run.cases) == 9
    for case in run.cases:
        assert case.results[OURS].verdict == "measured", case
        assert case.results[OURS].time is not None
    assert "ours without cascade" in next(case for case in run.cases if "cascade" in case.name).results
    assert run.host_us[OURS] > 0
    text = page.text(performance.with_run(performance.Performance(), run))
    assert "no number here has any value" in text
    assert all(case.name in text for case in run.cases)


def test_a_class_is_measured_alone(tmp_path):
    ended = benchmarks(tmp_path, "speed", "--tiny", "--class", "host", "--json", "host.json")
    assert ended.returncode == 0, ended.stderr
    run = results.read(tmp_path / "host.json")
    assert not run.cases
    assert run.host_us[OURS] > 0
    ended = benchmarks(tmp_path, "speed", "--tiny", "--class", "index", "--drawn", "1", "--seed", "4", "--json", "drawn.json")
    assert ended.returncode == 0, ended.stderr
    run = results.read(tmp_path / "drawn.json")
    assert [case.results[OURS].verdict for case in run.cases] == ["measured"]
    assert not run.host_us
