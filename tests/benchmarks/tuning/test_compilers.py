"""Candidates are compiled in other processes, and one whose compiler raises or crashes costs itself alone."""

import dataclasses
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from attn_fuzz.run import prepared
from attn_optimized.launch.table import Parameters

from benchmarks.tuning import compilers
from benchmarks.tuning.classes import CLASSES
from benchmarks.tuning.compilers import Compilers
from benchmarks.tuning.facts import Facts
from benchmarks.tuning.results import Candidate

NEVER = 1e9


def planted(call_class, parameters):
    """A compiler that takes no 16 keys a tile, and dies of 32."""
    if parameters.block_n == 16:
        raise RuntimeError("no tile\nof 16")
    if parameters.block_n == 32:
        os.abort()
    return Facts(spills=parameters.block_n, matrix_instructions=1, shared_bytes=0, shared_limit=1, waves=1, instructions=1.0)


def sleeping_of_64(call_class, parameters):
    if parameters.block_n >= 64:
        time.sleep(300)
    return Facts()


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    """Nothing is compiled here, so processes need not import everything anew."""
    begin = compilers._begin
    monkeypatch.setattr(Compilers, "_start", lambda self, workers: ProcessPoolExecutor(workers, prepared.context("cpu"), begin))


def candidates(*block_ns):
    parameters = Parameters(block_m=16, block_n=16, num_warps=1, num_stages=1)
    return [Candidate(parameters=dataclasses.replace(parameters, block_n=block_n)) for block_n in block_ns]


def test_a_compiler_that_raises_or_crashes_costs_its_candidate_alone():
    tried = candidates(64, 16, 32, 128, 32, 256)
    with Compilers(planted, workers=2) as pool:
        done = list(pool.compile(CLASSES[0], tried, deadline=NEVER))
        assert sorted(each.parameters.block_n for each in done) == sorted(each.parameters.block_n for each in tried)
        again = candidates(64, 128)
        assert len(list(pool.compile(CLASSES[1], again, deadline=NEVER))) == 2
    for each in tried + again:
        block_n = each.parameters.block_n
        if block_n in (16, 32):
            assert each.verdict == "failed"
            assert each.why == {16: "RuntimeError: no tile of 16", 32: "the compiler crashed"}[block_n]
        else:
            assert each.facts is not None
            assert each.facts.spills == block_n


def test_what_is_not_compiled_by_the_deadline_waits_and_nobody_waits_for_it(capfd):
    slow = candidates(64, 128)
    with Compilers(sleeping_of_64, workers=1) as pool:
        assert len(list(pool.compile(CLASSES[0], candidates(16), deadline=NEVER))) == 1
        started = time.monotonic()
        assert not list(pool.compile(CLASSES[0], slow, deadline=started + 0.5))
        assert len(list(pool.compile(CLASSES[0], candidates(16), deadline=NEVER))) == 1
        assert not list(pool.compile(CLASSES[0], slow, deadline=time.monotonic() + 0.5))
    assert time.monotonic() - started < 100, "of the 300 that one takes"
    assert [(each.verdict, each.facts) for each in slow] == [("waiting", None)] * 2
    assert not capfd.readouterr().err
