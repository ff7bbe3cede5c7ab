"""The command, end to end on a CPU, and its errors."""

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.page import performance
from benchmarks.participants.attention import OURS
from benchmarks.peers.page import FOLDER
from benchmarks.speed import results
from tests.support import processes

ROOT = Path(__file__).parent.parent.parent
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def benchmarks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.run(["-m", "benchmarks", *arguments], cwd=folder, env={**os.environ, **ON_CPU})


def test_a_tiny_run_writes_its_file_and_the_page_renders(tmp_path):
    path, generated = tmp_path / "cpu.json", tmp_path / "docs" / "generated"
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    (generated / "performance.json").write_text(performance.text(performance.Performance()))
    names = ("decode, fp8 cache", "encoder", "cascade", "cache write", "RoPE", "merge")
    only = [argument for name in names for argument in ("--only", name)]
    ended = benchmarks(tmp_path, "speed", "--tiny", "--commit", "abc", "--json", str(path), *only)
    assert ended.returncode == 0, ended.stderr
    run = results.read(path)
    assert (run.of_value, run.machine, run.commit, run.unmeasured) == (False, "CPU", "abc", [])
    assert len(run.cases) == 8
    for case in run.cases:
        assert case.results[OURS].verdict == "measured", case
        assert case.results[OURS].time is not None
    assert "ours without cascade" in next(case for case in run.cases if "cascade" in case.name).results
    assert run.host_us[OURS] > 0
    assert benchmarks(tmp_path, "page", str(path)).returncode == 0
    text = (generated / "performance.md").read_text(encoding="utf-8")
    assert "no number here has any value" in text
    assert all(case.name in text for case in run.cases)
