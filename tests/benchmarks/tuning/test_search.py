"""What is slower, wrong, or faster by no more than the spread is never chosen."""

import dataclasses
import itertools
import time

import pytest
import torch
from attn_optimized.launch.table import Parameters

from benchmarks.speed.clock import Spread
from benchmarks.tuning import launches, search, tune
from benchmarks.tuning.classes import CLASSES
from benchmarks.tuning.facts import Facts
from benchmarks.tuning.results import Candidate, Search
from benchmarks.tuning.space import candidates

CPU = torch.device("cpu")
NEVER = float("inf")
TODAY = Parameters(block_m=16, block_n=64, num_warps=4, num_stages=2)
DECODE = next(each for each in CLASSES if (each.phase, each.itemsize, each.most_block_d) == ("decode", 4, 64))
PREFILL = next(each for each in CLASSES if (each.phase, each.itemsize, each.most_block_d) == ("prefill", 4, 64))


def contenders(count):
    """Today's and others, told apart by their warps."""
    return [Candidate(parameters=dataclasses.replace(TODAY, uneven_waves=i)) for i in range(count)]


class PlantedClock:
    """Milliseconds of each candidate in each of two cases, give or take a share; candidates without any fail."""

    def __init__(self, *times, spread=0.01):
        self.times, self.spread, self.replays = times, spread, []

    def __call__(self, left, replays):
        self.replays.append((len(left), replays))
        for candidate in left:
            times = self.times[candidate.parameters.uneven_waves]
            if times is None:
                candidate.verdict, candidate.why = "failed", "out of registers"
                continue
            low, high = 1 - self.spread, 1 + self.spread
            candidate.rounds.append(
                {name: Spread(ms, low * ms, high * ms, replays) for name, ms in zip("ab", times, strict=True)}
            )


def searched(clock, *, deadline=NEVER):
    found = Search(name="", candidates=contenders(len(clock.times)))
    search.halve(found.candidates, clock, deadline=deadline)
    search.decide(found)
    return found


def test_the_fastest_is_chosen():
    found = searched(PlantedClock((1.0, 2.0), (0.9, 1.8), (0.8, 1.6), (1.5, 1.0)))
    assert found.chosen is not None
    assert found.chosen.uneven_waves == 2
    assert found.gain == pytest.approx(1.25)
    assert found.why == "1.250 times as fast as today's"


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([(1.1, 2.1), (1.0, 2.5)], "the best is 0.930 times as fast"),
        ([(0.985, 1.97)], "no candidate is faster beyond the spread; the best is 1.015 times as fast"),
        ([(0.5, 2.1)], "no candidate is faster beyond the spread; the best is 1.380 times as fast"),
        ([None, None], "no candidate but today's was timed to the end"),
    ],
    ids=["slower", "faster within the spread", "slower in one case", "failed"],
)
def test_todays_parameters_stay(others, why):
    found = searched(PlantedClock((1.0, 2.0), *others))
    assert found.chosen is None
    assert why in found.why


def test_one_that_is_faster_in_all_cases_is_chosen_before_a_faster_one_that_is_not():
    found = searched(PlantedClock((1.0, 2.0), (0.5, 2.1), (0.9, 1.8)))
    assert found.chosen is not None
    assert found.chosen.uneven_waves == 2


def test_parameters_that_fail_today_are_replaced_by_nothing():
    found = searched(PlantedClock(None, (0.5, 0.5)))
    assert found.chosen is None
    assert found.why == "today's parameters: out of registers"


def test_slow_ones_leave_after_short_rounds():
    clock = PlantedClock((1.0, 1.0), *((1.0 + i, 1.0 + i) for i in range(32)))
    found = searched(clock)
    assert clock.replays == [(33, 5), (17, 10), (9, 20), (5, search.LAST_REPLAYS)]
    assert [each.verdict for each in found.candidates] == ["final"] * 5 + ["slower"] * 28
    assert [len(each.rounds) for each in found.candidates] == [4] * 5 + [3] * 4 + [2] * 8 + [1] * 16


def test_one_that_is_as_slow_as_others_fails_alone():
    times = [(2.0, 2.0)] * 12
    found = searched(PlantedClock((1.0, 1.0), None, *times))
    assert found.candidates[1].verdict == "failed"
    assert found.candidates[0].verdict == "final"


def test_todays_parameters_stay_to_the_end_though_they_are_slowest():
    clock = PlantedClock((50.0, 50.0), *((1.0 + i, 1.0 + i) for i in range(20)))
    found = searched(clock)
    assert found.candidates[0].verdict == "final"
    assert found.chosen == found.candidates[1].parameters


def test_past_the_deadline_the_second_round_is_the_last():
    clock = PlantedClock((2.0, 2.0), *((1.0 + i, 1.0 + i) for i in range(32)))
    found = searched(clock, deadline=time.monotonic())
    assert clock.replays == [(33, 5), (5, search.LAST_REPLAYS)]
    assert found.chosen == found.candidates[1].parameters


def interpreted(call_class, monkeypatch, *, wrong, deadline=NEVER):
    """A search on the CPU in which the first candidate seems fastest, and is launched as `wrong` says."""
    right = launches.paged_attention_calls
    today = Parameters(block_m=16, block_n=64, num_warps=2, num_stages=2)
    first = candidates(call_class, "sm90", today)[0]

    def planted(*arguments, **options):
        plan = arguments[-1]
        for call in right(*arguments, **options):
            yield wrong(call) if plan.tiles.parameters == first else call

    def clock(self, left, replays):
        for candidate in left:
            ms = 0.5 if candidate.parameters == first else 1.0
            candidate.rounds.append({"a": Spread(ms, ms, ms, replays)})

    monkeypatch.setattr(launches, "paged_attention_calls", planted)
    monkeypatch.setattr(search.GpuClock, "__call__", clock)
    found = Search(name=call_class.name, candidates=[Candidate(parameters=today)])
    tune.interpreted(found, call_class, deadline, lambda what: None, architecture="sm90")
    assert found.candidates[1].parameters == first
    return found


def with_launch(call, **changed):
    return call._replace(launch=dataclasses.replace(call.launch, **changed))


def with_number(**changed):
    def wrong(call):
        numbers = call.launch.numbers
        return with_launch(call, numbers={**numbers, **{name: value for name, value in changed.items() if name in numbers}})

    return wrong


def test_a_right_candidate_is_chosen(monkeypatch):
    found = interpreted(DECODE, monkeypatch, wrong=lambda call: call)
    assert found.chosen == found.candidates[1].parameters


@pytest.mark.parametrize(
    ("call_class", "wrong"),
    [
        (DECODE, with_number(scale=1.001 * 64**-0.5)),
        (DECODE, with_number(stride_block_table=0)),
        (PREFILL, with_number(max_ahead=1)),
        (PREFILL, lambda call: with_launch(call, grid=(*call.launch.grid[:2], 0))),
    ],
    ids=["another scale", "the first request's blocks", "one key ahead", "nothing written"],
)
def test_a_wrong_candidate_is_never_timed(call_class, wrong, monkeypatch):
    found = interpreted(call_class, monkeypatch, wrong=wrong)
    planted = found.candidates[1]
    assert (planted.verdict, planted.rounds) == ("wrong", [])
    assert planted.why is not None
    assert "out of request" in planted.why
    assert found.chosen is None


def test_a_candidate_that_raises_costs_no_other(monkeypatch):
    def raises(call):
        raise RuntimeError("out of\nresource: shared memory")

    found = interpreted(DECODE, monkeypatch, wrong=raises)
    assert [each.verdict for each in found.candidates] == ["final", "failed", "final"]
    assert found.candidates[1].why == "RuntimeError: out of resource: shared memory"


def test_what_is_not_checked_in_time_is_not_timed(monkeypatch):
    found = interpreted(DECODE, monkeypatch, wrong=lambda call: call, deadline=time.monotonic())
    assert [each.verdict for each in found.candidates] == ["final", "waiting", "waiting"]
    assert found.chosen is None


class PlantedCompilers:
    """Of tiles of 32 keys they say that they spill; those of 128 raise."""

    def compile(self, call_class, tried, *, deadline):
        for candidate in tried:
            block_n = candidate.parameters.block_n
            if block_n == 128:
                candidate.verdict, candidate.why = "failed", "the compiler crashed"
            else:
                candidate.facts = Facts(spills=300 if block_n == 32 else 0)
            yield candidate


@pytest.mark.parametrize("faster", [16, 64], ids=["another tile", "today's tile"])
def test_the_fastest_of_what_may_run_is_split_in_other_ways(faster, monkeypatch):
    """One is fastest with its keys split by 256; what spills would be faster, and is never run."""
    today = Parameters(block_m=16, block_n=64, num_warps=2, num_stages=2)
    few = [dataclasses.replace(today, block_n=block_n) for block_n in (16, 32, 128)]
    checked = []

    def planted_times(self, left, replays):
        for candidate in left:
            parameters = candidate.parameters
            ms = 0.1 if parameters.block_n == 32 else 1.0 if parameters.block_n == faster else 2.0
            ms -= 0.5 if parameters.keys_per_split == 256 else 0.0
            candidate.rounds.append({"a": Spread(ms, ms, ms, replays)})

    monkeypatch.setattr(tune, "candidates", lambda *arguments: few)
    monkeypatch.setattr(tune, "check", lambda candidate, call_class, device: checked.append(candidate.parameters))
    monkeypatch.setattr(search.GpuClock, "__call__", planted_times)
    found = Search(name="", candidates=[Candidate(parameters=today)])
    gpu = {"compilers": PlantedCompilers(), "architecture": "sm90", "device": CPU}
    tune.measured(found, DECODE, NEVER, lambda what: None, **gpu)
    assert found.chosen is not None
    assert (found.chosen.block_n, found.chosen.keys_per_split) == (faster, 256)
    verdicts = {each.parameters: each.verdict for each in found.candidates}
    assert [verdicts[each] for each in few[1:]] == ["pruned", "failed"]
    assert not set(few[1:]) & set(checked)
    assert {each.block_n for each in checked if each.keys_per_split == 256} == {faster}
    assert len(checked) == len(set(checked)), "each is checked once"


def test_the_clock_times_every_candidate_in_every_case():
    cases = [case.tiny() for case in DECODE.timed[:2]]
    both = [Candidate(parameters=dataclasses.replace(TODAY, block_n=block_n)) for block_n in (32, 64)]
    search.GpuClock(cases, CPU, most_replays=3)(both, 5)
    for candidate, case in itertools.product(both, cases):
        (round_,) = candidate.rounds
        assert round_[case.name].replays == 3
        assert round_[case.name].ms > 0
