"""A compiler that fails, dies or hangs costs one launch."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from attn_binaries.build import Beside, OutOfTime, build, in_processes
from attn_fuzz import current_folder


@pytest.mark.nightly
def test_a_launch_that_does_not_compile_is_an_error_and_others_go_on():
    done = build([("gfx942", "no such launch"), ("gfx942", "merge, fp32")], 1)
    assert "no such launch" in done.errors["gfx942", "no such launch"]
    assert list(done.binaries) == [("gfx942", "merge, fp32")]


def planted(number: int) -> int:
    """A compiler that raises of 2, and dies of 4."""
    if number == 2:
        raise RuntimeError("no 2")
    if number == 4:
        os.abort()
    return number


def test_a_compiler_that_dies_costs_its_job_alone():
    done = []
    found, interrupted = in_processes(
        planted, [(number,) for number in range(8)], 1, lambda found: done.append(len(found)), interpreter=True
    )
    assert not interrupted
    assert found == {(number,): number for number in range(8)} | {(2,): "RuntimeError: no 2", (4,): "the process died"}
    assert done == list(range(1, 9))


def test_a_compilers_process_finds_modules_of_the_current_folder(tmp_path, monkeypatch):
    """A kernel of a target module:attribute is in one, where this package is installed and the folder is on no path."""
    (tmp_path / "planted_kernels.py").write_text("answer = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(current_folder, "folders", {})
    current_folder.admit("planted_kernels:TARGET")
    job = ("from planted_kernels import answer; assert answer == 7",)
    assert in_processes(exec, [job], 1) == ({job: None}, False)


def hung(folder: Path) -> int:
    """A compiler that starts another, as ptxas is started, and waits for it for ever."""
    process = subprocess.Popen(["sleep", "600"])
    folder.joinpath("pid").write_text(str(process.pid))
    return process.wait()


def test_a_compiler_that_hangs_is_ended_at_the_limit_with_what_it_started(tmp_path):
    found = Beside(hung).within(2, tmp_path)
    assert isinstance(found, OutOfTime)
    assert found == "has no code after 2 s, see --compile-seconds"
    deadline = time.monotonic() + 5
    while Path(f"/proc/{tmp_path.joinpath('pid').read_text()}/stat").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_compiler_returns_raises_or_dies_of_is_known():
    beside = Beside(planted)
    assert [beside.within(60, number) for number in (1, 2, 3, 4)] == [1, "RuntimeError: no 2", 3, "the process died"]
    assert beside.ended
