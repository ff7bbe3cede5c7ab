"""The classes are the launch table's, and the cases that stand for one are launched as its calls are."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from attn_optimized import plan_of
from attn_optimized.launch.table import LatentPhase, Parameters, Phase, entries

from benchmarks.steps.calls import attention_call
from benchmarks.steps.drawn import draw_cases
from benchmarks.tune.classes import CLASSES, MAX_CASES, META, calls_of, cases_by_class, class_of, served, stand_ins
from benchmarks.tune.search import FIRST_CASES
from benchmarks.tune.space import (
    OPTIONS,
    REGISTERS,
    SPACES,
    SPLITS,
    TILE,
    may_fit,
    variants,
    with_as_many_waves,
)
from benchmarks.tune.table import entry_of

COMPUTE_UNITS = 132
by_name = pytest.mark.parametrize("call_class", CLASSES, ids=lambda call_class: call_class.name)


@pytest.fixture(scope="module")
def drawn():
    return served(draw_cases(60, seed=3), "sm90", COMPUTE_UNITS)[0]


@pytest.fixture(scope="module")
def by_class(drawn):
    return cases_by_class(drawn, COMPUTE_UNITS)


def test_every_call_has_a_class():
    assert set(CLASSES) == set(itertools.product(get_args(Phase), (2, 4), (64, 128, 256, 512), (False, True)))
    assert len({call_class.name for call_class in CLASSES}) == len(CLASSES)
    for entry in entries("sm90"):
        assert entry.phase in get_args(LatentPhase) or any(call_class.holds(entry) for call_class in CLASSES)


def test_drawn_calls_are_launched_by_the_entry_of_their_class(by_class):
    for call_class, case in ((call_class, case) for call_class, cases in by_class.items() for case in cases):
        entry = entry_of("sm90", call_class).parameters
        call = attention_call(case, META, seed=0)
        plan = plan_of(call.q, call.layer, call.batch, architecture="sm90", compute_units=COMPUTE_UNITS)
        # a pipeline has no more stages than shared memory holds
        assert replace(plan.tiles.parameters, num_stages=entry.num_stages) == entry, case.name


@by_name
def test_checked_cases_are_of_their_class(call_class):
    # with given parameters, a short batch is launched as a long one
    launched = call_class._replace(phase="short") if call_class.phase == "prefill" else call_class
    assert {class_of(case, COMPUTE_UNITS) for case in call_class.checked} == {launched}


@by_name
def test_a_class_that_no_model_has_gets_cases_of_its_own(call_class, by_class):
    assert {class_of(case, COMPUTE_UNITS) for case in stand_ins(call_class, by_class, COMPUTE_UNITS)} <= {call_class}
    if call_class.phase in {each.phase for each in by_class}:
        assert stand_ins(call_class, by_class, COMPUTE_UNITS)


def test_the_calls_of_a_cascade_see_every_pair_once(drawn):
    cascades = [case for case in drawn if case.common_prefix_len]
    assert cascades
    for case in drawn:
        calls = calls_of(case)
        assert len(calls) == (2 if case in cascades else 1)
        assert sum(each.flops for each in calls) == case.flops
        assert not any(each.common_prefix_len for each in calls)


def test_a_search_begins_with_the_most_work_and_the_middle(drawn, by_class):
    assert sum(map(len, by_class.values())) > len(drawn) // 2
    for cases in by_class.values():
        assert 1 <= len(cases) <= MAX_CASES
        floors = [max(case.flops / 7e14, case.bytes / 3e12) for case in cases]
        assert floors[0] == max(floors)
        if len(cases) > FIRST_CASES:
            more, less = (sum(compare(each, floors[1]) for each in floors[2:]) for compare in (float.__gt__, float.__lt__))
            assert abs(more - less) <= 1


def test_a_step_that_no_kernel_serves_is_in_no_class_and_named(drawn):
    cascade = next(case for case in drawn if case.common_prefix_len)
    wide = [replace(case, name=f"wide {i}", head_size=528) for i, case in enumerate((drawn[0], cascade))]
    found, refused = served([wide[0], *drawn[:3], wide[1]], "sm90", COMPUTE_UNITS)
    assert found == drawn[:3]
    assert list(refused) == ["wide 0", "wide 1"]
    assert all("head size 528 not supported" in why for why in refused.values())


@by_name
def test_checked_cases_have_several_tiles_of_every_candidate(call_class):
    space = SPACES["amd"][call_class.phase]
    assert max(max(case.seq_lens) for case in call_class.checked) > 2 * max(space.block_n)


@pytest.mark.parametrize("architecture", ["sm90", "gfx942", "gfx1201"])
@by_name
def test_candidates_are_new_and_may_fit(call_class, architecture):
    today = entry_of(architecture, call_class).parameters
    found = variants(call_class, architecture, today, (*TILE, *OPTIONS))
    assert today not in found
    assert len(set(found)) == len(found) > 10
    assert all(may_fit(candidate, call_class, architecture) for candidate in found)
    assert {(each.keys_per_split, each.programs_per_unit) for each in found} == {
        (today.keys_per_split, today.programs_per_unit)
    }
    for candidate in found:
        assert architecture.startswith("sm") or candidate.maxnreg is None
        assert architecture.startswith("gfx") or candidate.waves_per_eu is None
    others = variants(call_class, architecture, today, SPLITS)
    assert bool(others) == (call_class.phase in ("decode", "wide_decode", "mixed", "short"))
    assert today not in others
    assert {replace(each, **{name: getattr(today, name) for name in SPLITS}) for each in others} <= {today}


def test_what_cannot_fit_the_registers_is_not_compiled():
    """An accumulator of 128 x 256 float32 and logits of 128 x 64 in 4 warps of 32 lanes are 320 registers each."""
    prefill = next(each for each in CLASSES if each.phase == "prefill" and each.most_block_d == 256)
    today = entry_of("sm90", prefill).parameters
    options = (*TILE, *OPTIONS)
    by_warps = {each.num_warps: each for each in variants(prefill, "gfx942", today, options) if each.block_m == 128}
    assert not any(
        each.num_warps == 4 and each.block_m == 128 and each.block_n == 64 for each in variants(prefill, "sm90", today, options)
    )
    assert 4 in by_warps, "CDNA's waves are twice as wide, and have twice the registers"
    assert REGISTERS["cdna"] == 2 * REGISTERS["rdna"]


def test_fewer_warps_are_more_programs():
    today = Parameters(block_m=16, block_n=64, num_warps=4, num_stages=1, programs_per_unit=4)
    programs = {n: with_as_many_waves(replace(today, num_warps=n), today).programs_per_unit for n in (1, 2, 4, 8, 32)}
    assert programs == {1: 16, 2: 8, 4: 4, 8: 2, 32: 1}
