"""A candidate that is slower, wrong, or faster by no more than the spread is never chosen."""

import dataclasses
import time

import pytest
import torch
from attn_optimized.launch.table import Parameters
from attn_parity.timing import Spread

from benchmarks.measuring.clock import Budget
from benchmarks.participants import launches
from benchmarks.tune import run as tune_run
from benchmarks.tune import search
from benchmarks.tune.bench import Bench
from benchmarks.tune.classes import CLASSES
from benchmarks.tune.facts import WorstFacts
from benchmarks.tune.results import Candidate, Search, Tuning
from benchmarks.tune.search import STAGES, ClassSearch
from benchmarks.tune.space import SPACES

CPU = torch.device("cpu")
NEVER = float("inf")
TODAY = Parameters(block_m=16, block_n=64, num_warps=4, num_stages=2, keys_per_split=512, programs_per_unit=2)
DECODE = next(each for each in CLASSES if (each.phase, each.itemsize, each.most_block_d) == ("decode", 4, 64))
PREFILL = next(each for each in CLASSES if (each.phase, each.itemsize, each.most_block_d) == ("prefill", 4, 64))


def spread(ms, width=0.01):
    return Spread(ms, (1 - width) * ms, (1 + width) * ms, 5)


def decided(*times):
    """Milliseconds of today's and of others in each of two cases; None: it failed."""
    found = Search(name="")
    for i, each in enumerate(times):
        candidate = Candidate(parameters=dataclasses.replace(TODAY, uneven_waves=i), verdict="final")
        if each is None:
            candidate.verdict, candidate.why = "failed", "out of registers"
        else:
            candidate.times = {name: spread(ms) for name, ms in zip("ab", each, strict=True)}
        found.candidates.append(candidate)
    search.decide(found)
    return found


def test_the_fastest_is_chosen():
    found = decided((1.0, 2.0), (0.9, 1.8), (0.8, 1.6), (1.5, 1.0))
    assert found.chosen is not None
    assert found.chosen.uneven_waves == 2
    assert found.gain == pytest.approx(1.25)
    assert found.why == "1.250 times as fast as today's, 1.25 to 1.25 in 2 cases"


def test_what_is_slower_in_one_case_may_be_faster_in_the_mean():
    found = decided((1.0, 2.0), (0.5, 2.1))
    assert found.chosen is not None
    assert found.gain == pytest.approx((2.0 / 1.05) ** 0.5)


@pytest.mark.parametrize(
    ("others", "gain"),
    [
        ([(1.1, 2.1), (1.0, 2.5)], (1 / 1.1 / 1.05) ** 0.5),
        ([(0.985, 1.97)], 1 / 0.985),
        ([(0.5, 4.0)], 1.0),
        ([None, None], None),
    ],
    ids=["slower", "faster within the spread", "as much slower as faster", "failed"],
)
def test_todays_parameters_stay(others, gain):
    found = decided((1.0, 2.0), *others)
    assert found.chosen is None
    assert found.gain == pytest.approx(gain)


def test_parameters_that_fail_today_are_replaced_by_nothing():
    found = decided(None, (0.5, 0.5))
    assert found.chosen is None
    assert "out of registers" in found.why


@pytest.mark.parametrize("stage", STAGES[:3], ids=lambda stage: stage.name)
def test_a_stage_changes_what_it_is_about_and_leaves_the_rest(stage):
    first = ClassSearch(DECODE, [], "sm90", Search(name="", candidates=[Candidate(parameters=TODAY)]))
    found = [each.parameters for each in first.contenders(stage)]
    assert len(found) == len(set(found)) >= 3
    assert TODAY not in found
    assert {dataclasses.replace(each, **{name: getattr(TODAY, name) for name in stage.names}) for each in found} == {TODAY}
    assert first.contenders(stage) == first.found.candidates[1:], "asked again, no others are made"


def test_a_class_whose_programs_need_no_split_tries_none():
    assert not ClassSearch(PREFILL, [], "sm90", Search(name="", candidates=[Candidate(parameters=TODAY)])).contenders(STAGES[2])


class PlantedBench:
    """A case whose times a planted function of its name and of parameters says; None: the launch fails."""

    def __init__(self, milliseconds, case, device, *, is_tiny):
        self.case, self._milliseconds = case, milliseconds

    def loop(self, parameters):
        ms = self._milliseconds(self.case.name, parameters)
        if ms is None:
            raise RuntimeError("out of\nresource: shared memory")
        return ms

    def time(self, parameters, replays):
        return spread(self.loop(parameters))


def searched(monkeypatch, milliseconds, *, call_class=DECODE, facts=lambda job: WorstFacts(), budget=600.0):
    """A class of three cases, timed as planted from TODAY on; what is compiled has planted facts, an error or none."""
    cases = [dataclasses.replace(DECODE.checked[0], name=name) for name in "abc"]

    def compile_all(jobs, *_):
        return {job: found for job in jobs if (found := facts(job)) is not None}

    monkeypatch.setattr(search, "Bench", lambda *given, **named: PlantedBench(milliseconds, *given, **named))
    monkeypatch.setattr(search, "side_by_side", lambda loops, **_: list(map(spread, loops)))
    monkeypatch.setattr(tune_run, "entry_of", lambda *_: type("Entry", (), {"parameters": TODAY}))
    monkeypatch.setattr(tune_run, "judge", lambda search, device: None)
    run = Tuning(of_value=False, architecture="sm90", machine="", versions={}, command="", commit="", source="")
    saved, whole = [], Budget(time.monotonic(), budget)
    tune_run.measure(run, {call_class: cases}, CPU, compile_all, budget=whole, save=saved.append)
    assert saved[-1] == call_class
    return run


def steps_from_the_best(name, parameters):
    """Each of these is best, whatever the others are."""
    best = {"block_n": 32, "num_warps": 8, "num_stages": 4, "keys_per_split": 256, "programs_per_unit": 4}
    return 1.0 + sum(getattr(parameters, field) != value for field, value in best.items()) + (name == "b")


def test_a_search_finds_the_best_of_what_may_be_combined(monkeypatch):
    run = searched(monkeypatch, steps_from_the_best)
    (found,) = run.classes
    best = dataclasses.replace(TODAY, block_n=32, num_warps=8, num_stages=4, keys_per_split=256, programs_per_unit=4)
    assert found.chosen == dataclasses.replace(best, uneven_waves=found.chosen.uneven_waves)
    assert not run.unfinished
    assert found.candidates[0].verdict == "final"
    assert found.candidates[0].times.keys() == set("abc")
    tried = len(found.candidates)
    space = SPACES["nvidia"]["decode"]
    assert tried < len(space.block_n) * len(space.num_warps) * len(space.num_stages) * 3**3, "far fewer than all"


def test_what_does_not_compile_or_run_is_not_chosen(monkeypatch):
    """Tiles of 32 keys do not compile, those of 128 do not run; tiles of 16 are not compiled in time."""

    def facts(job):
        block_n = job.parameters.block_n
        return "the compiler crashed" if block_n == 32 else None if block_n == 16 else WorstFacts()

    timed = set()

    def milliseconds(name, parameters):
        timed.add(parameters.block_n)
        return None if parameters.block_n == 128 else steps_from_the_best(name, parameters)

    (found,) = searched(monkeypatch, milliseconds, facts=facts).classes
    assert found.chosen is not None
    assert (found.chosen.block_n, found.chosen.num_warps) == (64, 8)
    assert timed == {64, 128}
    verdicts = {
        each.parameters.block_n: (each.verdict, each.why) for each in found.candidates if each.parameters.num_stages == 2
    }
    assert verdicts[32] == ("failed", "the compiler crashed")
    assert verdicts[128] == ("failed", "a: RuntimeError: out of resource: shared memory")
    assert verdicts[16] == ("waiting", None)


def test_a_case_that_todays_parameters_do_not_run_is_left_out(monkeypatch):
    (found,) = searched(
        monkeypatch,
        lambda name, parameters: None if name == "b" and parameters == TODAY else steps_from_the_best(name, parameters),
    ).classes
    assert found.candidates[0].times.keys() == {"a", "c"}
    assert found.chosen is not None


def test_a_class_that_is_not_timed_to_the_end_is_unfinished(monkeypatch):
    run = searched(monkeypatch, steps_from_the_best, budget=0.0)
    assert run.unfinished == [DECODE.name]
    assert run.classes[0].chosen is None


def with_launch(call, **changed):
    return call._replace(launch=dataclasses.replace(call.launch, **changed))


def with_number(**changed):
    def wrong(call):
        numbers = call.launch.numbers
        return with_launch(call, numbers={**numbers, **{name: value for name, value in changed.items() if name in numbers}})

    return wrong


WRONG = [
    (DECODE, with_number(stride_block_table=0)),
    (PREFILL, with_number(max_ahead=9)),
    (PREFILL, lambda call: with_launch(call, grid=(*call.launch.grid[:2], 0))),
]
IDS = ["the first request's blocks", "keys ahead", "nothing written"]


def planted(monkeypatch, parameters, wrong):
    """Launches with these parameters are wrong."""
    right = launches.paged_attention_calls

    def calls(*arguments, **options):
        for call in right(*arguments, **options):
            yield wrong(call) if arguments[-1].tiles.parameters.num_warps == parameters.num_warps else call

    monkeypatch.setattr(launches, "paged_attention_calls", calls)


def timed(call_class, others):
    """Today's and others, interpreted in a case of the class."""
    candidates = [Candidate(parameters=each) for each in (TODAY, *others)]
    found = Search(name=call_class.name, candidates=candidates)
    bench = Bench(dataclasses.replace(call_class.checked[0], itemsize=2), CPU, is_tiny=True)
    search.time_in_turn(ClassSearch(call_class, [bench.case], "sm90", found), candidates[1:], bench, NEVER)
    return candidates, bench


@pytest.mark.parametrize(("call_class", "wrong"), WRONG, ids=IDS)
def test_a_wrong_candidate_is_not_timed(call_class, wrong, monkeypatch):
    others = [dataclasses.replace(TODAY, num_warps=8), dataclasses.replace(TODAY, block_n=32)]
    planted(monkeypatch, others[0], wrong)
    candidates, bench = timed(call_class, others)
    assert [each.verdict for each in candidates] == ["slower", "wrong", "slower"]
    assert [each.times.keys() for each in candidates] == [{bench.case.name}, set(), {bench.case.name}]
    assert candidates[1].why is not None
    assert f"{bench.case.name}: WrongError: " in candidates[1].why
    assert candidates[2].times[bench.case.name].ms > 0


def judged(call_class, monkeypatch, wrong):
    """The verdict on what is chosen and launched as `wrong` says."""
    chosen = dataclasses.replace(TODAY, num_warps=8)
    planted(monkeypatch, chosen, wrong)
    found = Search(name="", chosen=chosen, why="1.100 times as fast", candidates=[Candidate(parameters=TODAY, verdict="final")])
    found.candidates.append(Candidate(parameters=chosen, verdict="final"))
    search.judge(ClassSearch(call_class, [], "sm90", found), CPU)
    return found


def test_what_the_reference_agrees_with_stays_chosen(monkeypatch):
    found = judged(DECODE, monkeypatch, lambda call: call)
    assert (found.chosen, found.why) == (found.candidates[1].parameters, "1.100 times as fast")


@pytest.mark.parametrize(("call_class", "wrong"), [(DECODE, with_number(scale=1.001 * 64**-0.5)), *WRONG], ids=["scale", *IDS])
def test_what_the_reference_disagrees_with_is_not_chosen(call_class, wrong, monkeypatch):
    found = judged(call_class, monkeypatch, wrong)
    assert found.chosen is None
    assert found.candidates[1].verdict == "wrong"
    assert found.why.startswith(f"the fastest is wrong: {call_class.checked[0].name}: ")


def test_what_raises_before_the_judge_is_not_chosen(monkeypatch):
    def raises(call):
        raise RuntimeError("out of\nresource: shared memory")

    found = judged(DECODE, monkeypatch, raises)
    assert (found.chosen, found.why) == (None, "the fastest is failed: RuntimeError: out of resource: shared memory")


def test_a_table_says_what_chose_an_entry():
    found = decided((1.0, 2.0), (0.5, 1.0))
    entry = search.entry_of_choice(DECODE, found, "measured: here")
    assert entry is not None
    assert (entry.parameters, entry.source, entry.phase) == (found.chosen, "measured: here", "decode")
    found.candidates[1].verdict, found.candidates[1].facts = "ranked", WorstFacts(spills=0)
    entry = search.entry_of_choice(DECODE, found, "Triton")
    assert entry is not None
    assert entry.source == "derived: no spills (Triton)"
    assert search.entry_of_choice(DECODE, decided((1.0, 2.0)), "") is None
