"""Candidates are compiled in other processes, and one whose compiler raises or crashes costs itself alone."""

import functools
import os
import time

from attn_optimized.launch.table import Parameters

from benchmarks.tune.classes import CLASSES
from benchmarks.tune.compilers import Job, in_parallel
from benchmarks.tune.facts import WorstFacts

NEVER = float("inf")
CASE = CLASSES[0].checked[0]


def planted(folder, case, parameters):
    """A compiler that takes no 16 keys a tile, dies of 32, and sleeps of 512."""
    (folder / f"{parameters.block_n} {time.monotonic_ns()}").touch()
    if parameters.block_n == 16:
        raise RuntimeError("no tile\nof 16")
    if parameters.block_n == 32:
        os.abort()
    if parameters.block_n == 512:
        time.sleep(300)
    return WorstFacts(spills=parameters.block_n)


def jobs(*block_ns):
    return [Job(CASE, Parameters(block_m=16, block_n=block_n, num_warps=1, num_stages=1)) for block_n in block_ns]


def test_what_raises_crashes_or_is_not_done_in_time_costs_itself_alone(tmp_path, capfd):
    compile_all = in_parallel(functools.partial(planted, tmp_path), workers=2)
    found = compile_all(jobs(64, 16, 32, 128), NEVER, lambda done: None)
    outcomes = {job.parameters.block_n: outcome for job, outcome in found.items()}
    assert outcomes == {
        64: WorstFacts(spills=64),
        16: "RuntimeError: no tile of 16",
        32: "the process died",
        128: WorstFacts(spills=128),
    }
    started = time.monotonic()
    assert len(compile_all(jobs(64, 128, 512), started + 5, lambda done: None)) == 2
    assert time.monotonic() - started < 100, "of the 300 that one takes"
    compiled = [path.name.split()[0] for path in tmp_path.iterdir()]
    assert compiled.count("64") == compiled.count("128") == 1
    assert "Traceback" not in capfd.readouterr().err
