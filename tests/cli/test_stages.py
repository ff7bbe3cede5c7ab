"""A launch with two numbers of stages: variants that are right are timed, and no others."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from attn_binaries.build import Outcome
from attn_binaries.shipped_calls import chosen
from attn_parity.commands.doctor import clock, sections, stages
from attn_parity.commands.doctor.clock import Time
from attn_parity.commands.doctor.stages import Pair

from tests.support.facts import GOOD

SMALL = {"requests": 3, "seq_len": 100, "num_heads": 4, "num_kv_heads": 2, "head_size": 32, "cache_bytes": 1 << 20}


@pytest.mark.parametrize(("architecture", "stages_of_others"), [("gfx942", {2}), ("gfx950", {1, 2}), ("sm90", {1, 2})])
def test_the_other_launch_has_one_stage_less_or_two(architecture, stages_of_others):
    shipped, others = chosen(architecture, main=True), stages.all_of(architecture)
    assert {"decode, split", "prefill, bf16 D256", "latent decode, H128"} <= set(others)
    for name, other in others.items():
        before, after = shipped[name].launch.options, other.launch.options
        assert after == before | {"num_stages": {1: 2, 2: 1, 3: 2, 4: 3}[before["num_stages"]]}
        assert other.launch.constants == shipped[name].launch.constants
    assert {other.launch.options["num_stages"] for other in others.values()} == stages_of_others


def timed(monkeypatch, name, of_others=GOOD, **sizes) -> Pair:
    """A call with small sizes, interpreted in the place of gfx942, with times that a clock would not give."""

    def in_turns(runs):
        return [run() and Time(ms, 0.9 * ms, 1.1 * ms) for run, ms in zip(runs, (1.5, 1.0), strict=True)]

    monkeypatch.setattr(clock, "in_turns", in_turns)
    job = "gfx942", name
    found = [Outcome({job: SimpleNamespace(facts=facts)}) if facts else Outcome({}, {job: "no"}) for facts in (GOOD, of_others)]
    shipped = replace(stages.calls()[name], **{**SMALL, **sizes})
    return stages.timed(shipped, "gfx942", *found, device="cpu")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("decode, split", {}),
        ("decode, int8 cache", {}),
        ("prefill, rules", {"query_len": 20}),
        ("prefill, float8 output", {"query_len": 40}),
        ("prefill, SHUFFLED", {"query_len": 20}),
        ("latent decode, e4m3fnuz cache", {"num_kv_heads": 1, "head_size": 96, "head_size_v": 64}),
    ],
)
def test_both_variants_are_judged_and_timed(name, sizes, monkeypatch):
    pair = timed(monkeypatch, name, **sizes)
    assert pair.other.why_not is None
    assert (pair.shipped.num_stages, pair.other.num_stages) == (1, 2)
    assert pair.shipped.error == pair.other.error  # the interpreter has no stages
    assert 0 < pair.other.error <= 1
    assert (pair.gain, pair.verdict) == (1.5, "faster")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda launch: replace(launch, grid=(0, 1, 1)), "not written"),
        (lambda launch: replace(launch, numbers=launch.numbers | {"scale": 1.0}), "DisagreementError"),
    ],
)
def test_a_wrong_variant_is_not_timed(change, words, monkeypatch):
    right = stages.with_other_stages
    monkeypatch.setattr(stages, "with_other_stages", lambda call: right(call)._replace(launch=change(right(call).launch)))
    pair = timed(monkeypatch, "decode")
    assert words in pair.other.why_not
    assert pair.verdict == "not timed"


@pytest.mark.parametrize(
    ("facts", "why_not"),
    [
        (None, "no"),
        (replace(GOOD, vgpr_spills=12), "12 registers are spilled, and none of what ships"),
        (replace(GOOD, lds_bytes=80 << 10), "lds_bytes is 81920, at most 65536 there"),
    ],
)
def test_what_does_not_compile_or_spills_is_not_timed(facts, why_not, monkeypatch):
    pair = timed(monkeypatch, "decode", facts)
    assert pair.other.why_not == why_not
    assert pair.other.times is None


def test_on_a_gpu_each_call_has_a_section(monkeypatch, tmp_path):
    monkeypatch.setattr(sections, "this_architecture", lambda: "gfx942")
    names = [name for name, _ in sections.sections("cuda", examples=1, workers=1, seed=0, folder=tmp_path)]
    assert names[-len(stages.calls()) - 1] == "compile other stages"
    assert names[-len(stages.calls()) :] == [f"stages of {name}" for name in stages.calls()]


def test_calls_take_turns_until_there_are_enough_rounds(monkeypatch):
    """A GPU whose clock is the list of calls: the i-th call ends at i * i ms."""
    called = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0

        def record(self) -> None:
            self.at = len(called) ** 2

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr(clock, "SECONDS", 0.0)
    first, second = clock.in_turns([lambda: called.append("a"), lambda: called.append("b")])
    # one call of each to compile, one that is not timed, and five rounds
    assert "".join(called) == "ab" + "a" + "ab" + "ba" + "ab" + "ba" + "ab"
    assert (first, second) == (Time(15.0, 7.0, 23.0), Time(17.0, 9.0, 25.0))
