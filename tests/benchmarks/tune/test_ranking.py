"""Candidates are ranked by the facts of their binaries in the documented order, and today's stay where nothing is better."""

import dataclasses
import random

import pytest
from attn_optimized.launch.table import Parameters

from benchmarks.assembly.loops import hot_loop
from benchmarks.tune import ranking
from benchmarks.tune.facts import WorstFacts, cycles_per_turn
from benchmarks.tune.results import Candidate, Search

FACTS = WorstFacts(
    spills=0, matrix_instructions=8, shared_bytes=8192, shared_limit=65536, waves=2, instructions=1.0, cycles=1.0
)
PARAMETERS = Parameters(block_m=64, block_n=32, num_warps=4, num_stages=1)
BEST_FIRST = [
    FACTS._replace(waves=5, ahead=0.5, cycles=0.9),  # no more waves than are enough
    FACTS._replace(waves=2, ahead=0.9, barriers=0.01, cycles=0.3),  # no further ahead than is enough
    FACTS._replace(waves=5, ahead=0.4, cycles=0.5),
    FACTS._replace(cycles=0.6),
    FACTS._replace(waves=9, cycles=0.7, instructions=0.01),
    FACTS._replace(barriers=0.01, cycles=0.2),
    FACTS._replace(waves=1, cycles=0.1),
    FACTS._replace(matrix_instructions=0, waves=9, cycles=0.01),
    FACTS._replace(spills=1, waves=9, cycles=0.01),
    FACTS._replace(spills=2, waves=9, cycles=0.01),
]


def search_of(*facts):
    """Today's first."""
    candidates = [
        Candidate(parameters=dataclasses.replace(PARAMETERS, uneven_waves=i), facts=each) for i, each in enumerate(facts)
    ]
    return Search(name="", candidates=candidates)


def ranked(*facts, architecture="gfx942"):
    found = search_of(*facts)
    ranking.rank(found, architecture)
    return found


def index(found):
    return None if found.chosen is None else found.chosen.uneven_waves


@pytest.mark.parametrize("worse", range(1, len(BEST_FIRST)))
def test_each_fact_decides_among_what_is_alike_before_it(worse):
    others = BEST_FIRST[worse - 1 :]
    random.Random(worse).shuffle(others)
    found = ranked(BEST_FIRST[-1]._replace(spills=3, cycles=9.0), *others)
    assert index(found) == 1 + others.index(BEST_FIRST[worse - 1])


def test_loads_ahead_are_worth_some_more_work():
    ahead = FACTS._replace(ahead=0.8)
    assert index(ranked(FACTS, ahead._replace(cycles=1.2))) == 1
    assert index(ranked(FACTS, ahead._replace(cycles=1.3))) is None


def test_waves_count_up_to_what_is_enough():
    many, few = FACTS._replace(waves=4, instructions=0.5), FACTS._replace(waves=2, instructions=0.5, cycles=0.5)
    assert index(ranked(many, few, architecture="gfx942")) == 1
    assert index(ranked(few, many, architecture="gfx942")) is None
    assert index(ranked(many, few, architecture="gfx1201")) is None
    assert index(ranked(few, many, architecture="gfx1201")) == 1


def test_instructions_count_where_no_rates_are_published():
    fewer, faster = FACTS._replace(instructions=0.5), FACTS._replace(cycles=0.5)
    assert index(ranked(FACTS, fewer, faster, architecture="gfx942")) == 2
    assert index(ranked(FACTS, fewer, faster, architecture="gfx950")) == 1


def test_a_worse_one_does_not_hide_a_better_one():
    found = search_of(FACTS, FACTS._replace(cycles=0.82), FACTS._replace(cycles=0.905))
    found.candidates[2].parameters = dataclasses.replace(found.candidates[2].parameters, block_m=16)
    ranking.rank(found, "gfx942")
    assert index(found) == 1, "fewer rows, but today's are as good"
    spilled = FACTS._replace(spills=21)
    assert index(ranked(spilled, FACTS._replace(cycles=1.1), FACTS._replace(spills=1, cycles=0.5))) == 2


def test_work_that_is_not_known_is_no_reason_to_change():
    unknown = FACTS._replace(cycles=None)
    assert index(ranked(unknown, FACTS)) is None
    assert index(ranked(FACTS, unknown)) is None


def test_fewer_spills_at_the_cost_of_more_cycles_are_no_gain():
    spilled = FACTS._replace(spills=21)
    assert index(ranked(spilled, FACTS)) == 1
    assert index(ranked(spilled, FACTS._replace(cycles=1.1))) is None


def test_of_what_is_as_good_the_fewest_rows_are_chosen():
    found = search_of(FACTS, *(FACTS._replace(cycles=cycles) for cycles in (0.5, 0.52, 0.55, 0.6)))
    for candidate, block_m in zip(found.candidates[1:], (256, 128, 128, 16), strict=True):
        candidate.parameters = dataclasses.replace(candidate.parameters, block_m=block_m)
    ranking.rank(found, "gfx942")
    assert index(found) == 2, "128 rows take nearly as few cycles as 256, and 16 do not"


def test_the_best_are_the_first_of_those_that_were_compiled():
    found = search_of(FACTS, FACTS._replace(cycles=0.5), None, FACTS._replace(cycles=0.1, spills=65))
    ranking.prune(found)
    assert ranking.best(found, "gfx942", 2) == [found.candidates[1], found.candidates[0]]
    assert ranking.best(found, "gfx942", 9) == [found.candidates[1], found.candidates[0]]


def test_todays_stay_where_nothing_is_better():
    found = ranked(
        FACTS, FACTS, FACTS._replace(cycles=0.91), FACTS._replace(instructions=0.1), FACTS._replace(spills=1, cycles=0.1)
    )
    assert found.chosen is None
    assert found.why.startswith("today's are as good: no spills, 8 matrix instructions, 2 waves per SIMD, 1.000 instructions")
    assert {each.verdict for each in found.candidates} == {"ranked"}


def test_without_facts_of_todays_nothing_is_replaced():
    assert ranked(None, FACTS).why == "today's parameters: were not compiled in time"
    assert ranked(FACTS, None).why == "no candidate but today's was compiled"


def test_what_spills_much_or_does_not_fit_is_pruned():
    found = search_of(FACTS, FACTS._replace(spills=64), FACTS._replace(spills=65), FACTS._replace(shared_bytes=65537), None)
    ranking.prune(found)
    assert [each.verdict for each in found.candidates] == ["waiting", "waiting", "pruned", "pruned", "waiting"]
    assert found.candidates[2].why == "65 registers spilled, more than 64"
    assert found.candidates[3].why == "65537 bytes of shared memory, the limit is 65536"


def test_todays_are_never_pruned_and_others_may_spill_as_much():
    found = search_of(FACTS._replace(spills=99), FACTS._replace(spills=99), FACTS._replace(spills=100))
    ranking.prune(found)
    assert [each.verdict for each in found.candidates] == ["waiting", "waiting", "pruned"]


def test_of_several_binaries_the_worst_facts_count():
    other = WorstFacts(
        spills=3, matrix_instructions=4, shared_bytes=99, shared_limit=100, waves=1, instructions=None, cycles=2.0
    )
    assert WorstFacts.worst([FACTS, other]) == WorstFacts(3, 4, 8192, 100, 1, 1.0, 2.0)


ASSEMBLY = """
kernel:
	s_load_dword s0, s[0:1], 0x0
.LBB0_1:                                ; no tile: a search for the request
	s_add_i32 s1, s1, 1
	s_cbranch_scc0 .LBB0_1
.LBB0_2:                                ; tiles without a mask
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	v_exp_f32_e32 v4, v5
	s_cbranch_vccnz .LBB0_2
	s_cbranch_vccz .LBB0_4
.LBB0_3:                                ; tiles with one
	v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
	v_cndmask_b32_e32 v4, v5, v6, vcc
	v_exp_f32_e32 v4, v5
	s_cbranch_vccnz .LBB0_3
.LBB0_4:
	s_endpgm
"""


WITHOUT_MATRIX = ASSEMBLY.replace("v_mfma_f32_32x32x8_bf16_1k a", "v_fmac_f32_e32 v")


def test_the_loop_without_a_mask_is_counted():
    for assembly in (ASSEMBLY, WITHOUT_MATRIX):
        loop = hot_loop(assembly)
        assert loop is not None
        assert len(loop.instructions) == 3
    assert hot_loop(ASSEMBLY.replace("v_mfma_f32_32x32x8_bf16_1k", "v_nothing")) is None
    assert hot_loop(ASSEMBLY.replace(".LBB0_2\n", ".LBB0_9\n").replace(".LBB0_3\n", ".LBB0_9\n")) is None


def test_cycles_are_of_the_unit_that_takes_longest():
    # 16384 operations at 512 in a cycle, beside 16 cycles of an exponential; one wave hides nothing
    assert cycles_per_turn(hot_loop(ASSEMBLY), waves=2) == 32
    assert cycles_per_turn(hot_loop(ASSEMBLY), waves=1) == 32 + 16
    assert cycles_per_turn(hot_loop(ASSEMBLY.replace("bf16_1k", "f2")), waves=2) is None, "no published rate"
    assert cycles_per_turn(hot_loop(WITHOUT_MATRIX), waves=2) is None
    assert cycles_per_turn(hot_loop(ASSEMBLY), waves=None) is None
