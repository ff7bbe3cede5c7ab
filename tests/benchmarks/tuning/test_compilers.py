"""Candidates are compiled in other processes, and one whose compiler raises or crashes costs itself alone."""

import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from attn_fuzz.run import prepared
from attn_optimized.launch.table import Parameters

from benchmarks.tuning import compilers
from benchmarks.tuning.classes import CLASSES
from benchmarks.tuning.compilers import Compilers, Job
from benchmarks.tuning.facts import Facts

NEVER = 1e9
CASES = CLASSES[0].checked


def planted(case, parameters):
    """A compiler that takes no 16 keys a tile, and dies of 32."""
    if parameters.block_n == 16:
        raise RuntimeError("no tile\nof 16")
    if parameters.block_n == 32:
        os.abort()
    return Facts(spills=parameters.block_n + CASES.index(case))


def sleeping_of_64(case, parameters):
    if parameters.block_n >= 64:
        time.sleep(300)
    return Facts()


def counted(folder, case, parameters):
    (folder / f"{parameters.block_n} {time.monotonic_ns()}").touch()
    return Facts()


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    """Nothing is compiled here, so processes need not import everything anew."""
    begin = compilers._begin
    monkeypatch.setattr(compilers, "_pool", lambda workers: ProcessPoolExecutor(workers, prepared.context("cpu"), begin))


def jobs(*block_ns, case=CASES[0]):
    return [Job(case, Parameters(block_m=16, block_n=block_n, num_warps=1, num_stages=1)) for block_n in block_ns]


def finished(pool, some_jobs, deadline=NEVER):
    return pool.finish(some_jobs, deadline=deadline, step=lambda done: None)


def test_a_compiler_that_raises_or_crashes_costs_its_job_alone():
    first, others = jobs(64, 16, 32, 128, 256), jobs(64, 32, 128, case=CASES[1])
    with Compilers(planted, workers=2) as pool:
        pool.begin(others)
        found = finished(pool, first) | finished(pool, others)
    assert set(found) == {*first, *others}
    for job, outcome in found.items():
        block_n = job.parameters.block_n
        of_block = {16: "RuntimeError: no tile of 16", 32: "the compiler crashed"}
        assert outcome == of_block.get(block_n, Facts(spills=block_n + CASES.index(job.case)))


def test_a_job_that_was_begun_is_compiled_once(tmp_path):
    with Compilers(functools.partial(counted, tmp_path), workers=2) as pool:
        pool.begin(jobs(64, 128))
        assert len(finished(pool, jobs(64))) == 1
        pool.begin(jobs(128, 64))
        assert len(finished(pool, jobs(128, 64, 256))) == 3
    assert sorted(path.name.split()[0] for path in tmp_path.iterdir()) == ["128", "256", "64"]


def test_what_is_not_compiled_by_the_deadline_is_left_out_and_nobody_waits_for_it(capfd):
    slow = jobs(64, 128)
    with Compilers(sleeping_of_64, workers=2) as pool:
        assert len(finished(pool, jobs(16))) == 1
        started = time.monotonic()
        assert not finished(pool, jobs(64), deadline=started + 0.5)
        assert set(finished(pool, [*jobs(32), *slow], deadline=time.monotonic() + 3)) == set(jobs(32))
    assert time.monotonic() - started < 100, "of the 300 that one takes"
    assert not capfd.readouterr().err
