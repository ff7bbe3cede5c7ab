"""performance.md has the last of runs alike, and what is reached is judged by the figures."""

import msgspec
import pytest
from attn_parity.timing import Spread

from benchmarks.measuring.machine import Rates
from benchmarks.participants.attention import AITER, FA3, OURS, PAGED, VLLM
from benchmarks.speed import page, performance
from benchmarks.speed.page import DATA, ratio, slower_than_a_peer
from benchmarks.speed.performance import Performance
from benchmarks.speed.reach import standing
from benchmarks.speed.results import CaseResult, Result, Run
from benchmarks.steps.cases import Reach

RATES = Rates(read=4.5e12, copy=4e12, matmul=6e14, launch=1e-3)


def time(ms: float) -> Result:
    return Result(verdict="measured", error=1e-3, time=Spread(ms, 0.98 * ms, 1.02 * ms, 100), calls=1)


def case(name: str = "decode, 64 x 8k", floor_ms: float = 0.5, **participants: Result) -> CaseResult:
    return CaseResult(name=name, flops=1e9, bytes=2e9, floor_ms=floor_ms, results=participants)


def run_of(*cases: CaseResult, machine: str = "a GPU", **fields) -> Run:
    head = {"of_value": True, "versions": {"torch": "2.11.0"}, "command": "python -m benchmarks speed", "commit": "abc"}
    return Run(**head, machine=machine, rates=RATES, cases=list(cases), **fields)


CHOSEN = run_of(case(**{OURS: time(0.52), VLLM: time(0.56)}), case("cascade", **{OURS: time(0.1)}))
DRAWN = run_of(msgspec.structs.replace(case("0 decode: near", **{OURS: time(1.0), VLLM: time(0.98)}), traffic="decode"))


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A function that adds runs to a file that has none."""
    monkeypatch.chdir(tmp_path)
    DATA.parent.mkdir(parents=True)
    DATA.write_text(performance.text(Performance()))

    def add(*runs: Run) -> None:
        for run in runs:
            page.write(run)

    return add


def test_a_run_takes_the_place_of_those_alike(added):
    faster, other = case(**{OURS: time(0.5)}), case("MLA decode", **{OURS: time(0.1)})
    added(CHOSEN, DRAWN, run_of(other), run_of(other, machine="another"))
    added(run_of(faster, *CHOSEN.cases[1:]), DRAWN)
    of_speed = performance.read(DATA).speed
    assert [(run.machine, run.cases[0].name, run.cases[0].found[0][0]) for run in of_speed] == [
        ("a GPU", "MLA decode", 0.1),
        ("another", "MLA decode", 0.1),
        ("a GPU", "decode, 64 x 8k", 0.5),
        ("a GPU", "0 decode: near", 1.0),
    ]


def test_drawn_cases_are_compared_with_the_best_engine_of_each():
    times = [{VLLM: time(2.0), FA3: time(0.8)}, {VLLM: time(0.9), AITER: time(4.0)}, {"SDPA flash": time(0.1)}]
    cases = [
        msgspec.structs.replace(case(f"{i} decode: drawn", **theirs, **{OURS: time(1.0)}), flops=6e8, traffic="decode")
        for i, theirs in enumerate(times)
    ]
    assert [(ratio(case, PAGED), slower_than_a_peer(case)) for case in cases] == [(0.8, None), (0.9, 1 / 0.9), (None, None)]


@pytest.mark.parametrize(
    ("reach", "participants", "reached", "text"),
    [
        (Reach("bandwidth", 0.9, 1.0), {OURS: time(0.55)}, True, "91% of the copy bandwidth (at least 90%, aim 100%)"),
        (Reach("bandwidth", 0.9, 1.0), {OURS: time(0.57)}, False, "88% of the copy bandwidth (at least 90%, aim 100%)"),
        (Reach("floor", 0.9, 1.0), {OURS: time(0.5)}, True, "100% of the floor's speed (at least 90%, aim 100%)"),
        (Reach("matmul", 0.5, 0.8), {OURS: time(0.004)}, False, "42% of the sustained matmul rate (at least 50%, aim 80%)"),
        (Reach("AITER", 1.5, 3.0), {OURS: time(1.0), AITER: time(1.6)}, True, "1.60x AITER (at least 1.50x, aim 3.00x)"),
        (
            Reach("peers", 1.2, 2.0),
            {OURS: time(1.0), AITER: time(2.0), VLLM: time(1.1)},
            False,
            "1.10x the better peer (at least 1.20x, aim 2.00x)",
        ),
        (Reach("AITER", 1.5, 3.0), {OURS: time(1.0)}, None, "no AITER to compare with"),
        (None, {OURS: time(1.0), VLLM: time(1.01)}, True, ""),
        (None, {OURS: time(1.03), VLLM: time(1.0)}, True, ""),
        (None, {OURS: time(1.1), VLLM: time(1.0), AITER: time(2.0)}, False, "vLLM Triton is 1.10x as fast"),
        (Reach("floor", 0.1, 1.0), {OURS: time(1.1), AITER: time(1.0)}, False, None),
        (None, {OURS: time(1.0)}, None, ""),
        (None, {VLLM: time(1.0)}, None, "not measured"),
    ],
)
def test_reached_or_short(reach, participants, reached, text):
    found = standing(reach, case(**participants), RATES)
    assert found.reached is reached
    assert text is None or found.text == text
