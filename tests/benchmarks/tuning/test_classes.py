"""The classes are the launch table's, and the cases that stand for one are launched as its calls are."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from attn_optimized.launch.table import LatentPhase, Parameters, Phase, entries, parameters_for
from attn_optimized.launch.workload import Workload, phase_of

from benchmarks.tuning.classes import CLASSES
from benchmarks.tuning.space import DERIVABLE, REGISTERS, SPACES, candidates, may_fit, splits, with_as_many_waves
from benchmarks.tuning.table import entry_of

COMPUTE_UNITS = 132
by_name = pytest.mark.parametrize("call_class", CLASSES, ids=lambda call_class: call_class.name)


def test_every_call_has_a_class():
    assert set(CLASSES) == set(itertools.product(get_args(Phase), (2, 4), (64, 128, 256), (False, True)))
    assert len({call_class.name for call_class in CLASSES}) == len(CLASSES)
    for entry in entries("sm90"):
        assert entry.phase in get_args(LatentPhase) or any(call_class.holds(entry) for call_class in CLASSES)


@by_name
def test_cases_are_of_their_class(call_class):
    for case in call_class.timed + call_class.checked:
        workload = Workload(
            itemsize=case.itemsize,
            quantized=case.float8_cache,
            head_size=case.head_size,
            num_heads=case.num_heads,
            num_kv_heads=case.num_kv_heads,
            num_tokens=case.num_tokens,
            num_requests=len(case.query_lens),
            max_query_len=max(case.query_lens),
            max_seq_len=max(case.seq_lens),
            window_keys=case.window,
            has_gaps=case.chunked_local is not None,
        )
        phase = phase_of(workload, COMPUTE_UNITS)
        # with given parameters, a short batch is launched as a long one
        assert ("prefill" if call_class.phase == "prefill" and phase == "short" else phase) == call_class.phase, case.name
        assert (case.itemsize, case.head_size) == (call_class.itemsize, call_class.most_block_d)
        assert case.float8_cache == call_class.quantized


@by_name
def test_checked_cases_have_several_tiles_of_every_candidate(call_class):
    space = SPACES["amd"][call_class.phase]
    assert max(max(case.seq_lens) for case in call_class.checked) > 2 * max(space.block_n)


@pytest.mark.parametrize("architecture", ["sm90", "gfx942", "gfx1201"])
@by_name
def test_candidates_are_new_and_may_fit(call_class, architecture):
    today = entry_of(architecture, call_class).parameters
    found = candidates(call_class, architecture, today)
    assert today not in found
    assert len(set(found)) == len(found) > 10
    assert all(may_fit(candidate, call_class, architecture) for candidate in found)
    assert {(each.keys_per_split, each.programs_per_unit) for each in found} == {
        (today.keys_per_split, today.programs_per_unit)
    }
    for candidate in found:
        assert architecture.startswith("sm") or candidate.maxnreg is None
        assert architecture.startswith("gfx") or candidate.waves_per_eu is None
    others = list(splits(call_class, architecture, today))
    assert bool(others) == (call_class.phase in ("decode", "wide_decode", "mixed", "short"))
    assert today not in others


def test_the_nearest_candidates_come_first():
    call_class = CLASSES[1]
    today = parameters_for("sm90", phase="decode", itemsize=2, block_d=128, quantized=False)

    def differences(candidate):
        names = ("block_m", "block_n", "num_warps", "num_stages", "maxnreg")
        return sum(getattr(candidate, name) != getattr(today, name) for name in names)

    found = list(map(differences, candidates(call_class, "sm90", today)))
    assert found == sorted(found)
    assert found[0] == 1 < found[-1]


def test_what_cannot_fit_the_registers_is_not_compiled():
    """An accumulator of 128 x 256 float32 and logits of 128 x 64 in 4 warps of 32 lanes are 320 registers each."""
    prefill = next(each for each in CLASSES if each.phase == "prefill" and each.most_block_d == 256)
    today = entry_of("sm90", prefill).parameters
    by_warps = {each.num_warps: each for each in candidates(prefill, "gfx942", today) if each.block_m == 128}
    assert not any(
        each.num_warps == 4 and each.block_m == 128 and each.block_n == 64 for each in candidates(prefill, "sm90", today)
    )
    assert 4 in by_warps, "CDNA's waves are twice as wide, and have twice the registers"
    assert REGISTERS["cdna"] == 2 * REGISTERS["rdna"]


def test_fewer_warps_are_more_programs():
    today = Parameters(block_m=16, block_n=64, num_warps=4, num_stages=1, programs_per_unit=4)
    programs = {n: with_as_many_waves(replace(today, num_warps=n), today).programs_per_unit for n in (1, 2, 4, 8, 32)}
    assert programs == {1: 16, 2: 8, 4: 4, 8: 2, 32: 1}


def test_derivable_architectures_have_tables():
    assert all(entries(architecture) for architecture in DERIVABLE)
